from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.sched.pb_star import PbStar, Tiers

TOKENS_ONLY = BatchTime((Piece(5e-3, 70e-6, 70e-6, 0.0, 0.0),))  # the paper's form: a token is a token
PRICED = BatchTime((Piece(5e-3, 70e-6, 90e-6, 1e-7, 1e-9),), cpu_sequence_s=20e-6)
tpots = st.lists(st.sampled_from([0.03, 0.04, 0.05, 0.06, 0.1, 0.15, 0.2]), min_size=1, max_size=3, unique=True)


def paper(time: BatchTime, t_s: float, tpots_s: list[float], n: tuple[int, ...]) -> float:
    """The paper's loop, one decode at a time, on its own batch time; a batch ends at the deadline it is made for."""
    decodes = [(tpot, tpot) for tpot, count in zip(tpots_s, n, strict=True) for _ in range(count)]  # deadline, TPOT
    if not decodes:
        return time.inverse(t_s)
    clock = total = 0.0
    while clock < t_s - 1e-9:
        end = min(t_s, min(decodes)[0])
        tokens = time.inverse(end - clock)
        due = [deadline - tpot < end - 1e-9 for deadline, tpot in decodes]
        if sum(due) > tokens and end < t_s:
            return -inf
        total += max(0, tokens - sum(due))
        decodes = [(deadline + tpot * now, tpot) for (deadline, tpot), now in zip(decodes, due, strict=True)]
        clock = end
    return total


@given(tpots, st.data(), st.integers(1, 40))
def test_at_the_end_of_a_batch_it_is_the_papers_heap_of_deadlines(tpots_s: list[float], data: st.DataObject, k: int):
    tpots_s.sort()
    n = data.draw(st.tuples(*[st.integers(0, 40)] * len(tpots_s)).filter(any))
    t_s = k * min(tpot for tpot, count in zip(tpots_s, n, strict=True) if count)
    ours = PbStar(TOKENS_ONLY, Tiers.plain(tpots_s)).tokens(t_s, n)
    theirs = paper(TOKENS_ONLY, t_s, tpots_s, n)
    assert ours == theirs or abs(ours - theirs) <= k  # a token a batch may fall on either side of rounding


@given(tpots, st.data(), st.floats(0.001, 1.5))
def test_within_a_batch_it_promises_no_more_than_the_paper(tpots_s: list[float], data: st.DataObject, t_s: float):
    tpots_s.sort()
    n = data.draw(st.tuples(*[st.integers(0, 40)] * len(tpots_s)))
    ours = PbStar(TOKENS_ONLY, Tiers.plain(tpots_s)).tokens(t_s, n)
    assert ours <= paper(TOKENS_ONLY, t_s, tpots_s, n) + t_s / tpots_s[0] + 1


@given(tpots, st.data())
def test_more_time_holds_more_and_more_decodes_hold_less(tpots_s: list[float], data: st.DataObject):
    tpots_s.sort()
    n = data.draw(st.tuples(*[st.integers(0, 60)] * len(tpots_s)))
    early, late = sorted(data.draw(st.tuples(st.floats(0, 2), st.floats(0, 2))))
    tier = data.draw(st.integers(0, len(n) - 1))
    ahead = PbStar(PRICED, Tiers.plain(tpots_s), kv_tokens=500, context_tokens=300)
    assert ahead.tokens(early, n) <= ahead.tokens(late, n)
    if n[tier]:  # a first decode of a tighter tier shortens batches too
        more = (*n[:tier], n[tier] + 1, *n[tier + 1 :])
        assert ahead.tokens(late, more) <= ahead.tokens(late, n)


def test_too_many_decodes_for_their_pace_are_infeasible_at_once():
    ahead = PbStar(PRICED, Tiers.plain([0.05]), kv_tokens=1000)
    most = next(n for n in range(1, 1000) if PRICED.seconds(Batch((), n, n * 1000)) > 0.05) - 1
    assert ahead.tokens(0.0, (most,)) == 0
    assert ahead.tokens(0.0, (most + 1,)) == -inf


def test_a_looser_tier_skips_batches():
    alone = PbStar(TOKENS_ONLY, Tiers.plain([0.05, 0.1]))
    assert alone.tokens(0.1, (1, 20)) == 2 * TOKENS_ONLY.inverse(0.05, decodes=1) - 20
    assert alone.tokens(0.1, (21, 0)) == 2 * TOKENS_ONLY.inverse(0.05, decodes=21)


def test_drafts_lengthen_batches_and_take_their_room():
    tiers = Tiers((0.05 * 1.75,), (3,))  # Acc(3) at alpha 1/2
    ahead = PbStar(TOKENS_ONLY, tiers)
    assert ahead.tokens(2 * 0.05 * 1.75, (10,)) == 2 * TOKENS_ONLY.inverse(0.05 * 1.75, decodes=10, draft_tokens=20)


@given(st.integers(16, 600), st.floats(0.01, 1.0))
def test_batches_of_bounded_size_follow_each_other(most: int, t_s: float):
    got = PbStar(TOKENS_ONLY, Tiers.plain([]), max_tokens=most).tokens(t_s, ())
    full_s = TOKENS_ONLY.seconds(Batch(((most, 0),)))
    batches = int(t_s / full_s)
    expected = batches * most + min(most, TOKENS_ONLY.inverse(t_s - batches * full_s))
    assert got == pytest.approx(expected, abs=1)


def test_a_share_is_left_to_others():
    whole, most = (PbStar(TOKENS_ONLY, Tiers.plain([0.1]), share=share) for share in (1.0, 0.9))
    assert most.tokens(1.0, (5,)) == pytest.approx(0.9 * whole.tokens(1.0, (5,)))
