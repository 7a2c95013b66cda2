from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sched.priority import Priority

INSTANT = BatchTime((Piece(0.0, 0.0, 0.0, 0.0, 0.0),))


def waiting(*jobs: tuple[int, int]) -> deque[Job]:
    """Of (prompt tokens, priority), in order of arrival."""
    return deque(Job(f"w{i}", float(i), prompt, 50, priority=rank) for i, (prompt, rank) in enumerate(jobs))


def running(kv: KvCache, *jobs: tuple[int, int]) -> list[Job]:
    """The same, decoding."""
    made = [Job(f"r{i}", float(i), prompt, 50, priority=rank) for i, (prompt, rank) in enumerate(jobs)]
    for job in made:
        assert kv.admit(job, 0, job.prompt_tokens)
        job.computed_tokens = job.prompt_tokens
        job.generated_tokens = 1
    return made


def plan(kv: KvCache, run: list[Job], wait: deque[Job], tokens: int = 64, policy: Policy | None = None) -> Plan:
    return (policy or Priority()).plan(0.0, View(run, wait, kv, Limits(8, tokens, 4096), INSTANT, Oracle()))


def test_the_smallest_priority_is_admitted_first_then_the_earliest_then_by_name():
    queue = waiting((10, 2), (10, 0), (10, 1), (10, 0))
    queue.append(Job("a", 1.0, 10, 50))
    made = plan(KvCache(100), [], queue)
    assert list(made.admit) == ["a", "w1", "w3", "w2", "w0"]


def test_nobody_overtakes_the_head_that_does_not_fit():
    assert not plan(KvCache(4), [], waiting((10, 1), (100, 0))).admit


def test_the_victim_is_whoever_matters_least_wherever_it_runs():
    kv = KvCache(6)
    made = plan(kv, running(kv, (32, 0), (31, 7), (32, 1)), waiting((1, 0)))
    assert made.evict == ("r1",)
    assert made.tokens == {"r0": 1, "r2": 1}  # whom the two blocks went to
    assert not made.admit


def test_of_equals_the_last_to_arrive_goes():
    kv = KvCache(6)
    jobs = running(kv, (32, 3), (32, 3), (32, 3))
    assert plan(kv, jobs[::-1], waiting()).evict == ("r2",)


def test_tokens_of_a_victim_go_back_to_the_budget():
    kv = KvCache(5)
    jobs = running(kv, (31, 9), (32, 0), (10, 1))  # the first has room for its token, the second needs a block
    made = plan(kv, jobs, waiting(), tokens=2)
    assert made.evict == ("r0",)
    assert made.tokens == {"r1": 1, "r2": 1}


def test_who_is_evicted_for_its_own_token_ends_the_turn_of_those_behind_it():
    kv = KvCache(4)
    made = plan(kv, running(kv, (15, 0), (32, 9), (15, 1)), waiting())
    assert (made.tokens, made.evict) == ({"r0": 1}, ("r1",))


def test_a_step_goes_on_without_the_first_in_line_if_that_is_the_victim():
    kv = KvCache(4)
    made = plan(kv, running(kv, (32, 9), (15, 0), (15, 1)), waiting())
    assert (made.tokens, made.evict) == ({"r1": 1, "r2": 1}, ("r0",))


@given(
    st.lists(st.integers(1, 200), max_size=8),
    st.lists(st.integers(1, 300), max_size=8),
    st.integers(8, 256),
    st.integers(40, 120),
)
def test_with_one_priority_for_all_it_is_first_come_first_served(
    run: list[int], wait: list[int], tokens: int, blocks: int
):
    def planned(policy: Policy) -> Plan:
        kv = KvCache(blocks)
        fitting = [p for i, p in enumerate(run) if sum(-(-q // 16) for q in run[: i + 1]) <= blocks]
        queue = deque(Job(f"w{i}", 10.0 + i, prompt, 50) for i, prompt in enumerate(wait))
        return plan(kv, running(kv, *[(p, 0) for p in fitting]), queue, tokens, policy)

    assert planned(Priority()) == planned(Fcfs())
