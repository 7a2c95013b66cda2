"""What a replica owes: a plan that holds is as good as asking at each step, and equal runs are equal everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.online import OnlineTime
from sloguard.registry import load
from sloguard.request import Request, Stage, Timeline
from sloguard.rng import stream
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Quantile
from sloguard.sched.plan import Plan
from sloguard.sched.policy import POLICIES, Limits, Policy, View
from sloguard.sim.kernel import Kernel
from sloguard.sim.noise import jitter
from sloguard.sim.replica import OnDecline, OnTokens, Planner, Replica
from sloguard.sim.serve import simulate
from sloguard.slo import StageSLO
from sloguard.workload.scenarios import resolve_slos, scenario_requests

TIME = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0),))


class Asked:
    """A policy whose plans never hold."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    def plan(self, now_s: float, view: View) -> Plan:
        return replace(self.inner.plan(now_s, view), holds_until_s=float("-inf"))


def requests(n: int = 60, rate: float = 3.0) -> list[Request]:
    drawn = scenario_requests("chatbot", rate=rate, num_requests=n, seed=1)
    return resolve_slos(drawn, lambda tokens, context: 10e-3 + 50e-6 * tokens)


def serve(policy: Policy) -> list[Timeline]:
    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        return Replica(
            kernel,
            policy,
            Limits(64, 2048, 2048),
            KvCache(1500),
            TIME,
            on_tokens,
            on_decline,
            predicted=OnlineTime(TIME.scaled(1.3)),
            lengths=Quantile(),
            step_scale=jitter(stream(0, "noise"), 0.05),
        )

    return simulate(requests(), make)


@pytest.mark.parametrize("name", ["vllm", "qoserve", "slos-serve", "sloguard"])
def test_with_noise_and_a_wrong_prediction_holding_changes_nothing(name: str):
    held, asked = serve(load(POLICIES, name, "policy")()), serve(Asked(load(POLICIES, name, "policy")()))
    assert [line.token_s.tolist() for line in held] == [line.token_s.tolist() for line in asked]


SCRIPT = """
from clusters import Prefix, ask, maker
from sloguard.sim.serve import simulate
# A cache that holds few of eleven beginnings: which of them are lost depends on who left first.
requests = [ask(i, i // 8 * 0.2, 100, 60 if i % 3 else 5, prefix=Prefix((i * i % 11, 7, 8), 32)) for i in range(300)]
lines = simulate(requests, maker(blocks=40, caching=True), request_timeout_s=0.15)
print([(line.end, line.token_s.tolist()) for line in lines])
"""


def test_who_hangs_up_together_leaves_in_the_same_order_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "timed_out" in outputs.pop()


@pytest.mark.parametrize("name", ["sloguard", "slos-serve"])
def test_a_plan_holds_only_while_best_effort_is_within_its_part_of_a_step(name: str):
    """Memory that is read makes steps longer, until best-effort decodes no longer fit beside promised ones."""
    reading = BatchTime((Piece(10e-3, 1e-3, 50e-6, 10e-6, 0.0),))
    rows = [
        *[(0.0, 100, 200, None, None)] * 2,
        *[(0.0, 16, 200, 2.0, 0.1), (0.26, 100, 50, None, None)],
        *[(1.24, 100, 50, 2.0, 0.03), (3.36, 16, 400, None, None)],
    ]
    asked = [Request(str(i), at_s, (Stage(p, o, StageSLO(t, q)),)) for i, (at_s, p, o, t, q) in enumerate(rows)]

    def tokens(policy: Policy) -> list[list[float]]:
        def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
            return Replica(kernel, policy, Limits(64, 256, 2000), KvCache(2000), reading, on_tokens, on_decline)

        return [line.token_s.tolist() for line in simulate(asked, make)]

    assert tokens(load(POLICIES, name, "policy")()) == tokens(Asked(load(POLICIES, name, "policy")()))


def test_an_idle_engine_with_async_lag_takes_all_that_come_at_once():
    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        planner = Planner(async_lag=True)
        return Replica(kernel, Fcfs(), Limits(8, 256, 512), KvCache(100), TIME, on_tokens, on_decline, planner=planner)

    lines = simulate([Request(name, 0.0, (Stage(20, 2),)) for name in "ab"], make)
    assert lines[0].token_s.tolist() == lines[1].token_s.tolist()
