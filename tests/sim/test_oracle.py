from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sloguard.contract import judge_request
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.registry import load
from sloguard.request import Prefix, Request, Stage
from sloguard.sched.kv import KvCache
from sloguard.sched.policy import POLICIES, Limits
from sloguard.sim.exact import most_attained
from sloguard.sim.kernel import Kernel
from sloguard.sim.oracle import capacity_bound, upper_bound
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import simulate
from sloguard.slo import Judgement, StageSLO, TpotRule

TIME = BatchTime((Piece(10e-3, 20e-6, 20e-6, 50e-9, 0.0), Piece(5e-3, 100e-6, 40e-6, 50e-9, 0.0)))
CURVED = BatchTime(
    (Piece(10e-3, 20e-6, 20e-6, 80e-9, 0.0), Piece(8e-3, 50e-6, 50e-6, 80e-9, 5e-9)),
    cpu_step_s=0.2e-3,
    cpu_sequence_s=50e-6,
    graph_sizes=(1, 2, 4, 8, 16),
)


def ask(number: int, arrival_s: float, prompt: int, output: int, ttft_s: float, tpot_s: float = 0.05) -> Request:
    return Request(str(number), arrival_s, (Stage(prompt, output, StageSLO(ttft_s=ttft_s, tpot_s=tpot_s)),))


def attained(name: str, requests: Sequence[Request], time: BatchTime, *, replicas: int = 1, blocks: int = 4096) -> int:
    """How many a policy of `POLICIES` serves in time."""

    def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        limits = Limits(64, 2048, blocks * 16)
        return Replica(kernel, load(POLICIES, name, "policy")(), limits, KvCache(blocks), time, on_tokens, on_decline)

    lines = simulate(requests, replica, replicas=replicas)
    return sum(judge_request(line, TpotRule.DEADLINE) is Judgement.MET for line in lines)


def few(seed: int) -> list[Request]:
    """Three requests of which, often, not all can be served in time."""
    rng = np.random.default_rng(seed)
    return [
        ask(
            i,
            float(at_s),
            int(rng.integers(50, 600)),
            int(rng.integers(1, 3)),
            float(rng.uniform(0.03, 0.12)),
            float(rng.uniform(0.012, 0.04)),
        )
        for i, at_s in enumerate(np.sort(rng.uniform(0, 0.1, 3)))
    ]


def many(seed: int, rate: float) -> list[Request]:
    """Overload: answers of one and two stages, some with a shared prefix."""
    rng = np.random.default_rng(seed)
    requests: list[Request] = []
    for i, at_s in enumerate(np.cumsum(rng.exponential(1 / rate, 60))):
        slo = StageSLO(ttft_s=float(rng.uniform(0.1, 0.5)), tpot_s=float(rng.choice([0.02, 0.05])))
        stages = [Stage(int(rng.integers(64, 1500)), int(rng.integers(1, 120)), slo) for _ in range(rng.integers(1, 3))]
        prefix = Prefix((1, 2, 3, 4), 16) if rng.random() < 0.3 else None
        requests.append(Request(str(i), float(at_s), tuple(stages), prefix=prefix))
    return requests


def test_one_request_attains_if_an_idle_replica_serves_it_in_time():
    """500 tokens take 55 ms."""
    for ttft_s, attains in ((0.056, 1), (0.054, 0)):
        asked = [ask(0, 1.0, 500, 5, ttft_s)]
        assert upper_bound(asked, TIME) == most_attained(asked, TIME) == attained("vllm", asked, TIME) == attains


def test_a_pace_no_step_can_keep_is_hopeless():
    """A decode takes 10 ms, and 5 % is forgiven."""
    for tpot_s, attains in ((0.0097, 1), (0.0094, 0)):
        asked = [ask(0, 0.0, 10, 9, 0.01021, tpot_s)]
        assert upper_bound(asked, TIME) == most_attained(asked, TIME) == attains


def test_of_two_that_each_need_the_replica_one_attains():
    asked = [ask(i, 0.0, 750, 1, 0.1) for i in range(2)]
    assert upper_bound(asked, TIME) == most_attained(asked, TIME) == 1
    assert upper_bound(asked, TIME, replicas=2) == 2


def test_what_is_promised_nothing_always_attains():
    asked = [Request("0", 0.0, (Stage(10_000, 9),)), ask(1, 0.0, 500, 5, 0.01)]
    assert upper_bound(asked, TIME) == most_attained(asked, TIME) == 1


def test_the_exact_program_refuses_what_it_does_not_model():
    with pytest.raises(ValueError, match="11 tokens"):
        most_attained([ask(0, 0.0, 10, 12, 1.0)], TIME)


@pytest.mark.parametrize("seed", range(8))
def test_no_policy_beats_the_exact_optimum_and_that_not_the_fluid_bound(seed: int):
    asked = few(seed)
    exact = most_attained(asked, TIME)
    assert exact <= upper_bound(asked, TIME)
    for name in POLICIES:
        assert attained(name, asked, TIME) <= exact, name


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_beats_the_bound_in_overload(name: str, replicas: int):
    asked = many(replicas, 12.0 * replicas)
    blocks = 400
    most = upper_bound(asked, CURVED, replicas, kv_tokens=blocks * 16, max_num_seqs=64)
    assert attained(name, asked, CURVED, replicas=replicas, blocks=blocks) <= most


def test_memory_seats_and_replicas_bound_what_can_be_served():
    asked = [ask(i, 0.0, 100, 200, 2.0, 0.02) for i in range(200)]
    free = upper_bound(asked, CURVED)
    assert upper_bound(asked, CURVED, kv_tokens=3000) < free
    assert upper_bound(asked, CURVED, max_num_seqs=20) < free
    assert free < len(asked)
    assert upper_bound(asked, CURVED, 4) > free


def test_capacity_of_prompts_alone_is_the_inverse_of_their_time():
    """A prompt of 1000 tokens takes 100 ms of arithmetic: 10 a second, or 11 if a tenth is given up."""

    def requests(rate: float) -> list[Request]:
        return [ask(i, i / rate, 1000, 1, 0.5) for i in range(300)]

    found = capacity_bound(requests, TIME, guess=7.0)
    assert 9 < found.low < found.high < 11.5


def test_a_run_that_ends_is_easier_than_one_that_goes_on():
    """Answers of 20 s may be written after the last arrival, unless the same requests then come again."""
    asked = [ask(i, i / 40, 100, 200, 1.0, 0.1) for i in range(300)]
    assert upper_bound(asked, CURVED) == 300
    sustained = upper_bound(asked, CURVED, repeated=True)
    assert sustained < 300
    # Decodes at 100 us with the CPU share, their KV reads, and prompts at 50 us a token: nearly all the time there is.
    served_per_s = sustained / 7.5
    assert 0.8 < served_per_s * (199 * (100e-6 + 200 * 80e-9) + 100 * 50e-6) < 1.0
    assert upper_bound(asked, CURVED, 2, repeated=True) > sustained
