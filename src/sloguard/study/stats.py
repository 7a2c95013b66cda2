"""Statistics of studies that were made with several seeds: measures, tests, effect sizes, intervals.

The measures are SLO-Guard's (arXiv 2604.17627). Its "fast cluster" has one rule here, for whatever is compared: a score
of at least FAST of the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from sloguard.rng import stream

FAST = 0.8
RESAMPLES = 10_000
CONFIDENCE = 0.95
Array = NDArray[np.float64]
Interval = tuple[float, float]
Alternative = Literal["greater", "two-sided"]
K = TypeVar("K")


def fast_trials(scores: Sequence[float | None], best: float) -> list[bool]:
    """Which scores lie in the fast cluster. Rates compare by score / best, latencies (negative scores) by best / score;
    None, and any score where the best is 0, is not fast.
    """
    if best < 0:
        return [score is not None and best / score >= FAST for score in scores]
    return [score is not None and 0 < best * FAST <= score for score in scores]


def consistency(fast: Sequence[bool]) -> float | None:
    """Post-hit consistency: of the trials after the first fast one, the share that is fast; None where none is left."""
    if True not in fast:
        return None
    after = list(fast)[list(fast).index(True) + 1 :]
    return sum(after) / len(after) if after else None


def sample_sd(values: Sequence[float]) -> float | None:
    """With n - 1 in the denominator; None of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(values: Array) -> Interval:
    """95 % of the means of resampled values (percentile bootstrap). The same picks for any values of one length."""
    return _bounds(_resampled_means(values, "bootstrap"))


def difference_interval(ours: Array, theirs: Array, *, paired: bool) -> Interval:
    """95 % interval of mean(ours) - mean(theirs) (percentile bootstrap): of pairs resampled, or of each side apart.

    Raises ValueError for pairs of unequal number.
    """
    if paired:
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} values can't be paired with {len(theirs)}")
        return mean_interval(ours - theirs)
    return _bounds(_resampled_means(ours, "ours") - _resampled_means(theirs, "theirs"))


def _resampled_means(values: Array, name: str) -> Array:
    picks = stream(0, name, len(values)).integers(len(values), size=(RESAMPLES, len(values)))
    return values[picks].mean(axis=1)


def _bounds(means: Array) -> Interval:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mann_whitney_p(ours: Sequence[float], theirs: Sequence[float], alternative: Alternative) -> float:
    """P-value of the Mann-Whitney U test; `greater` is that ours tend to be larger.

    SciPy's own choice of method: exact where nothing is tied and one side has at most 8 values, else the normal
    approximation with corrections for ties and continuity. The approximation can promise more than so few values can
    show, so no p is below `smallest_p`.
    """
    if len({*ours, *theirs}) == 1:
        return 1.0
    found = mannwhitneyu(ours, theirs, alternative=alternative)
    return max(float(found.pvalue), smallest_p(len(ours), len(theirs), alternative))


def smallest_p(n: int, m: int, alternative: Alternative) -> float:
    """What the exact test gives where all of one side are above all of the other."""
    return min(1.0, (2 if alternative == "two-sided" else 1) / math.comb(n + m, n))


def cliffs_delta(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Cliff's (1993) delta, from -1 to 1: how much more often one of ours is above one of theirs than below."""
    return float(np.sign(np.subtract.outer(np.asarray(ours), np.asarray(theirs))).mean())


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """Holm's (1979) adjusted p-values."""
    adjusted: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return adjusted
