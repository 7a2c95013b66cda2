"""What trials teach a model: one number and its noise for each trial that says something of the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sloguard.optim.base import MISS_CAP, Goal, constraints
from sloguard.trial import Capacity, Crashed, Measured, Refused, Trial

FLOOR = math.log(50.0)  # a score below the best by more than this factor is no further lesson
LOSS_PER_MISS = 0.35  # log capacity per log miss: tails grow faster than the rate does
LEAST_LOSS, MOST_LOSS = 0.1, 1.5  # log capacity that a config is below a rate which it failed at
DEPTH = 1.0  # log score: nothing counts for worse than so far below the best
RAN, FAILED = 1.0, -1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """`trial` is an index into the trials, `y` what it says and `extra` the variance of that beyond common noise."""

    trial: int
    y: float
    extra: float = 0.0


def values(trials: Sequence[Trial], goal: Goal) -> list[Lesson]:
    """Log scores; minus the log of minus the score where it is a cost. A config that failed at a rate lies below it.

    How far one lies below the best counts for less the farther it is: where promises break there are cliffs, and what a
    process has to explain of them it can't tell of the hills. As long as all scores are 0 they say nothing of a level.
    """
    scores = [goal.score(trial) for trial in trials]
    known = [s for s in scores if s is not None and s != 0]
    floor = max(known, default=1.0) * math.exp(-FLOOR)
    lessons: list[Lesson] = []
    for index, (trial, score) in enumerate(zip(trials, scores, strict=True)):
        failed = _failed_at(trial.capacity) if goal.objective == "capacity" and trial.capacity else None
        if failed is not None:
            lessons.append(Lesson(index, *failed))
        elif score is not None and known:
            lessons.append(Lesson(index, math.log(max(score, floor)) if score >= 0 else -math.log(-score)))
    top = max((lesson.y for lesson in lessons), default=0.0)
    return [_flattened(lesson, top) for lesson in lessons]


def _flattened(lesson: Lesson, top: float) -> Lesson:
    slope = math.exp((lesson.y - top) / DEPTH)
    return replace(lesson, y=top - DEPTH * (1 - slope), extra=lesson.extra * slope**2)


def score_at(y: float, top: float, goal: Goal) -> float:
    """The score that `values` tells as `y`, `top` being the largest of its lessons: its inverse, but for the floor."""
    log_score = top + DEPTH * math.log(max(1 - (top - y) / DEPTH, math.exp(-FLOOR)))
    return -math.exp(-log_score) if goal.told.minimised else math.exp(log_score)


def starts(trials: Sequence[Trial]) -> list[Lesson]:
    return [Lesson(i, FAILED if _fails(t, "startup") else RAN) for i, t in enumerate(trials)]


def survives(trials: Sequence[Trial]) -> list[Lesson]:
    """Of those that started."""
    return [Lesson(i, FAILED if _fails(t, "load") else RAN) for i, t in enumerate(trials) if not _fails(t, "startup")]


def misses(trials: Sequence[Trial], which: int) -> list[Lesson]:
    """log(measured / limit) of one SLO, capped; <= 0 is met."""
    rows = [(i, constraints(t)[:-1]) for i, t in enumerate(trials) if isinstance(t.outcome, Measured)]
    return [Lesson(i, max(row[which], -MISS_CAP)) for i, row in rows if which < len(row)]


def costs(trials: Sequence[Trial]) -> list[Lesson]:
    """Log seconds of whole trials: one that was dropped would have taken longer, had it been good."""
    whole = [(i, t) for i, t in enumerate(trials) if isinstance(t.outcome, Measured) and not _dropped(t)]
    return [Lesson(i, math.log(t.cost_s)) for i, t in whole if t.cost_s > 0]


def _dropped(trial: Trial) -> bool:
    return trial.capacity is not None and trial.capacity.dropped


def _failed_at(capacity: Capacity) -> tuple[float, float] | None:
    """(log capacity, variance) guessed from the lowest rate that failed; None where the capacity is known."""
    failed = [leg for leg in capacity.legs if not leg.passed]
    if not failed or (capacity.low > 0 and not capacity.dropped):
        return None
    leg = min(failed, key=lambda leg: leg.rate)
    loss = min(LEAST_LOSS + LOSS_PER_MISS * max(leg.excess, 0.0), MOST_LOSS)
    if capacity.low > 0:
        loss = min(loss, math.log(leg.rate / capacity.low))
    return math.log(leg.rate) - loss, (0.05 + 0.5 * loss) ** 2


def _fails(trial: Trial, phase: str) -> bool:
    match trial.outcome:
        case Crashed(crash):
            return crash.phase == phase
        case Refused():
            return phase == "startup"
        case Measured():
            return phase == "load" and not trial.outcome.verdict.completed
