from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.request import Request, Stage
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sched.priority import Priority
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import simulate
from sloguard.slo import StageSLO

INSTANT = BatchTime((Piece(0.0, 0.0, 0.0, 0.0, 0.0),))
LINEAR = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0),))


def limits(seqs: int = 8, tokens: int = 64, **more: object) -> Limits:
    return Limits(seqs, tokens, 4096, **more)  # type: ignore[arg-type]


def waiting(*prompts: int) -> deque[Job]:
    return deque(Job(f"w{i}", float(i), prompt, 50) for i, prompt in enumerate(prompts))


def running(kv: KvCache, *prompts: int, decoding: bool = True) -> list[Job]:
    jobs = [Job(f"r{i}", float(i), prompt, 50) for i, prompt in enumerate(prompts)]
    for job in jobs:
        assert kv.admit(job, 0, job.prompt_tokens)
        job.computed_tokens = job.prompt_tokens
        job.generated_tokens = 1 if decoding else 0
    return jobs


def plan(kv: KvCache, run: list[Job], wait: deque[Job], bounds: Limits) -> Plan:
    return Fcfs().plan(0.0, View(run, wait, kv, bounds, INSTANT, Oracle()))


def test_decodes_come_first_then_prompts_up_to_the_budget_the_last_one_cut():
    kv = KvCache(100)
    made = plan(kv, running(kv, 10, 10), waiting(40, 40, 40), limits())
    assert made.tokens == {"r0": 1, "r1": 1, "w0": 40, "w1": 22}
    assert list(made.admit) == ["w0", "w1"]


def test_without_chunked_prefill_a_prompt_waits_for_a_step_that_takes_all_of_it():
    made = plan(KvCache(100), [], waiting(40, 40, 5), limits(enable_chunked_prefill=False))
    assert made.tokens == {"w0": 40}  # nor does the short one behind it overtake


def test_long_prompts_are_held_to_the_threshold_unless_alone():
    bounds = limits(long_prefill_token_threshold=16)
    assert plan(KvCache(100), [], waiting(60, 30), bounds).tokens == {"w0": 16, "w1": 16}
    assert plan(KvCache(100), [], waiting(60), bounds).tokens == {"w0": 60}


def test_no_more_run_than_max_num_seqs():
    kv = KvCache(100)
    assert list(plan(kv, running(kv, 5), waiting(5, 5, 5), limits(seqs=3)).admit) == ["w0", "w1"]


def test_out_of_memory_evicts_the_last_and_admits_nobody():
    kv = KvCache(6)
    run = running(kv, 32, 32, 32)
    made = plan(kv, run, waiting(1), limits())
    assert made.evict == ("r2",)
    assert made.tokens == {"r0": 1, "r1": 1}
    assert not made.admit
    assert kv.free_blocks == 0  # the two blocks of r2 went to the others


def test_a_job_that_is_itself_the_last_is_evicted():
    kv = KvCache(4)
    run = running(kv, 31, 32)  # the first has room for its token, the second needs a block
    made = plan(kv, run, waiting(), limits())
    assert (made.tokens, made.evict) == ({"r0": 1}, ("r1",))


def test_admission_stops_at_the_first_prompt_that_memory_does_not_hold():
    made = plan(KvCache(4), [], waiting(30, 60, 5), limits(tokens=512))
    assert list(made.admit) == ["w0"]


def test_watermark_spares_blocks_while_others_run():
    bounds = limits(tokens=512, watermark_blocks=5)
    assert list(plan(KvCache(10), [], waiting(96, 16), bounds).admit) == ["w0"]


def test_a_plan_of_decodes_holds_while_nobody_can_be_admitted():
    def holds(prompts: list[int], *queue: int, blocks: int = 100, **more: object) -> bool:
        kv = KvCache(blocks)
        return plan(kv, running(kv, *prompts), waiting(*queue), limits(**more)).holds_until_s == float("inf")  # type: ignore[arg-type]

    assert holds([10, 10])
    assert holds([10, 10], 5, seqs=2)
    assert holds([10, 10], 5, tokens=2)
    assert holds([10, 10], 40, 5, blocks=4)  # and the short prompt behind may not overtake
    assert holds([10, 10], 5, enable_chunked_prefill=False, tokens=6)
    assert not holds([10, 10], 5)
    assert not holds([10, 10], tokens=1)  # one of them is left out
    assert not holds([16, 16], 5, blocks=2)  # evicts
    kv = KvCache(100)
    [young] = running(kv, 10, decoding=False)
    young.computed_tokens = 9
    made = plan(kv, [young], waiting(), limits())
    assert made.tokens == {"r0": 1}
    assert made.holds_until_s == float("-inf")  # its one token is the end of a prompt


class Asked:
    """Counts how often a policy is asked: at every step unless what it holds is passed on."""

    def __init__(self, policy: Policy, *, holding: bool) -> None:
        self.policy, self.holding = policy, holding
        self.plans = 0

    def plan(self, now_s: float, view: View) -> Plan:
        self.plans += 1
        made = self.policy.plan(now_s, view)
        return made if self.holding else replace(made, holds_until_s=float("-inf"))


@pytest.mark.parametrize("policy", [Fcfs(), Priority()])
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 200), st.integers(1, 150)), min_size=1, max_size=20),
    st.integers(1, 12),
    st.integers(22, 60),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_holding_changes_nothing_but_how_often_the_policy_is_asked(
    policy: Policy, asked: list[tuple[float, int, int]], seqs: int, blocks: int, caching: bool
):
    requests = [
        Request(str(i), at_s, (Stage(prompt, output, StageSLO(ttft_s=1 + i % 3)),))  # and so of three priorities
        for i, (at_s, prompt, output) in enumerate(asked)
    ]

    def tokens_s(watched: Asked) -> list[list[float]]:
        def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
            kv = KvCache(blocks, prefix_caching=caching)
            return Replica(kernel, watched, Limits(seqs, 64, blocks * 16), kv, LINEAR, on_tokens, on_decline)

        return [line.token_s.tolist() for line in simulate(requests, replica)]

    each_step, holding = Asked(policy, holding=False), Asked(policy, holding=True)
    assert tokens_s(each_step) == tokens_s(holding)
    assert holding.plans <= each_step.plans
    if min(output for _, _, output in asked) > 15:  # the last to finish decodes on its own
        assert holding.plans < each_step.plans


def test_cached_prefix_is_not_computed_again():
    kv = KvCache(100)
    first = Job("a", 0.0, 48, 1, prefix_keys=(1, 2))
    assert kv.admit(first, 0, 48)
    queue = deque([Job("b", 0.0, 48, 1, prefix_keys=(1, 2))])
    made = plan(kv, [], queue, limits())
    assert made.admit == {"b": 32}
    assert made.tokens == {"b": 16}


@given(
    st.lists(st.integers(1, 200), max_size=8),
    st.lists(st.integers(1, 300), max_size=8),
    st.integers(1, 10),
    st.integers(1, 256),
    st.booleans(),
)
def test_bounds_hold_and_order_is_kept(run: list[int], wait: list[int], seqs: int, tokens: int, chunked: bool):
    kv = KvCache(120)
    jobs = running(kv, *run[:seqs])
    queue = waiting(*wait)
    made = plan(kv, jobs, queue, limits(seqs, tokens, enable_chunked_prefill=chunked))
    assert sum(made.tokens.values()) <= tokens
    assert all(n > 0 for n in made.tokens.values())
    assert len(jobs) - len(made.evict) + len(made.admit) <= seqs
    assert list(made.admit) == [job.id for job in queue][: len(made.admit)]
    planned = [name for name in made.tokens if name.startswith("r")]
    assert planned == [job.id for job in jobs][: len(planned)]
