"""What the trials of a study say of its knobs, under the Gaussian process that the guided search believes in.

    effect       of a knob at v: the mean score over the tried configs, were the knob v in each of them, all else kept
                 (partial dependence: Friedman, The Annals of Statistics 29, 2001, section 8.2)
    interval     95 % of that mean under the posterior, covariances included
    pair         the same for two knobs at once, and what is left of it once what each does alone is taken out

A log does not record the space, so a knob reaches as far as it was tried, and one that never changed is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sloguard.optim.base import Goal, place, taught
from sloguard.optim.gp import Array, Gp, Points
from sloguard.optim.guided import SCORE
from sloguard.optim.lessons import score_at, values
from sloguard.optim.sources import learnt
from sloguard.space.knobs import Categorical, Float, Int, Knob, same
from sloguard.space.space import Space
from sloguard.trial import Config, Trial, Value

LEAST_MEASURED = 4  # trials with a score; fewer say nothing of a slope
LEAST_CHOICES = 5  # numbers of fewer values are choices: nobody knows what lies between
LOG_RATIO = 8.0  # a knob tried over so large a factor is seen in factors
GRID, PAIR_GRID = 17, 12  # values of a number
MOST_CONFIGS = 60  # averaged over
Z = 1.96


@dataclass(frozen=True, slots=True)
class Effect:
    """`mean`, `low` and `high` are scores at `values`. `strength` is the standard deviation of the mean over them, in
    log score; `clear` whether the best and the worst of them differ beyond the interval of their difference.
    """

    knob: Knob
    values: tuple[Value, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    strength: float
    clear: bool

    @property
    def best(self) -> Value:
        return self.values[int(np.argmax(self.mean))]


@dataclass(frozen=True, slots=True)
class Pair:
    """`mean[i][j]` is the score at the i-th of `values[0]` and the j-th of `values[1]`; `interaction` the standard
    deviation of what the two do beyond what each does alone, in log score.
    """

    knobs: tuple[Knob, Knob]
    values: tuple[tuple[Value, ...], tuple[Value, ...]]
    mean: tuple[tuple[float, ...], ...]
    interaction: float


@dataclass(frozen=True, slots=True)
class Effects:
    """`knobs` from the strongest to the weakest; `pair` of the first two; `lessons` are trials that taught a score."""

    space: Space
    knobs: tuple[Effect, ...]
    pair: Pair | None
    lessons: int


def tried_space(configs: Sequence[Config]) -> Space:
    """The knobs that have more than one value, as far as they were tried. Without conditions: a knob that a config does
    not have is missing in it.
    """
    names = sorted({name for config in configs for name in config})
    knobs = (_knob(name, [config[name] for config in configs if name in config]) for name in names)
    return Space(tuple(knob for knob in knobs if knob is not None))


def _knob(name: str, found: Sequence[Value]) -> Knob | None:
    different: list[Value] = []
    for value in found:
        if not any(same(value, other) for other in different):
            different.append(value)
    numbers = [v for v in different if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(different) < 2:
        return None
    if len(numbers) < max(len(different), LEAST_CHOICES):
        return Categorical(name, tuple(sorted(different, key=_order)))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= LOG_RATIO
    if all(isinstance(v, int) for v in numbers):
        return Int(name, int(low), int(high), log)
    return Float(name, float(low), float(high), log)


def _order(value: Value) -> tuple[bool, float, str]:
    """Numbers first, as they rise; then all else by its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value), ""
    return True, 0.0, str(value)


def effects(trials: Sequence[Trial], goal: Goal) -> Effects | None:
    """Of trials that met the same arrivals. None where too few trials have a score, or no knob was changed."""
    known = taught(trials)
    space = tried_space([trial.config for trial in known])
    at = [place(trial, space) for trial in known]
    lessons = values(known, goal)
    measured = sum(goal.score(trial) is not None for trial in known)
    process = learnt(at, lessons, SCORE, space) if space.knobs and measured >= LEAST_MEASURED else None
    if process is None:
        return None
    top = max(lesson.y for lesson in lessons)
    spread = np.linspace(0, len(at) - 1, min(len(at), MOST_CONFIGS)).astype(int)
    believed = _Believed(process, space, goal, top, [at[i] for i in spread])
    found = sorted((believed.effect(knob) for knob in space.knobs), key=lambda one: (-one.strength, one.knob.name))
    pair = believed.pair(found[0].knob, found[1].knob) if len(found) > 1 else None
    return Effects(space, tuple(found), pair, len(lessons))


@dataclass(frozen=True, slots=True)
class _Believed:
    process: Gp
    space: Space
    goal: Goal
    top: float
    configs: Sequence[Config]

    def _points(self, changes: dict[str, Value]) -> Points:
        having = [config for config in self.configs if changes.keys() <= config.keys()]
        return Points.of([config.replace(**changes) for config in having or self.configs], self.space)

    def _score(self, y: float) -> float:
        return score_at(y, self.top, self.goal)

    def effect(self, knob: Knob) -> Effect:
        shown = _shown(knob, GRID)
        points = [self._points({knob.name: value}) for value in shown]
        mean = [float(self.process.predict(p)[0].mean()) for p in points]
        sd = [float(np.sqrt(max(self.process.cov(p, p).mean(), 0.0))) for p in points]
        best, worst = points[int(np.argmax(mean))], points[int(np.argmin(mean))]
        own = self.process.cov(best, best).mean() + self.process.cov(worst, worst).mean()
        off = float(np.sqrt(max(own - 2 * self.process.cov(best, worst).mean(), 0.0)))
        return Effect(
            knob=knob,
            values=shown,
            mean=tuple(map(self._score, mean)),
            low=tuple(self._score(m - Z * s) for m, s in zip(mean, sd, strict=True)),
            high=tuple(self._score(m + Z * s) for m, s in zip(mean, sd, strict=True)),
            strength=float(np.std(mean)),
            clear=max(mean) - min(mean) > Z * off,
        )

    def pair(self, first: Knob, second: Knob) -> Pair:
        rows, columns = _shown(first, PAIR_GRID), _shown(second, PAIR_GRID)
        mean: Array = np.array(
            [
                [self.process.predict(self._points({first.name: a, second.name: b}))[0].mean() for b in columns]
                for a in rows
            ]
        )
        alone = mean.mean(axis=1, keepdims=True) + mean.mean(axis=0, keepdims=True) - mean.mean()
        scores = tuple(tuple(self._score(float(y)) for y in row) for row in mean)
        return Pair((first, second), (rows, columns), scores, float(np.std(mean - alone)))


def _shown(knob: Knob, count: int) -> tuple[Value, ...]:
    """All choices, or numbers evenly spaced from the least to the largest."""
    if isinstance(knob, Categorical):
        return knob.choices
    return tuple(dict.fromkeys(knob.decode(float(unit)) for unit in np.linspace(0, 1, count)))
