"""Fits a sum of a linear function and a maximum of linear functions.

    predicted = shared @ u + max over pieces j of own @ w_j

    minimised   squared relative error up to OUTLIER, linear beyond (Huber), weighted by sample
    subject to  u >= 0 and w >= 0 but for each piece's first coefficient, its base
    by          alternation of "assign each sample to its largest piece" and "fit all pieces at once" (Magnani and Boyd,
                2009), from one piece on by splitting a piece at a quantile of a feature, the best split each time

The first `segments` shared columns are those of a piecewise linear function. A weak ridge pulls every coefficient
towards the solution with one piece and one slope for all segments: what the samples don't say stays plausible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

COEFFICIENT_SAMPLES, PIECE_SHARE = 2.5, 0.02  # a piece has so many samples a coefficient, and such a share of all
SPLIT_AT = (0.25, 0.5, 0.75, 0.9)
TRIAL_ROUNDS, ROUNDS = 4, 15
RIDGE_SAMPLES = 0.1  # the pull weighs as much as so much of a sample
OUTLIER = 0.1

Array = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Problem:
    shared: Array  # [n, s]
    own: Array  # [n, f], the base's column first
    target: Array  # [n], above zero
    weights: Array  # [n], mean 1
    segments: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """`error` is the weighted mean of the absolute relative error."""

    error: float
    shared: Array  # [s]
    own: Array  # [pieces, f]


def grow(problem: Problem, most: int) -> list[Solution]:
    """The solutions with 1, 2, ... pieces, up to `most` or as long as another makes the error smaller."""
    towards = _straight(problem)
    one = _alternate(problem, towards, np.zeros(len(problem.target), dtype=np.intp), ROUNDS)
    found = [] if one is None else [one]
    while found and len(found) < most:
        tried = (_alternate(problem, towards, labels, TRIAL_ROUNDS) for labels in _splits(problem, found[-1]))
        best = min((s for s in tried if s is not None), key=lambda s: s.error, default=None)
        if best is None or best.error >= found[-1].error:
            break
        found.append(_from(problem, towards, best))
    return found


def refine(problem: Problem, start: Solution) -> Solution:
    """The same pieces on other samples, `start.own` saying which piece each belongs to."""
    return _from(problem, _straight(problem), replace(start, error=_error(problem, start.shared, start.own)))


def _from(problem: Problem, towards: tuple[Array, Array], start: Solution) -> Solution:
    """`start`, or what alternation makes of it if that is better."""
    found = _alternate(problem, towards, _labels(problem, start), ROUNDS)
    return start if found is None or found.error > start.error else found


def _off(problem: Problem, shared: Array, own: Array) -> Array:
    predicted = problem.shared @ shared + (problem.own @ own.T).max(axis=1)
    return np.abs(predicted / problem.target - 1)


def _error(problem: Problem, shared: Array, own: Array) -> float:
    return float(np.mean(problem.weights * _off(problem, shared, own)))


def _labels(problem: Problem, solution: Solution) -> Labels:
    return np.argmax(problem.own @ solution.own.T, axis=1)


def _least(problem: Problem) -> float:
    """Samples of a piece."""
    n, coefficients = problem.own.shape
    return max(COEFFICIENT_SAMPLES * coefficients, PIECE_SHARE * n)


def _splits(problem: Problem, solution: Solution) -> Iterator[Labels]:
    """Every assignment that cuts one piece in two at a quantile of a feature or of the target."""
    labels = _labels(problem, solution)
    features: Array = np.column_stack([problem.own[:, 1:], problem.target])
    for piece in range(len(solution.own)):
        inside = labels == piece
        if inside.sum() < 2 * _least(problem):
            continue
        cuts = {(i, float(cut)) for i, x in enumerate(features.T) for cut in np.quantile(x[inside], SPLIT_AT)}
        for feature, cut in sorted(cuts):
            yield np.where(inside & (features[:, feature] > cut), len(solution.own), labels)


def _alternate(problem: Problem, towards: tuple[Array, Array], labels: Labels, rounds: int) -> Solution | None:
    """The best of some rounds from an assignment; None where it leaves a piece with too few samples."""
    pieces = int(labels.max()) + 1
    best: Solution | None = None
    robust = np.ones(len(labels))
    for _ in range(rounds):
        if pieces > 1 and np.bincount(labels, minlength=pieces).min() < _least(problem):
            break
        shared, own = _solve(problem, towards, labels, pieces, problem.weights * robust)
        off = _off(problem, shared, own)
        solution = Solution(float(np.mean(problem.weights * off)), shared, own)
        if best is None or solution.error < best.error:
            best = solution
        robust = 1 / np.maximum(off / OUTLIER, 1.0)
        labels = _labels(problem, solution)
    return best


def _straight(problem: Problem) -> tuple[Array, Array]:
    """([s], [f]) coefficients of one piece with one slope for all segments."""
    k = problem.segments
    line = problem.shared[:, :k].sum(axis=1, keepdims=True)
    columns = np.column_stack([line, problem.shared[:, k:]])
    straight = Problem(columns, problem.own, problem.target, problem.weights)
    nothing = np.zeros(columns.shape[1]), np.zeros(problem.own.shape[1])
    shared, own = _solve(straight, nothing, np.zeros(len(columns), dtype=np.intp), 1, problem.weights)
    return np.concatenate([np.repeat(shared[:1], k), shared[1:]]), own[0]


def _solve(
    problem: Problem, towards: tuple[Array, Array], labels: Labels, pieces: int, weights: Array
) -> tuple[Array, Array]:
    """([s], [pieces, f]) for a fixed assignment: non-negative least squares on the normal equations.

    Columns are in units of their own root mean square, so that the ridge weighs all alike, and a column without samples
    gets the coefficient 0. A base is the difference of two non-negative coefficients.
    """
    n, s, f = len(labels), problem.shared.shape[1], problem.own.shape[1]
    shared, own = (x / problem.target[:, None] for x in (problem.shared, problem.own))
    of_shared, of_own = (_inverse(np.sqrt(np.mean(x**2, axis=0))) for x in (shared, own))
    columns = np.zeros((n, s + pieces * (f + 1)))
    columns[:, :s] = shared * of_shared
    aims, pulls = [towards[0] * _inverse(of_shared)], [np.ones(s)]
    for piece in range(pieces):
        at, start = labels == piece, s + piece * (f + 1)
        columns[at, start : start + f] = own[at] * of_own
        columns[:, start + f] = -columns[:, start]
        aims += [towards[1] * _inverse(of_own), np.zeros(1)]
        pulls.append(np.full(f + 1, at.mean()))
    ridge = RIDGE_SAMPLES / n * np.concatenate(pulls) + 1e-12
    weighted = columns * weights[:, None]
    normal = columns.T @ weighted / n + np.diag(ridge)
    lower = np.linalg.cholesky(normal)
    aim: Array = weighted.mean(axis=0) + ridge * np.concatenate(aims)
    found = np.asarray(nnls(lower.T, np.linalg.solve(lower, aim))[0], dtype=np.float64)  # pyright: ignore[reportUnknownVariableType]
    blocks = found[s:].reshape(pieces, f + 1)
    blocks[:, 0] -= blocks[:, f]
    return found[:s] * of_shared, blocks[:, :f] * of_own


def _inverse(x: Array) -> Array:
    """1/x, and 0 for 0."""
    return np.divide(1.0, x, out=np.zeros_like(x), where=x > 0)
