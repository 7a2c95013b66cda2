"""What every optimizer does: propose the next config from the log alone.

Optimizers keep no state. A resumed study therefore equals an uninterrupted one: same log, same seed, same proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Protocol

import numpy as np

from sloguard.optim.objective import OBJECTIVES, Objective
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Measured, Refused, Trial

CRASH_VIOLATION = 10.0  # above any miss: excess() is capped below it
MISS_CAP = 5.0  # log(measured / limit) = 5 is a miss by a factor of 148; beyond that, worse is not more informative


@dataclass(frozen=True, slots=True)
class Goal:
    """What is optimised: `capacity` (largest rate that keeps the contract, maximised), `goodput` (token goodput at a
    given rate, maximised) or `latency` (mean end-to-end latency at a given rate, minimised).
    """

    objective: str = "goodput"

    @property
    def told(self) -> Objective:
        """How scores are told."""
        return OBJECTIVES[self.objective]

    def score(self, trial: Trial) -> float | None:
        """The objective as a number to maximise; None unless the trial was measured and has it. The capacity of a trial
        that was dropped is not known.
        """
        if not isinstance(trial.outcome, Measured):
            return None
        if self.objective == "capacity":
            return trial.capacity.estimate if trial.capacity and trial.capacity.low > 0 else None
        summary = trial.outcome.summary
        if self.objective == "goodput":
            return summary.token_goodput
        return None if summary.e2el_s.mean is None else -summary.e2el_s.mean

    @staticmethod
    def mean(scores: Sequence[float]) -> float:
        """Rates and goodputs compare as ratios, so theirs is geometric; latencies (negative scores) as they are."""
        return geometric_mean(scores) if min(scores) > 0 else fmean(scores)


@dataclass(frozen=True, slots=True)
class Earlier:
    """Trials of another study over much the same knobs: of a simulation, or of another GPU, model or version. What they
    say of this problem may be wrong.
    """

    name: str
    trials: Sequence[Trial]


def taught(history: Sequence[Trial]) -> list[Trial]:
    """The trials an optimizer may learn from: a fault of the environment says nothing about its config."""
    return [t for t in history if not (isinstance(t.outcome, Crashed) and t.outcome.crash.environment)]


def constraints(trial: Trial) -> tuple[float, ...]:
    """Dimensionless, one per SLO then one for the crash; <= 0 is met. A run that did not happen violates all."""
    if isinstance(trial.outcome, Measured):
        verdict = trial.outcome.verdict
        served = 0.0 if verdict.completed else MISS_CAP
        attained = [verdict.attained.excess] if verdict.attained else []
        return (*(min(excess, MISS_CAP) for excess in (*(c.excess for c in verdict.checks), *attained)), served)
    return (CRASH_VIOLATION,)


def violation(trial: Trial) -> float:
    """0 when feasible, else the sum of relative misses; a crash or refusal is worse than any miss."""
    if isinstance(trial.outcome, Crashed | Refused):
        return CRASH_VIOLATION
    return min(sum(max(0.0, c) for c in constraints(trial)), CRASH_VIOLATION - 1.0)


def measurements(trial: Trial, history: Sequence[Trial]) -> list[Trial]:
    """All trials of the same config, in order."""
    return [other for other in history if other.overrides == trial.overrides]


def standing(history: Sequence[Trial], goal: Goal) -> list[tuple[float, Trial]]:
    """The configs that kept the contract whenever they were tried, each by its first trial and with the mean of its
    scores; the highest first, the earliest of equals.
    """
    by_config: dict[Config, list[Trial]] = {}
    for trial in history:
        by_config.setdefault(trial.overrides, []).append(trial)
    found: list[tuple[float, Trial]] = []
    for trials in by_config.values():
        scores = [goal.score(trial) for trial in trials if trial.feasible]
        known = [score for score in scores if score is not None]
        if len(known) == len(trials):
            found.append((goal.mean(known), trials[0]))
    return sorted(found, key=lambda pair: (-pair[0], pair[1].number))


def best(history: Sequence[Trial], goal: Goal) -> Trial | None:
    """The first of `standing`."""
    return next((trial for _, trial in standing(history, goal)), None)


def place(trial: Trial, space: Space) -> Config:
    """Where in `space` a trial lies: its config, completed by what the engine said it ran with, and clipped.

    A config that leaves knobs to the engine (`Config()` is its default) is thereby a point like any other, where the
    engine told; what it didn't tell stays missing.
    """
    return space.activate(_ran(trial, space))


def tried(history: Sequence[Trial], space: Space) -> set[Config]:
    """The configs that need no second try. Faults of the environment are for the runner to retry, so they count."""
    ran = {_ran(trial, space) for trial in history}
    return {trial.config for trial in history} | {
        space.activate(c) for c in ran if space.activate(c).items() <= c.items()
    }


def _ran(trial: Trial, space: Space) -> Config:
    effective = trial.outcome.effective if isinstance(trial.outcome, Measured) else {}
    return Config({**{k: v for k, v in effective.items() if k in space.names}, **trial.config})


class Exhausted(Exception):  # noqa: N818 - the end of a finite space is an answer, not an error
    """No config is left whose repaired form was not tried."""


class Optimizer(Protocol):
    """A function of the log. `history` may hold only crashes, or nothing; its first trial may lie outside the space."""

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        """A config inside the space whose repaired form is not in `history`. Raises `Exhausted` where there is none.

        Deterministic for equal `history` and `rng` state.
        """
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """What an optimizer is built with: the space, the goal, how many trials it will get in all, and how a proposal is
    repaired before it runs (deterministic, idempotent, ends inside the space). Where the budget is `timed`, trials that
    take less of it are worth more.
    """

    space: Space
    goal: Goal
    budget: int
    repair: Callable[[Config], Config]
    earlier: tuple[Earlier, ...] = ()
    timed: bool = False
