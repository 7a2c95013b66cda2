"""Statistics of paired studies: everything is [n] over pairs of (task, seed) that all ways have run.

Pairs of one task are not independent of each other, so intervals and tests speak of these tasks, not of all there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from sloguard.rng import stream

RESAMPLES = 10_000
CONFIDENCE = 0.95
Array = NDArray[np.float64]
Interval = tuple[float, float]


def mean_interval(values: Array) -> Interval:
    """95 % of the means of resampled pairs (percentile bootstrap). The same pairs for any values of one length."""
    picks = stream(0, "bootstrap", len(values)).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_p(ours: Array, theirs: Array) -> float:
    """Wilcoxon's signed-rank test, two-sided; pairs without a difference are split between both signs."""
    if np.allclose(ours, theirs):
        return 1.0
    return float(wilcoxon(ours, theirs, zero_method="zsplit").pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) adjusted p-values by name."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return adjusted


def at_times(ends_s: Array, values: Array, grid_s: Array) -> Array:
    """[g] the last of `values` [k] that was known at each instant; 0 before the first."""
    index = np.searchsorted(ends_s, grid_s, side="right")
    return np.concatenate([[0.0], values])[index]


def fast_trials(scores: Sequence[float], best: float, within: float) -> list[bool]:
    """Which trials lie in the fast cluster: at least `within` of the best score."""
    return [score >= within * best for score in scores]


def fast_below_gap(latencies: Sequence[float]) -> list[bool]:
    """The paper's fast cluster: what lies below the widest gap (in ratio) between neighbours."""
    ranked = np.sort(np.log(np.asarray(latencies)))
    widest = int(np.argmax(np.diff(ranked)))
    return [bool(math.log(latency) <= ranked[widest] + 1e-12) for latency in latencies]


def consistency(fast: Sequence[bool]) -> float | None:
    """Post-hit consistency: of the trials after the first fast one, the share that is fast; None where none is left."""
    if True not in fast:
        return None
    after = list(fast)[list(fast).index(True) + 1 :]
    return sum(after) / len(after) if after else None
