from __future__ import annotations

from collections import deque

import pytest

from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.sched.deadline import Edf, Srpf
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sched.qoserve import QoServe
from sloguard.sched.sarathi import Sarathi, SarathiSlo
from sloguard.sched.scorpio import Scorpio
from sloguard.sched.vllm_v0 import VllmV0

MS = 1e-3
TIME = BatchTime((Piece(10 * MS, 0.1 * MS, 0.1 * MS, 0.0, 0.0),))  # 10 ms and 0.1 ms a token
FOREVER = float("inf")


def prompt(name: str, tokens: int, arrival_s: float = 0.0, **more: object) -> Job:
    return Job(name, arrival_s, tokens, 50, **more)  # type: ignore[arg-type]


def running(kv: KvCache, job: Job, *, computed: int | None = None, first_token_s: float = 0.0) -> Job:
    """`job` with `computed` prompt tokens done, or decoding since `first_token_s`."""
    assert kv.admit(job, 0, job.prompt_tokens if computed is None else computed, whole=False)
    job.computed_tokens = job.prompt_tokens if computed is None else computed
    if computed is None:
        job.generated_tokens, job.first_token_s = 1, first_token_s
    return job


def plan(
    policy: Policy,
    run: list[Job],
    wait: list[Job],
    kv: KvCache | None = None,
    *,
    now_s: float = 0.0,
    seqs: int = 16,
    tokens: int = 4096,
    **more: object,
) -> Plan:
    limits = Limits(seqs, tokens, 4096, **more)  # type: ignore[arg-type]
    return policy.plan(now_s, View(run, deque(wait), kv or KvCache(1000), limits, TIME, Oracle()))


# vllm-v0


def test_v0_stops_decodes_for_one_whole_prompt_a_batch():
    kv = KvCache(1000)
    run = [running(kv, prompt("r", 20))]
    made = plan(VllmV0(), run, [prompt("a", 900), prompt("b", 100)], kv)
    assert made.tokens == {"a": 900}


def test_v0_packs_whole_prompts_where_asked_to():
    wait = [prompt("a", 900), prompt("b", 100), prompt("c", 100)]
    assert plan(VllmV0(prompts_per_batch=None), [], wait, tokens=1050).tokens == {"a": 900, "b": 100}
    assert plan(VllmV0(prompts_per_batch=3), [], wait).tokens == {"a": 900, "b": 100, "c": 100}


def test_v0_decodes_all_while_no_prompt_fits_the_memory():
    kv = KvCache(6)
    run = [running(kv, prompt("r", 40)), running(kv, prompt("s", 20))]
    made = plan(VllmV0(), run, [prompt("a", 60)], kv)
    assert (made.tokens, made.holds_until_s) == ({"r": 1, "s": 1}, FOREVER)


def test_v0_finishes_a_prompt_beyond_the_batch_limit_before_it_decodes():
    kv = KvCache(1000)
    run = [running(kv, prompt("r", 20)), running(kv, prompt("a", 900), computed=512)]
    assert plan(VllmV0(), run, [prompt("b", 10)], kv, tokens=512).tokens == {"a": 388}


# sarathi


def test_sarathi_decodes_first_and_prompts_share_what_is_left_of_the_chunk():
    kv = KvCache(1000)
    run = [running(kv, prompt("p", 300), computed=100), running(kv, prompt("d", 20))]
    made = plan(Sarathi(), run, [prompt("a", 200), prompt("b", 200), prompt("c", 200)], kv)
    assert made.tokens == {"d": 1, "p": 200, "a": 200, "b": 111}
    assert list(made.tokens) == ["d", "p", "a", "b"]


def test_chunks_are_no_larger_than_the_engine_allows():
    assert plan(Sarathi(), [], [prompt("a", 900)], tokens=256).tokens == {"a": 256}
    assert plan(Sarathi(chunk_tokens=100), [], [prompt("a", 900)]).tokens == {"a": 100}
    assert plan(Sarathi(), [], [prompt("a", 900)], long_prefill_token_threshold=64).tokens == {"a": 64}


def test_without_chunked_prefill_a_prompt_beyond_the_chunk_is_taken_whole():
    made = plan(Sarathi(), [], [prompt("a", 900), prompt("b", 900)], tokens=1000, enable_chunked_prefill=False)
    assert made.tokens == {"a": 900}


def test_the_slo_chunk_fills_the_tightest_pace_that_was_promised():
    kv = KvCache(1000)
    run = [running(kv, prompt(f"d{i}", 20, tpot_s=0.1)) for i in range(4)]
    made = plan(SarathiSlo(), run, [prompt("a", 2000, tpot_s=50 * MS)], kv)
    assert made.tokens["a"] == 396  # 10 ms + 0.1 ms * (4 + 396) = 50 ms
    assert TIME.seconds(Batch(((396, 0),), 4)) == pytest.approx(50 * MS)
    assert plan(SarathiSlo(), [], [prompt("a", 2000)]).tokens == {"a": 512}
    assert plan(SarathiSlo(), [], [prompt("a", 2000, tpot_s=1 * MS)]).tokens == {"a": 128}


@pytest.mark.parametrize("policy", [Sarathi, Edf, Srpf, Scorpio])
def test_a_chunk_below_one_token_is_no_chunk(policy: type[Sarathi]):
    with pytest.raises(SpecError, match="chunk_tokens = 0"):
        policy(chunk_tokens=0)


def test_a_batch_below_one_prompt_is_no_batch():
    with pytest.raises(SpecError, match="prompts_per_batch = 0"):
        VllmV0(prompts_per_batch=0)


# edf and srpf


def test_edf_serves_the_earliest_due_running_or_waiting():
    kv = KvCache(1000)
    slow = running(kv, prompt("slow", 900, ttft_s=9.0), computed=100)
    wait = [prompt("none", 100), prompt("late", 300, 1.0, ttft_s=5.0), prompt("early", 300, 2.0, ttft_s=1.0)]
    made = plan(Edf(), [slow], wait, kv)
    assert list(made.tokens.items()) == [("early", 300), ("late", 212)]  # `slow` pauses


def test_srpf_serves_the_least_prompt_left_after_prefix_hits():
    kv = KvCache(1000)
    first = running(kv, Job("first", 0.0, 480, 50, prefix_keys=tuple(range(30))))
    wait = [prompt("short", 100), Job("known", 0.0, 500, 50, prefix_keys=tuple(range(30)))]
    half = running(kv, prompt("half", 900), computed=850)
    made = plan(Srpf(), [first, half], wait, kv)
    assert list(made.tokens.items()) == [("first", 1), ("known", 20), ("half", 50), ("short", 100)]


def test_memory_is_taken_from_the_latest_due():
    kv = KvCache(8)
    run = [
        running(kv, prompt("late", 32, ttft_s=9.0)),
        running(kv, prompt("early", 32, ttft_s=1.0)),
        running(kv, prompt("none", 64)),
    ]
    made = plan(Edf(), run, [prompt("w", 1, ttft_s=0.1)], kv)
    assert (made.evict, made.tokens) == (("none",), {"late": 1, "early": 1})
    assert not made.admit  # the memory of who was evicted is not given to newcomers in the same step


def test_a_victim_s_tokens_go_back_to_the_budget():
    kv = KvCache(8)
    late = running(kv, prompt("late", 64, ttft_s=9.0))
    early = running(kv, prompt("early", 100, ttft_s=1.0), computed=48)
    # `late` got its token, and a block for it; the prompt needs 4 blocks more than its 3.
    made = plan(Edf(), [late, early], [], kv)
    assert (made.evict, made.tokens) == (("late",), {"early": 52})


# qoserve


def test_qoserve_sizes_the_chunk_by_the_least_slack():
    kv = KvCache(1000)
    job = running(kv, prompt("d", 20, ttft_s=1.0, tpot_s=0.1))
    made = plan(QoServe(), [job], [prompt("a", 3000, ttft_s=60.0)], kv, now_s=0.98)
    # Due at 1.1 s: 120 ms of slack are 100 ms of prediction, less 10.1 ms: 899 tokens, on the grid 896.
    assert made.tokens == {"d": 1, "a": 896}
    made = plan(QoServe(), [job], [prompt("b", 3000, ttft_s=60.0)], kv, now_s=1.2)
    assert made.tokens == {"d": 1, "b": 128}
    assert plan(QoServe(), [], [prompt("c", 3000, ttft_s=60.0)]).tokens == {"c": 2552}


def test_qoserve_weighs_deadline_and_length_by_load():
    def first(*wait: Job) -> str:
        return next(iter(plan(QoServe(), [], list(wait)).tokens))

    # At low load 1 ms a token: 2.0 + 0.1 after 1.0 + 0.9.
    assert first(prompt("short", 100, 1.0, ttft_s=1.0), prompt("long", 900, 0.0, ttft_s=1.0)) == "long"
    # At high load 8 ms a token, and the short one goes first.
    more = [prompt(f"m{i}", 4000, 0.0, ttft_s=60.0) for i in range(3)]
    assert first(prompt("short", 100, 1.0, ttft_s=1.0), prompt("long", 900, 0.0, ttft_s=1.0), *more) == "short"


def test_qoserve_relegates_who_cannot_make_it_behind_all_others():
    lost = prompt("lost", 1000, 0.0, ttft_s=50 * MS)
    kept = prompt("kept", 3000, 0.0, ttft_s=60.0)
    made = plan(QoServe(), [], [lost, kept])
    assert (lost.tier, kept.tier) == (Tier.BEST_EFFORT, Tier.NEW)
    assert made.tokens == {"kept": 2552}


def test_qoserve_learns_its_throughput_from_full_chunks():
    """At the predicted 10 tokens per ms a prompt of 1000 makes 150 ms; steps ten times as slow teach otherwise."""
    policy = QoServe()
    kv = KvCache(1000, prefix_caching=False)
    long = prompt("long", 4000, ttft_s=60.0)
    now_s = 0.0
    made = plan(policy, [], [long], kv)
    for _ in range(30):
        assert made.tokens == {"long": 2552}
        kv.release(long)
        now_s += 2.652
        made = plan(policy, [], [long], kv, now_s=now_s)
    kv.release(long)
    late = prompt("late", 1000, now_s, ttft_s=0.5)
    plan(policy, [], [late], kv, now_s=now_s)
    assert late.tier is Tier.BEST_EFFORT
    fresh = prompt("fresh", 1000, now_s, ttft_s=0.5)
    plan(QoServe(), [], [fresh], now_s=now_s)
    assert fresh.tier is Tier.NEW


# scorpio


def test_scorpio_turns_away_whom_those_before_it_make_late():
    """A token of prompt takes 61.2 ms / 512: 500 tokens 59.8 ms, 1000 tokens 119.5 ms."""
    first = prompt("first", 500, ttft_s=120 * MS)
    second = prompt("second", 500, ttft_s=160 * MS)  # 50 + 59.8 + 59.8 > 160
    third = prompt("third", 500, ttft_s=170 * MS)
    made = plan(Scorpio(), [], [third, second, first])
    assert [job.tier for job in (first, second, third)] == [Tier.PROMISED, Tier.BEST_EFFORT, Tier.PROMISED]
    assert made.tokens == {"first": 500, "third": 12}


def test_scorpio_sends_on_whom_another_replica_may_take():
    hopeless = prompt("hopeless", 500, ttft_s=1 * MS, hops_left=1)
    made = plan(Scorpio(), [], [hopeless])
    assert (made.decline, made.tokens) == (("hopeless",), {})
    assert hopeless.tier is Tier.NEW


def test_scorpio_decodes_in_proportion_to_promised_paces():
    kv = KvCache(1000)
    run = [
        running(kv, prompt(name, 20, tpot_s=pace, tier=Tier.PROMISED))
        for name, pace in (("a", 0.05), ("b", 0.1), ("c", 0.15), ("d", None))
    ]
    policy = Scorpio()
    counts = dict.fromkeys("abcd", 0)
    for _ in range(12):
        made = plan(policy, run, [], kv)
        assert made.holds_until_s < 0
        for name in made.tokens:
            counts[name] += 1
    assert counts == {"a": 12, "b": 6, "c": 4, "d": 12}


def test_scorpio_serves_best_effort_only_while_nobody_else_is_here():
    kv = KvCache(1000)
    spare = running(kv, prompt("spare", 20, tier=Tier.BEST_EFFORT))
    queued = prompt("queued", 20, tier=Tier.BEST_EFFORT)
    idle = plan(Scorpio(), [spare], [queued], kv)
    assert idle.tokens == {"spare": 1, "queued": 20}
    kv.release(queued)
    busy = running(kv, prompt("busy", 20, tpot_s=0.1, tier=Tier.PROMISED))
    assert plan(Scorpio(), [spare, busy], [queued], kv).tokens == {"busy": 1}


def test_scorpio_takes_seats_and_memory_from_best_effort_the_last_first():
    kv = KvCache(8)
    spare = [running(kv, prompt(f"s{i}", 32, tier=Tier.BEST_EFFORT)) for i in range(3)]
    made = plan(Scorpio(), spare, [prompt("new", 60, ttft_s=1.0)], kv)
    assert (made.evict, made.tokens) == (("s2",), {"new": 60})
    kv = KvCache(100)
    spare = [running(kv, prompt(f"s{i}", 32, tier=Tier.BEST_EFFORT)) for i in range(3)]
    made = plan(Scorpio(), spare, [prompt("new", 60, ttft_s=1.0)], kv, seqs=3)
    assert (made.evict, made.tokens) == (("s2",), {"new": 60})


@pytest.mark.parametrize(
    ("policy", "lost_s"),
    [
        (Scorpio(), -FOREVER),  # what it predicts, and so when it gives up, may change with every step
        (QoServe(), 1.0 - 60 * 265.2 * MS / 2552),  # it counts on a throughput that only full chunks change
    ],
)
def test_a_plan_holds_until_a_waiting_job_is_given_up(policy: Policy, lost_s: float):
    kv = KvCache(4)
    run = [running(kv, prompt("r", 30, tpot_s=0.1, tier=Tier.PROMISED))]
    made = plan(policy, run, [prompt("w", 60, ttft_s=1.0, tpot_s=0.1)], kv)
    assert made.tokens == {"r": 1}
    assert made.holds_until_s == pytest.approx(lost_s)


@pytest.mark.parametrize(("blocks", "evicted"), [(41, ()), (42, ("s3", "s2", "s1", "s0"))])
def test_scorpio_evicts_nobody_for_a_job_that_would_not_fit_all_the_same(blocks: int, evicted: tuple[str, ...]):
    """31 blocks are promised, 8 hold best effort, and who waits needs 11."""
    kv = KvCache(blocks)
    run = [running(kv, prompt("big", 480, tpot_s=0.5, tier=Tier.PROMISED))]
    run += [running(kv, prompt(f"s{i}", 31, tier=Tier.BEST_EFFORT)) for i in range(4)]
    wait = [prompt("next", 161, ttft_s=5.0, tpot_s=0.5, tier=Tier.PROMISED)]
    made = plan(Scorpio(), run, wait, kv)
    assert (made.evict, set(made.admit)) == (evicted, {"next"} if evicted else set())


def test_scorpio_counts_all_that_an_evicted_job_computes_again():
    """500 tokens, of which 400 were generated before it was evicted, take 60 ms; that leaves the other one no time."""
    guard, kv = Scorpio(), KvCache(1000)
    evicted = prompt("evicted", 100, ttft_s=0.1, tier=Tier.PROMISED)
    plan(guard, [], [evicted], kv)
    evicted.generated_tokens, evicted.evictions = 400, 1
    kv.release(evicted)
    late = prompt("late", 100, 0.01, ttft_s=0.1, hops_left=1)
    assert plan(guard, [], [evicted, late], kv).decline == ("late",)
