from __future__ import annotations

from itertools import product
from math import inf

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.sched.policy import Speculation
from sloguard.sched.speculate import LONGEST, accepted, draft_tiers, spare_draft

TIME = BatchTime((Piece(20e-3, 70e-6, 80e-6, 1e-8, 0.0),), draft_step_s=1e-3)


def room_rate(tpots_s: list[float], n: tuple[int, ...], lengths: tuple[int, ...], alpha: float) -> float | None:
    """Prefill tokens a second beside these decodes; None where they don't keep their pace."""
    active = [i for i, count in enumerate(n) if count]
    step_s = min(tpots_s[i] * accepted(lengths[i], alpha) for i in active)
    drafted = sum(count * (length - 1) for count, length in zip(n, lengths, strict=True))
    steps = max(lengths[i] for i in active) - 1
    if TIME.seconds(Batch((), sum(n), 0, drafted, steps)) > step_s:
        return None
    return TIME.inverse(step_s, decodes=sum(n), draft_tokens=drafted, draft_steps=steps) / step_s


@example(tpots_s=[0.03, 0.05], counts=[1, 1], alpha=1 - 1e-16, longest=2)
@given(
    st.lists(st.sampled_from([0.03, 0.05, 0.08, 0.1]), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(0, 60), min_size=2, max_size=2),
    st.floats(0, 1),
    st.integers(1, 6),
)
def test_no_lengths_leave_more_room(tpots_s: list[float], counts: list[int], alpha: float, longest: int):
    tpots_s.sort()
    n = tuple(counts[: len(tpots_s)])
    assume(any(n))
    tiers = draft_tiers(TIME, tpots_s, n, Speculation(longest - 1, alpha))
    assert all(1 <= length <= longest for length in tiers.verified)
    every = product(*[range(1, longest + 1)] * len(tpots_s))
    rates = [rate for lengths in every if (rate := room_rate(tpots_s, n, lengths, alpha)) is not None]
    if rates:
        got = room_rate(tpots_s, n, tiers.verified, alpha)
        assert got is not None
        assert got == pytest.approx(max(rates), rel=1e-6)


def test_nothing_is_drafted_where_nothing_is_accepted():
    assert draft_tiers(TIME, [0.05, 0.1], (5, 5), Speculation(8, 0.0)).verified == (1, 1)


def test_what_is_always_accepted_is_drafted_to_the_longest():
    assert draft_tiers(TIME, [0.05], (1,), Speculation(20, 1.0)).verified == (LONGEST,)


def test_the_period_of_a_tier_is_what_its_verification_yields():
    tiers = draft_tiers(TIME, [0.05, 0.1], (4, 4), Speculation(5, 0.7))
    for tau_s, tpot_s, length in zip(tiers.tau_s, [0.05, 0.1], tiers.verified, strict=True):
        assert tau_s == pytest.approx(tpot_s * sum(0.7**i for i in range(length)))


def test_a_looser_tier_drafts_no_more_than_it_must():
    tiers = draft_tiers(TIME, [0.03, 0.3], (4, 4), Speculation(9, 0.7))
    assert tiers.verified[0] > 1
    assert tiers.verified[1] == 1


def test_tiers_without_decodes_yet_are_given_lengths_too():
    tiers = draft_tiers(TIME, [0.03, 0.1], (0, 0), Speculation(4, 0.7))
    assert len(tiers.verified) == 2


def test_overloaded_decodes_still_get_lengths_within_bounds():
    tiers = draft_tiers(TIME, [0.03], (5000,), Speculation(4, 0.7))
    assert 1 <= tiers.verified[0] <= 5


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), max_size=3),
    st.integers(0, 20),
    st.integers(1, 60),
    st.floats(0, 1),
    st.integers(1, 6),
    st.sampled_from([0.03, 0.1, inf]),
)
def test_without_a_pace_drafts_are_as_long_as_yields_most(
    chunks: list[tuple[int, int]], others: int, decodes: int, alpha: float, longest: int, within_s: float
):
    def seconds(verified: int) -> float:
        drafts = decodes * (verified - 1), verified - 1
        return TIME.seconds(Batch(tuple(chunks), others + decodes, 1000, *drafts))

    def rate(verified: int) -> float:
        return (others + sum(n for n, _ in chunks) + decodes * accepted(verified, alpha)) / seconds(verified)

    batch = Batch(tuple(chunks), others, 400)
    got = spare_draft(TIME, batch, decodes, 600, Speculation(longest - 1, alpha), within_s)
    assert got == 1 or seconds(got) <= within_s
    allowed = [verified for verified in range(1, longest + 1) if verified == 1 or seconds(verified) <= within_s]
    assert rate(got) == pytest.approx(max(map(rate, allowed)))
