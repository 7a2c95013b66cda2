"""Statistics against oracles: SciPy, brute force, and samples whose truth is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from sloguard.study.stats import (
    FAST,
    Alternative,
    cliffs_delta,
    consistency,
    difference_interval,
    fast_trials,
    holm,
    mann_whitney_p,
    mean_interval,
    sample_sd,
    smallest_p,
)

# Multiples of 1/8, so that sums and differences are exact, and equal where they should be.
values = st.integers(-80, 80).map(lambda n: n / 8)
samples = st.lists(values, min_size=1, max_size=12)
ALTERNATIVES: tuple[Alternative, ...] = ("greater", "two-sided")


def wins(ours: list[float], theirs: list[float]) -> float:
    """Mann and Whitney's U by its definition."""
    return sum((a > b) + (a == b) / 2 for a in ours for b in theirs)


def exact_p(ours: list[float], theirs: list[float], alternative: Alternative) -> float:
    """Over all ways to deal the values out, the share with a U at least as large, or as far from its mean."""
    pool, mean = [*ours, *theirs], len(ours) * len(theirs) / 2
    dealt = []
    for mine in combinations(range(len(pool)), len(ours)):
        rest = [value for i, value in enumerate(pool) if i not in mine]
        dealt.append(wins([pool[i] for i in mine], rest))
    seen = wins(ours, theirs)
    if alternative == "greater":
        return sum(u >= seen for u in dealt) / len(dealt)
    return sum(abs(u - mean) >= abs(seen - mean) for u in dealt) / len(dealt)


@given(st.lists(values, min_size=2, max_size=8, unique=True), st.data(), st.sampled_from(ALTERNATIVES))
def test_mann_whitney_of_few_untied_values_is_exact(pool, data, alternative):
    split = data.draw(st.integers(1, len(pool) - 1))
    ours, theirs = pool[:split], pool[split:]
    assert mann_whitney_p(ours, theirs, alternative) == pytest.approx(exact_p(ours, theirs, alternative))


@given(samples, samples, st.sampled_from(ALTERNATIVES))
def test_mann_whitney_is_scipys_but_never_below_what_so_few_values_can_show(ours, theirs, alternative):
    p = mann_whitney_p(ours, theirs, alternative)
    least = smallest_p(len(ours), len(theirs), alternative)
    assert least <= p <= 1
    if len({*ours, *theirs}) > 1:
        assert p == max(least, mannwhitneyu(ours, theirs, alternative=alternative).pvalue)


def test_ties_do_not_make_three_seeds_significant():
    assert mannwhitneyu([9, 9, 9], [1, 1, 1], alternative="greater").pvalue < 0.03
    assert mann_whitney_p([9, 9, 9], [1, 1, 1], "greater") == 0.05 == exact_p([9, 9, 9], [1, 1, 1], "greater")
    assert mann_whitney_p([2, 2], [2, 2], "greater") == 1.0


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from(ALTERNATIVES))
def test_the_smallest_p_is_that_of_complete_separation(n, m, alternative):
    high, low = [100.0 + i for i in range(n)], [float(i) for i in range(m)]
    assert smallest_p(n, m, alternative) == pytest.approx(mann_whitney_p(high, low, alternative))


@given(samples, samples)
def test_cliffs_delta_counts_pairs(ours, theirs):
    pairs = [(a, b) for a in ours for b in theirs]
    counted = (sum(a > b for a, b in pairs) - sum(a < b for a, b in pairs)) / len(pairs)
    assert cliffs_delta(ours, theirs) == pytest.approx(counted)
    assert cliffs_delta(theirs, ours) == pytest.approx(-counted)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(p):
    adjusted = holm(p)
    assert adjusted.keys() == p.keys()
    assert all(p[name] <= adjusted[name] <= 1 for name in p)
    ranked = sorted(p, key=lambda name: p[name])
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())
    assert all(adjusted[name] <= min(1.0, len(p) * p[name]) for name in p)


def test_holm_as_in_its_paper():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


@given(st.lists(st.tuples(values, values), min_size=1, max_size=12))
def test_an_interval_of_a_difference_lies_within_what_can_be_and_is_the_same_each_time(pairs):
    ours, theirs = np.array(pairs, dtype=float).T
    low, high = difference_interval(ours, theirs, paired=True)
    gaps = ours - theirs
    assert gaps.min() - 1e-9 <= low <= high <= gaps.max() + 1e-9
    assert (low, high) == difference_interval(ours, theirs, paired=True)
    low, high = difference_interval(ours, theirs, paired=False)
    assert ours.min() - theirs.max() - 1e-9 <= low <= high <= ours.max() - theirs.min() + 1e-9


def test_what_varies_with_the_seed_is_no_part_of_a_paired_difference():
    by_seed = np.array([1.0, 5.0, 9.0, 13.0])
    assert difference_interval(by_seed + 2, by_seed, paired=True) == (2.0, 2.0)
    low, high = difference_interval(by_seed + 2, by_seed, paired=False)
    assert low < 0 < high
    with pytest.raises(ValueError, match="paired"):
        difference_interval(by_seed, by_seed[:2], paired=True)


@pytest.mark.parametrize(("seeds", "share"), [(5, (0.75, 0.88)), (40, (0.91, 0.97))])
def test_the_interval_of_few_seeds_covers_the_truth_less_often_than_it_says(seeds, share):
    rng = np.random.default_rng(3)
    covered = [low <= 0 <= high for low, high in (mean_interval(rng.normal(size=seeds)) for _ in range(400))]
    assert share[0] <= np.mean(covered) <= share[1]


def test_fast_is_a_share_of_the_best_whether_that_is_a_rate_or_a_latency():
    assert FAST == 0.8
    assert fast_trials([10.0, 8.0, 7.9, None], 10.0) == [True, True, False, False]
    assert fast_trials([-0.43, -0.5375, -0.54, -2.0, None], -0.43) == [True, True, False, False, False]
    assert fast_trials([0.0, None], 0.0) == [False, False]


@given(st.lists(st.one_of(st.none(), st.floats(0.01, 100)), min_size=1, max_size=20).filter(any))
def test_a_latency_is_fast_where_its_rate_is(rates):
    known = [rate for rate in rates if rate is not None]
    edges = [abs(rate / max(known) - FAST) for rate in known]
    if min(edges) < 1e-9:
        return
    latencies = [None if rate is None else -1 / rate for rate in rates]
    assert fast_trials(rates, max(known)) == fast_trials(latencies, -1 / max(known))


def test_consistency_is_of_the_trials_after_the_first_hit():
    assert consistency([False, True, True, False, True]) == pytest.approx(2 / 3)
    assert consistency([False, True]) is None
    assert consistency([False, False]) is None


def test_one_value_has_no_spread():
    assert sample_sd([1.0]) is None
    assert sample_sd([1.0, 3.0]) == pytest.approx(2**0.5)
