"""What earlier studies say of a question, and how far to believe them.

For each question (the score, does it start, ...) there is one hypothesis a source, that the truth is the source's
process plus a shift plus something small, and one that no source is right. They are averaged by how well each foretold
the trials of this study (Bayesian model averaging): a source that misleads is dropped after the trials that show it.
How high the values lie counts as well, once: where a source led to nothing but bad configs, their order says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sloguard.optim.gp import Array, Gp, Points, Scales, fitted
from sloguard.optim.lessons import Lesson
from sloguard.space.space import Space
from sloguard.trial import Config

TRUST = 0.6  # that some source is right, before any trial
MOST_POINTS = 150  # of a source
RESIDUAL = 0.3  # what a right source leaves unexplained, as a share of the spread


@dataclass(frozen=True, slots=True)
class Question:
    """`level` is how far a right source may be off everywhere (a standard deviation), `prior` the mean where nothing
    is known; None: the data's own.
    """

    scales: Scales
    level: float = 1.0
    prior: float | None = None

    @property
    def beside_source(self) -> Scales:
        return replace(self.scales, spread=RESIDUAL * self.scales.spread, shift=self.level)


@dataclass(frozen=True, slots=True)
class Belief:
    """Weighted processes. `weights` [h] sum to one."""

    weights: Array
    processes: tuple[Gp, ...]

    def predict(self, at: Points) -> tuple[Array, Array]:
        """Means and standard deviations [h, m], one row a hypothesis."""
        rows = [process.predict(at) for process in self.processes]
        return np.array([mean for mean, _ in rows]), np.array([sd for _, sd in rows])


def learnt(at: Sequence[Config], lessons: Sequence[Lesson], question: Question, space: Space) -> Gp | None:
    """A process over a source's own trials; None where they say nothing."""
    if not lessons:
        return None
    chosen = sorted(lessons, key=lambda lesson: -lesson.y)
    if len(chosen) > MOST_POINTS:  # the better half of the points in full, the others spread over the rest
        top = MOST_POINTS // 2
        rest = np.linspace(top, len(chosen) - 1, MOST_POINTS - top).astype(int)
        chosen = [*chosen[:top], *(chosen[i] for i in rest)]
    return _process(at, chosen, question.scales, space, None, question.prior)


def belief(
    at: Sequence[Config], lessons: Sequence[Lesson], question: Question, space: Space, sources: Sequence[Gp]
) -> Belief:
    """`at` is where the trials lie that taught the lessons."""
    scales = question.scales
    if sources and question.prior is None:  # its mean is fitted: with a level as sure as usual it would beat them all
        scales = replace(scales, shift=question.level)
    alone = _process(at, lessons, scales, space, None, question.prior)
    beside = [_process(at, lessons, question.beside_source, space, source, 0.0) for source in sources]
    prior = [1 - TRUST, *[TRUST / len(sources)] * len(sources)] if sources else [1.0]
    processes = (alone, *beside)
    log_weights = np.log(prior) + np.array([p.evidence for p in processes])
    weights = np.exp(log_weights - log_weights.max())
    return Belief(weights / weights.sum(), processes)


def _process(
    at: Sequence[Config],
    lessons: Sequence[Lesson],
    scales: Scales,
    space: Space,
    prior: Gp | None,
    mean: float | None,
) -> Gp:
    x = Points.of([at[lesson.trial] for lesson in lessons], space)
    y = np.array([lesson.y for lesson in lessons])
    return fitted(x, y, np.array([lesson.extra for lesson in lessons]), scales, prior, mean)
