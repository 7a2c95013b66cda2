"""What `sloguard` decides in small cases whose answer is plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, View
from sloguard.sched.sloguard import Sloguard

TIME = BatchTime((Piece(10e-3, 50e-6, 50e-6, 0.0, 0.0),))  # 10 ms and 20 tokens a millisecond


def job(name: str, prompt: int, output: int = 10, ttft_s: float | None = 1.0, tpot_s: float | None = 0.1) -> Job:
    return Job(name, 0.0, prompt, output, ttft_s=ttft_s, tpot_s=tpot_s)


def decoding(kv: KvCache, name: str, generated: int, first_token_s: float, prompt: int = 100, output: int = 50) -> Job:
    running = job(name, prompt, output)
    assert kv.admit(running, 0, prompt + generated)
    running.tier = Tier.PROMISED
    running.generated_tokens, running.computed_tokens = generated, prompt + generated - 1
    running.first_token_s = first_token_s
    return running


def plan(
    policy: Sloguard, waiting: Sequence[Job], running: Sequence[Job] = (), kv: KvCache | None = None, now_s: float = 0.0
) -> Plan:
    kv = kv or KvCache(2000)
    return policy.plan(now_s, View(list(running), list(waiting), kv, Limits(64, 8192, 8192), TIME, Oracle()))


def test_nothing_is_promised_before_it_starts():
    jobs = [job("a", 4000, ttft_s=0.9), job("b", 4000, ttft_s=1.0)]
    made = plan(Sloguard(), jobs)
    assert [j.tier for j in jobs if j.id not in made.admit] == [Tier.NEW] * (2 - len(made.admit))
    assert all(j.tier is Tier.PROMISED for j in jobs if j.id in made.admit)


def test_of_prompts_that_exclude_each_other_the_costliest_waits():
    """60 ms of work each for the small ones, 200 ms for the large one; all are due in 220 ms."""
    large, small = job("large", 4000, ttft_s=0.22), [job(f"s{i}", 1000, ttft_s=0.221) for i in range(3)]
    made = plan(Sloguard(), [large, *small])
    assert "large" not in made.tokens
    assert set(made.tokens) <= {"s0", "s1", "s2"}
    assert large.tier is Tier.NEW  # its turn may still come
    greedy = plan(Sloguard(shed=False), [job("large", 4000, ttft_s=0.22), *(job(f"s{i}", 1000) for i in range(3))])
    assert "large" in greedy.tokens


def test_what_could_not_be_in_time_even_alone_is_best_effort_and_still_served():
    late = job("late", 4000, ttft_s=0.1)
    made = plan(Sloguard(), [late])
    assert late.tier is Tier.BEST_EFFORT
    assert made.tokens["late"] > 0


def test_where_another_replica_may_be_asked_it_is():
    late = job("late", 4000, ttft_s=0.1)
    late.hops_left = 1
    assert plan(Sloguard(), [late]).decline == ("late",)


def test_streams_that_ran_ahead_pause_for_a_prompt_that_is_due():
    kv = KvCache(2000)
    ahead = [decoding(kv, f"ahead{i}", generated=30, first_token_s=0.0) for i in range(30)]
    behind = decoding(kv, "behind", generated=1, first_token_s=0.0)  # is due at 1.1 s
    urgent = job("urgent", 400, ttft_s=0.032)
    urgent.arrival_s = 1.0
    made = plan(Sloguard(), [urgent], [*ahead, behind], kv, now_s=1.0)
    assert "urgent" in made.tokens
    assert "behind" in made.tokens
    assert sum(name.startswith("ahead") for name in made.tokens) < 30
    calm = plan(Sloguard(), [], ahead, kv, now_s=1.0)
    assert len(calm.tokens) == 30


def test_a_conversation_counts_with_what_its_later_stages_are_likely_to_add():
    kv = KvCache(200)  # 3,200 tokens
    policy = Sloguard()
    for i in range(20):
        one, other = job(f"one{i}", 400, output=200), job(f"other{i}", 1400, output=200)
        one.conversation = other.conversation = str(i)
        one.stages_left, other.tier = 1, Tier.PROMISED
        plan(policy, [one])
        one.generated_tokens = 200
        plan(policy, [other])
    holder = decoding(kv, "holder", generated=1, first_token_s=0.0, prompt=1000, output=1500)
    last, first = job("last", 800, output=200), job("first", 800, output=200)
    first.stages_left = 1
    made = plan(policy, [first, last], [holder], kv)
    assert "last" in made.admit
    assert "first" not in made.admit


def test_a_promise_needs_memory_to_its_end():
    kv = KvCache(200)  # 3,200 tokens
    holder = decoding(kv, "holder", generated=1, first_token_s=0.0, prompt=1000, output=1500)
    long, short = job("long", 500, output=1200), job("short", 400, output=20)
    made = plan(Sloguard(), [long, short], [holder], kv)
    assert "short" in made.admit
    assert "long" not in made.admit


def test_best_effort_is_evicted_only_where_that_makes_room():
    """Blocks that two of them share become free once; those that the new job shares with the promised cost nothing."""
    keys = tuple(range(20))

    def start(kv: KvCache, name: str, prompt: int, tier: Tier, prefix_keys: tuple[int, ...] = ()) -> Job:
        running = replace(job(name, prompt, output=40), prefix_keys=prefix_keys, stream=name, tier=tier)
        cached = kv.cached_tokens(running)
        assert kv.admit(running, cached, prompt - cached, whole=False)
        running.computed_tokens, running.generated_tokens, running.first_token_s = prompt, 1, 0.0
        return running

    small = KvCache(40)
    enough = [start(small, "promised", 320, Tier.PROMISED, keys), start(small, "other", 224, Tier.BEST_EFFORT)]
    seven_more = replace(job("new", 420), prefix_keys=keys, tier=Tier.PROMISED)
    assert plan(Sloguard(), [seven_more], enough, small).evict == ("other",)

    small = KvCache(40)
    shared = [start(small, name, 336, Tier.BEST_EFFORT, keys) for name in ("b1", "b2")]
    too_few = [start(small, "promised", 160, Tier.PROMISED), *shared]
    assert plan(Sloguard(), [replace(job("new", 500), tier=Tier.PROMISED)], too_few, small).evict == ()
