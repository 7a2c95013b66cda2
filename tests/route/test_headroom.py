from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters import LINEAR, state
from sloguard.perf.batch_time import Batch
from sloguard.rng import stream
from sloguard.route.base import ReplicaState
from sloguard.route.headroom import Headroom, Sent, headroom_s, pressure
from sloguard.sched.job import Job


def sent(due_s: float = 1.0, tokens: int = 500, tpot_s: float | None = 0.1) -> Sent:
    return Sent(0.0, due_s, tokens, tpot_s, -(-tokens // 16))


def job(name: str = "j", ttft_s: float | None = 1.0, keys: tuple[int, ...] = (), prompt: int = 500) -> Job:
    return Job(name, 0.0, prompt, 10, ttft_s=ttft_s, tpot_s=0.1, prefix_keys=keys)


def router(**options: object) -> Headroom:
    return Headroom(stream(0, "router"), **{"explore": 0.0, **options})  # type: ignore[arg-type]


def test_an_idle_replica_has_what_the_prompt_leaves_of_the_deadline():
    alone_s = LINEAR.seconds(Batch(((500, 0),), 1, 500))
    assert headroom_s(0.2, sent(), state()) == pytest.approx(0.8 - alone_s, abs=1e-4)
    busy = state(busy_until_s=0.5)
    assert headroom_s(0.2, sent(), busy) == pytest.approx(0.5 - alone_s, abs=1e-4)


def test_a_prompt_longer_than_a_batch_takes_several():
    """A pace of 50 ms lets steps hold 800 tokens or so: 4,000 take five of them, each with its fixed part."""
    spare_s = headroom_s(0.0, sent(tokens=4000, tpot_s=0.05), state())
    assert spare_s == pytest.approx(1.0 - 4000 * 50e-6 - 6 * 10e-3, abs=2e-3)


def test_what_should_have_been_done_since_an_old_view_no_longer_counts():
    old = state(due=((0.9, 2000),), queued_tokens=2000)  # about 0.12 s of work
    assert headroom_s(0.05, sent(), old) < headroom_s(0.15, sent(), old)
    new, there = sent(due_s=1.3), Sent(0.3, 1.2, 2000, 0.1, 125)
    soon, later = (headroom_s(at_s, new, state()) - headroom_s(at_s, new, state(), [there]) for at_s in (0.31, 0.5))
    assert soon > 0.1
    assert 0 < later < 0.01  # it only decodes now


def test_a_job_may_not_spoil_the_deadlines_after_its_own():
    behind = state(due=((1.1, 8000),), queued_tokens=8000)
    assert headroom_s(0.0, sent(due_s=1.0, tokens=500), state()) > 0.9
    assert headroom_s(0.0, sent(due_s=1.0, tokens=500), behind) < headroom_s(0.0, sent(due_s=1.2, tokens=1), behind)


@pytest.mark.parametrize(
    "full",
    [
        state(free_blocks=31),  # 500 tokens need 32
        state(waiting_blocks=969),
        state(decodes=2000, paces=((0.05, 2000),), kv_tokens=100_000),  # the decodes alone take longer than 50 ms
    ],
    ids=["memory", "memory of those waiting", "pace"],
)
def test_no_room_at_all(full: object):
    assert headroom_s(0.0, sent(), full) == -inf  # type: ignore[arg-type]


works = st.lists(st.tuples(st.floats(0.1, 5), st.integers(1, 3000)), max_size=6).map(lambda due: tuple(sorted(due)))


@given(works, st.integers(0, 60), sent_ := st.builds(sent, st.floats(0.1, 5), st.integers(1, 3000)), sent_)
def test_more_work_never_means_more_room(due: tuple[tuple[float, int], ...], decodes: int, new: Sent, other: Sent):
    busy = state(due=due, decodes=decodes, kv_tokens=300 * decodes, paces=((0.1, decodes),) if decodes else ())
    alone = headroom_s(0.0, new, state())
    beside = headroom_s(0.0, new, busy)
    assert headroom_s(0.0, new, busy, [other]) <= beside + 1e-9 <= alone + 2e-9


def test_what_was_sent_since_the_snapshot_counts_until_the_next_one():
    spread = router()
    stale = [state(), state()]
    assert {spread.choose(0.1, job(f"{i}"), stale, ()).replica for i in range(2)} == {0, 1}
    again = [spread.choose(0.2, job(f"{i}"), stale, ()).replica for i in range(2, 8)]
    assert sorted(again) == [0, 0, 0, 1, 1, 1]
    taken = [state(taken_s=1.0, decodes=3, paces=((0.1, 3),), kv_tokens=1500), state(taken_s=1.0)]
    assert spread.choose(1.0, job("new"), taken, ()).replica == 1


def test_what_was_sent_at_the_instant_of_a_snapshot_counts_once():
    """Each prompt takes 0.4 of the second it has; replica 1 is busy, but less than that after the first of them."""
    first, second = (job(name, 2.0, prompt=8000) for name in "ab")
    seen = [state(taken_s=1.0), state(taken_s=1.0, busy_until_s=1.2)]
    after = router()
    assert [after.choose(1.0, one, seen, ()).replica for one in (first, second)] == [0, 1]
    before = router()
    assert before.choose(1.0, first, [state(), state(busy_until_s=1.2)], ()).replica == 0
    shown = state(taken_s=1.0, due=((2.0, 8000),), queued_tokens=8000)
    assert before.choose(1.0, second, [shown, state(taken_s=1.0, busy_until_s=1.6)], ()).replica == 0


@pytest.mark.parametrize("explore", [-0.1, 5, float("nan")])
def test_a_share_of_jobs_to_explore_with_lies_between_none_and_all(explore: float):
    with pytest.raises(ValueError, match="explore"):
        router(explore=explore)


def test_least_headroom_packs_what_still_fits():
    half = state(due=((1.0, 2000),), queued_tokens=2000)
    full = state(due=((1.0, 20000),), queued_tokens=20000)
    states = [state(), half, full]
    assert router(packing="most").choose(0.0, job(), states, ()).replica == 0
    assert router(packing="least").choose(0.0, job(), states, ()).replica == 1
    with pytest.raises(ValueError, match="'fullest'"):
        router(packing="fullest")


def test_who_declined_is_not_asked_again_and_the_last_resort_is_where_least_is_to_do():
    asked = router()
    states = [state(kv_tokens=10), state(kv_tokens=5), state(kv_tokens=20)]
    tried: list[int] = []
    for hops in (3, 2, 1):
        route = asked.choose(0.0, job(), states, tried)
        assert (route.hops_left, route.replica in tried) == (hops, False)
        tried.append(route.replica)
    last = asked.choose(0.0, job(), states, tried)
    assert (last.replica, last.hops_left) == (1, 0)


def test_of_nearly_equals_the_one_that_was_left_alone_longest_is_taken():
    states = [state(kv_tokens=9), state(kv_tokens=5), state(kv_tokens=7)]
    turns = router()
    taken = [turns.choose(float(now_s), job(f"{now_s}", 50.0), states, ()).replica for now_s in range(1, 7)]
    assert sorted(taken[:3]) == [0, 1, 2]
    assert taken[3:] == taken[:3]


def test_refusals_lower_a_replica_until_another_is_preferred():
    """Replica 0 has 0.15 s more room, of a second, and refuses: each time 2 % more of the second is kept free there."""
    learning = router()
    refusals = 0

    def chosen(tried: list[int]) -> int:
        fresh = [state(taken_s=1.0), state(taken_s=1.0, busy_until_s=1.15)]
        return learning.choose(1.0, job(f"{refusals}", 2.0), fresh, tried).replica

    while chosen([]) == 0:
        assert chosen([0]) == 1
        refusals += 1
        assert refusals < 15
    assert refusals > 5


def test_a_held_prefix_draws_its_like_where_there_is_room():
    keys = tuple(range(30))
    drawn = router()
    busy = state(busy_until_s=0.3)
    assert drawn.choose(0.0, job("a", keys=keys), [busy, state()], ()).replica == 1
    later = [state(taken_s=1.0), state(taken_s=1.0, busy_until_s=1.3)]
    assert drawn.choose(1.0, job("b", 2.0), later, ()).replica == 0
    assert drawn.choose(1.0, job("c", 2.0, keys=keys), later, ()).replica == 1
    uncached = [later[0], state(taken_s=1.0, busy_until_s=1.3, prefix_caching=False)]
    assert drawn.choose(1.0, job("d", 2.0, keys=keys), uncached, ()).replica == 0


def test_jobs_without_a_promise_go_where_least_is_to_do():
    free = Job("free", 0.0, 500, 10)
    assert (
        router().choose(0.0, free, [state(queued_tokens=9), state(kv_tokens=5), state(queued_tokens=7)], ()).replica
        == 1
    )


def test_of_many_replicas_only_some_are_looked_at():
    looked_at: set[int] = set()

    class Counting(list):  # type: ignore[type-arg]
        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            looked_at.add(at)
            return super().__getitem__(at)

    router().choose(0.0, job(), Counting([state()] * 100), ())
    assert 8 < len(looked_at) < 20


@pytest.mark.parametrize(
    ("of", "least", "most"),
    [
        (state(), 0.0, 0.0),
        (state(due=((1.0, 8000),), queued_tokens=8000), 0.4, 0.6),  # about 0.5 s of work
        (state(free_blocks=250, waiting_blocks=50), 0.7, 0.9),
        (state(running=16, waiting=4, put_off=2), 1.0, 1.0),
        (state(running=16, waiting=4, put_off=20), 2.0, 2.0),
    ],
)
def test_pressure_is_what_is_taken_of_what_promises_leave(of: ReplicaState, least: float, most: float):
    assert least <= pressure(0.0, of) <= most
