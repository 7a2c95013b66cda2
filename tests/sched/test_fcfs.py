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
from sloguard.sched.policy import Limits, View

INSTANT = BatchTime((Piece(0.0, 0.0, 0.0, 0.0, 0.0),))


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
