"""Length distributions against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sloguard.errors import SpecError
from sloguard.rng import stream
from sloguard.workload.lengths import (
    FINE_LEVELS,
    LEVELS,
    Conditional,
    Independent,
    LogNormal,
    Quantiles,
    Uniform,
)

RANGES = st.tuples(st.integers(1, 5000), st.integers(0, 5000)).map(lambda r: (r[0], r[0] + r[1]))
MARGINALS = st.one_of(
    RANGES.map(lambda r: Uniform(*r)),
    st.builds(
        lambda r, z, s: LogNormal(math.log(sum(r) / 2) + z * s, s, *r), RANGES, st.floats(-3, 3), st.floats(0.3, 3)
    ),
    st.lists(st.integers(1, 5000), min_size=11, max_size=11).map(lambda t: Quantiles(tuple(sorted(t)))),
)
U = (np.arange(20_000) + 0.5) / 20_000


@given(MARGINALS, st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=20))
def test_a_quantile_function_rises_within_its_range(marginal, probabilities):
    lengths = marginal.quantile(np.sort(probabilities))
    assert lengths.dtype == np.int64
    assert np.all(lengths >= 1)
    assert np.all(lengths <= marginal.largest)
    assert np.all(np.diff(lengths) >= 0)


def test_uniform_gives_each_length_alike():
    values, counts = np.unique(Uniform(3, 7).quantile(U), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7]
    assert counts.tolist() == [4000] * 5


def test_log_normal_is_scipys_truncated_one():
    lengths = LogNormal(mu=5.0, sigma=1.0, low=20, high=1000).quantile(U)
    exact = stats.truncnorm(math.log(19.5) - 5, math.log(1000.5) - 5, loc=5, scale=1)
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert np.quantile(lengths, q) == pytest.approx(np.exp(exact.ppf(q)), abs=0.51)
    assert np.mean(lengths == 1000) < 0.001, "truncated, not clipped: no heap at the end"


def test_log_normal_from_its_mean_and_median():
    lengths = LogNormal.of(mean=300.0, p50=200.0, low=1, high=10_000_000).quantile(U)
    assert np.median(lengths) == pytest.approx(200, abs=1)
    assert lengths.mean() == pytest.approx(300, rel=0.01)


def test_quantiles_give_back_their_table():
    table = (1, 9, 18, 28, 102, 528, 995, 1362, 1538, 1787, 2043)
    assert Quantiles(table).quantile(np.array(LEVELS) / 100).tolist() == list(table)


@given(MARGINALS, MARGINALS, st.integers(1, 100), st.integers(1, 100), st.integers(0, 99))
def test_a_longer_run_begins_with_the_shorter(prompt, output, n, more, seed):
    lengths = Independent(prompt, output)
    short, long = lengths.draw(stream(seed), n), lengths.draw(stream(seed), n + more)
    assert short.shape == (n, 2)
    np.testing.assert_array_equal(short, long[:n])


def test_prompt_and_output_are_independent():
    pairs = Independent(LogNormal(5, 1, 1, 10_000), LogNormal(4, 1, 1, 10_000)).draw(stream(0), 20_000)
    assert abs(np.corrcoef(np.log(pairs.T))[0, 1]) < 5 / math.sqrt(20_000)


def test_an_output_follows_its_share_of_the_prompts():
    lengths = Conditional(Uniform(1, 300), (Uniform(1, 10), Uniform(11, 20), Uniform(21, 30)))
    prompt, output = lengths.draw(stream(0), 30_000).T
    for k in range(3):
        third = (prompt > 100 * k) & (prompt <= 100 * (k + 1))
        assert np.all((output[third] - 1) // 10 == k)
        assert stats.chisquare(np.bincount(output[third])[10 * k + 1 :]).pvalue > 1e-4


@given(st.lists(MARGINALS, min_size=1, max_size=4), st.integers(1, 100), st.integers(1, 100), st.integers(0, 99))
def test_a_longer_run_of_dependent_lengths_begins_with_the_shorter(outputs, n, more, seed):
    lengths = Conditional(Uniform(1, 50), tuple(outputs))
    short, long = lengths.draw(stream(seed), n), lengths.draw(stream(seed), n + more)
    assert short.min() >= 1
    np.testing.assert_array_equal(short, long[:n])


def test_an_output_is_cut_where_the_window_ends():
    pairs = Independent(Uniform(1, 99), Uniform(1, 1000), max_total_tokens=100).draw(stream(0), 5000)
    assert pairs.sum(axis=1).max() == 100
    assert pairs.min() == 1
    uncut = Independent(Uniform(1, 99), Uniform(1, 1000)).draw(stream(0), 5000)
    np.testing.assert_array_equal(pairs[:, 1], np.minimum(uncut[:, 1], 100 - uncut[:, 0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(5, 4),
        lambda: Uniform(0, 4),
        lambda: LogNormal(5, 0, 1, 10),
        lambda: LogNormal(math.nan, 1, 1, 10),
        lambda: LogNormal(1000, 1, 1, 10),
        lambda: LogNormal(-1000, 1, 1, 10),
        lambda: LogNormal.of(mean=100, p50=200, low=1, high=10),
        lambda: Quantiles(()),
        lambda: Quantiles((1, 2, 3)),
        lambda: Quantiles((1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10)),
        lambda: Quantiles(tuple(range(1, 12)), FINE_LEVELS),
        lambda: Independent(Uniform(100, 100), Uniform(1, 1), max_total_tokens=100),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(SpecError):
        make()
