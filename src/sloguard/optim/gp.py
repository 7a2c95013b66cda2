"""Gaussian processes over a space of knobs, for tens of trials.

    f = prior + shift + sum over knobs of f_j(x_j) + joint(x)

`prior` is nothing, or another process fitted to other trials: its posterior mean and covariance are where this one
begins. Each f_j is a Matern-5/2 process of one number, or one independent level per choice; a knob that is inactive or
missing is a level of its own. The joint term is small and local. Amplitudes, length and noise are the most probable
ones under log-normal priors, so that a process is sane with no trial at all (Rasmussen & Williams 2006, 2.2 and 5.4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from sloguard.space.knobs import Categorical
from sloguard.space.space import Space
from sloguard.trial import Config

Array = NDArray[np.float64]

ITERATIONS = 25  # of L-BFGS: beyond, the fit changes by less than its prior's width
NUMBERS_WEIGHT = 2.0  # a number moves y by so much more than a choice
FARTHEST = 3.0  # standard deviations that a hyperparameter may be off its prior's median
JITTER = 1e-8
JOINT_LENGTH, JOINT_OTHER = 0.5, 0.5  # of the joint term: in the unit cube, and log loss a choice


@dataclass(frozen=True, slots=True)
class Points:
    """`unit` [n, d] holds numbers (0 for choices and inactive knobs), `level` [n, d] choices (-1: inactive), `numbers`
    which knobs are numbers.
    """

    unit: Array
    level: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @staticmethod
    def of(configs: Sequence[Config], space: Space) -> Points:
        d = len(space.knobs)
        pairs = [space.encode(config) for config in configs]
        unit = np.array([u for u, _ in pairs], dtype=np.float64).reshape(len(pairs), d)
        active = np.array([a for _, a in pairs], dtype=np.bool_).reshape(len(pairs), d)
        counts = np.array([k.count if isinstance(k, Categorical) else 0 for k in space.knobs], dtype=np.int64)
        level = np.where(active, np.floor(unit * counts).astype(np.int64), -1)
        return Points(np.where(active & (counts == 0), unit, 0.0), level, np.flatnonzero(counts == 0))

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True, slots=True)
class Scales:
    """What is expected before any trial, in units of y: median and log sd of each hyperparameter's prior.

    `spread` is the standard deviation of y over the space, `joint` the joint term's part of it, `shift` how far the
    mean may be off, `noise` that of one trial.
    """

    spread: float
    noise: float
    shift: float
    joint: float = 0.4
    length: float = 0.5
    log_sds: tuple[float, float, float, float, float] = (0.5, 0.8, 0.5, 0.4, 0.5)


class _Gaps:
    """What pairs of points share, whatever the hyperparameters: `same` [d, n, m], `gap` [numbers, n, m]."""

    __slots__ = ("gap", "joint", "numbers", "same")

    def __init__(self, a: Points, b: Points) -> None:
        self.same = (a.level.T[:, :, None] == b.level.T[:, None, :]).astype(np.float64)
        self.numbers = a.numbers
        left, right = a.unit.T[self.numbers], b.unit.T[self.numbers]
        self.gap = np.abs(left[:, :, None] - right[:, None, :])
        far = (self.gap * self.same[self.numbers] / JOINT_LENGTH) ** 2
        self.joint = np.exp(-0.5 * far.sum(axis=0) - JOINT_OTHER * (1 - self.same).sum(axis=0))

    def knobs(self, length: float) -> tuple[Array, Array]:
        """k [d, n, m] of every knob, and the derivative [numbers, n, m] of the numbers' by log length."""
        k = self.same.copy()
        a = np.sqrt(5.0) * self.gap / length
        decay = np.exp(-a) * k[self.numbers]
        k[self.numbers] = (1 + a + a * a / 3) * decay
        return k, a * a / 3 * (1 + a) * decay


@dataclass(frozen=True, slots=True)
class Hyper:
    """`knobs` [d] variances, one a knob; `joint` and `shift` variances; `length`; `noise` variance."""

    knobs: Array
    joint: float
    length: float
    noise: float
    shift: float

    def cov(self, a: Points, b: Points) -> Array:
        gaps = _Gaps(a, b)
        k, _ = gaps.knobs(self.length)
        return np.tensordot(self.knobs, k, axes=1) + self.joint * gaps.joint + self.shift

    def var(self) -> float:
        return float(self.knobs.sum()) + self.joint + self.shift


@dataclass(frozen=True, slots=True)
class Gp:
    """A process given `x`, `y` [n]. `evidence` is the log density of y and the hyperparameters."""

    x: Points
    hyper: Hyper
    prior: Gp | None
    mean: float
    chol: Array
    alpha: Array
    evidence: float

    def predict(self, at: Points) -> tuple[Array, Array]:
        """Mean and standard deviation [m] of f."""
        mean, var = self._moments(at)
        return mean, np.sqrt(np.maximum(var, 1e-12))

    def _moments(self, at: Points) -> tuple[Array, Array]:
        if self.prior is None:
            mean, var = np.full(len(at), self.mean), np.full(len(at), self.hyper.var())
        else:
            before, var = self.prior._moments(at)
            mean, var = before + self.mean, var + self.hyper.var()
        if not len(self.x):
            return mean, var
        cross = self._before(self.x, at)
        half = _solved(self.chol, cross)
        return mean + cross.T @ self.alpha, var - (half * half).sum(axis=0)

    def cov(self, a: Points, b: Points) -> Array:
        """The posterior covariance [n, m]."""
        before = self._before(a, b)
        if not len(self.x):
            return before
        left, right = (_solved(self.chol, self._before(self.x, points)) for points in (a, b))
        return before - left.T @ right

    def _before(self, a: Points, b: Points) -> Array:
        own = self.hyper.cov(a, b)
        return own if self.prior is None else own + self.prior.cov(a, b)


def fitted(x: Points, y: Array, extra: Array, scales: Scales, prior: Gp | None = None, mean: float | None = None) -> Gp:
    """`extra` [n] is noise variance of single trials beyond the common one. Without `mean` the data's own is taken."""
    n, d = x.unit.shape
    before = prior.predict(x)[0] if prior is not None and n else np.zeros(n)
    if mean is None:
        weight = 1 / (extra + scales.spread**2)
        mean = float(np.average(y - before, weights=weight)) if n else 0.0
    residual = y - before - mean
    known = prior.cov(x, x) if prior is not None and n else np.zeros((n, n))
    gaps = _Gaps(x, x)
    weights = np.where(np.isin(np.arange(d), x.numbers), NUMBERS_WEIGHT, 1.0)
    centre = np.log([scales.spread, *(weights / np.sqrt(max(d, 1))), scales.joint, scales.length, scales.noise])
    wide = scales.log_sds
    sds = np.array([wide[0], *[wide[1]] * d, *wide[2:]])

    def hyper(theta: Array) -> Hyper:
        knobs = np.exp(2 * (theta[0] + theta[1 : d + 1]))
        joint = float(np.exp(2 * (theta[0] + theta[d + 1])))
        return Hyper(knobs, joint, float(np.exp(theta[d + 2])), float(np.exp(2 * theta[d + 3])), scales.shift**2)

    def terms(theta: Array) -> tuple[Hyper, Array, Array, Array, Array]:
        h = hyper(theta)
        k, by_length = gaps.knobs(h.length)
        total = known + np.tensordot(h.knobs, k, axes=1) + h.joint * gaps.joint + h.shift
        chol = cholesky(total + np.diag(extra + h.noise + JITTER * (h.var() + 1)), lower=True)
        alpha = _solved(chol, _solved(chol, residual), transposed=True)
        return h, chol, alpha, k, by_length

    def loss(off: Array) -> tuple[float, Array]:
        """Minus the log posterior and its gradient; `off` in standard deviations from the priors' medians."""
        h, chol, alpha, k, by_length = terms(centre + off * sds)
        half = _solved(chol, np.eye(n))
        pull = half.T @ half - np.outer(alpha, alpha)  # the gradient by an entry of K, twice
        by_knob = h.knobs * np.einsum("ij,dij->d", pull, k)
        by_joint = h.joint * float((pull * gaps.joint).sum())
        length = 0.5 * float(h.knobs[gaps.numbers] @ np.einsum("ij,dij->d", pull, by_length))
        noise = h.noise * float(np.trace(pull))
        gradient = np.array([by_knob.sum() + by_joint, *by_knob, by_joint, length, noise]) * sds + off
        return _minus_log_density(chol, alpha, residual) + 0.5 * float(off @ off), gradient

    if not n:
        return Gp(x, hyper(centre), prior, mean, np.zeros((0, 0)), np.zeros(0), 0.0)
    found = minimize(
        loss,
        np.zeros(len(centre)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-FARTHEST, FARTHEST)] * len(centre),
        options={"maxiter": ITERATIONS, "ftol": 1e-4},
    )
    h, chol, alpha, *_ = terms(centre + np.asarray(found.x) * sds)
    return Gp(x, h, prior, mean, chol, alpha, -float(found.fun))


def _solved(chol: Array, right: Array, *, transposed: bool = False) -> Array:
    return solve_triangular(chol, right, lower=True, trans=1 if transposed else 0, check_finite=False)


def _minus_log_density(chol: Array, alpha: Array, residual: Array) -> float:
    fit = 0.5 * float(residual @ alpha)
    return fit + float(np.log(np.diag(chol)).sum()) + 0.5 * len(residual) * float(np.log(2 * np.pi))
