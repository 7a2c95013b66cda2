"""Statistics of the benchmark alone, beside those of `sloguard.study.stats`: everything is [n] over pairs of (task,
seed) that all ways have run.

Pairs of one task are not independent of each other, so intervals and tests speak of these tasks, not of all there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from sloguard.study.stats import sample_sd

Array = NDArray[np.float64]


def paired_p(ours: Array, theirs: Array) -> float:
    """Wilcoxon's signed-rank test, two-sided; pairs without a difference are split between both signs."""
    if np.allclose(ours, theirs):
        return 1.0
    return float(wilcoxon(ours, theirs, zero_method="zsplit").pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def mean_and_sd(values: Sequence[float]) -> str:
    """One value has no spread that could be said."""
    sd = sample_sd(values)
    return f"{np.mean(values):.2f}" if sd is None else f"{np.mean(values):.2f} +- {sd:.2f}"


def at_times(ends_s: Array, values: Array, grid_s: Array) -> Array:
    """[g] the last of `values` [k] that was known at each instant; 0 before the first."""
    index = np.searchsorted(ends_s, grid_s, side="right")
    return np.concatenate([[0.0], values])[index]
