"""Optuna's tree-structured Parzen estimator, rebuilt from the log at every proposal.

What Optuna 5.0 makes of a log, and what follows for us:
- samplers ignore failed trials, so a crash is told as a completed trial with a violated constraint;
- infeasible trials are ranked by the plain sum of their positive constraints, so constraints are dimensionless and
  those of a measured trial are scaled to sum to less than a crash's;
- the joint (multivariate) model covers the knobs that all trials have; conditional ones are drawn one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sloguard.optim.base import CRASH_VIOLATION, Goal, Problem, constraints, place, taught, violation
from sloguard.optim.forest import CRASH_CHANCE, Forest, crash_forest
from sloguard.optim.fresh import first_fresh
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.space import Space, is_active
from sloguard.trial import Config, Measured, Trial, Value

DRAWS = 16  # Optuna is asked so often for something new before uniform draws take over
COLD_START_TRIALS = 10  # Optuna's own default: so many random trials before the model is used


@dataclass(frozen=True, slots=True)
class Tpe:
    """TPE over the whole log; with fewer than `random_first` trials to learn from it draws at random.

    With `wary`, of several draws the first is taken that a forest, once it can be trusted, thinks will not crash:
    the model itself keeps drawing beyond the edge of a crash region when the best trials lie along it.
    """

    problem: Problem
    random_first: int = COLD_START_TRIALS
    wary: bool = False

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        with quiet():
            study = _study(self.problem, history, self.random_first, int(rng.integers(2**32)))
            draws = (ask(study, self.problem.space) for _ in range(DRAWS))
            forest = crash_forest(taught(history), self.problem.space, rng) if self.wary else None
            return first_fresh(self.problem, history, rng, draws if forest is None else self._safest(draws, forest))

    def _safest(self, draws: Iterable[Config], forest: Forest) -> Iterator[Config]:
        """The draws in order, but those likely to crash last, the likeliest at the end."""
        risky: list[tuple[float, Config]] = []
        for config in draws:
            chance = float(forest.guess([self.problem.repair(config)])[0])
            if chance <= CRASH_CHANCE:
                yield config
            else:
                risky.append((chance, config))
        yield from (config for _, config in sorted(risky, key=lambda pair: pair[0]))


def _study(problem: Problem, history: Sequence[Trial], random_first: int, seed: int) -> optuna.Study:
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random_first, constant_liar=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in taught(history):
        if _placed(trial, problem.space):
            study.add_trial(_told(trial, problem.space, problem.goal))
    return study


def _placed(trial: Trial, space: Space) -> bool:
    """A trial whose place is only partly known would take its missing knobs out of the joint model."""
    return space.contains(place(trial, space))


def _told(trial: Trial, space: Space, goal: Goal) -> optuna.trial.FrozenTrial:
    config = place(trial, space)
    score = goal.score(trial)
    return optuna.trial.create_trial(
        params={name: to_optuna(space.knob(name), value) for name, value in config.items()},
        distributions={name: distribution(space.knob(name)) for name in config},
        value=0.0 if score is None else score,  # read of feasible trials only, and those have a score
        constraints=told_constraints(trial),
    )


def told_constraints(trial: Trial) -> dict[str, float]:
    """Named and dimensionless; > 0 is violated. The positive ones sum to `violation(trial)`."""
    if not isinstance(trial.outcome, Measured):
        return {"runs": CRASH_VIOLATION}
    values = constraints(trial)
    total = sum(max(0.0, value) for value in values)
    scale = violation(trial) / total if total > 0 else 1.0
    verdict = trial.outcome.verdict
    names = [*(str(check.limit) for check in verdict.checks), *(["attained"] if verdict.attained else []), "serves"]
    return {name: value * scale for name, value in zip(names, values, strict=True)}


def ask(study: optuna.Study, space: Space) -> Config:
    """A config of `space`, as the study's sampler has it."""
    asked = study.ask()
    values: dict[str, Value] = {}
    for knob in space.knobs:
        if is_active(knob, values):
            values[knob.name] = _suggest(asked, knob)
    return space.activate(values)


def _suggest(asked: optuna.Trial, knob: Knob) -> Value:
    match knob:
        case Int():
            return asked.suggest_int(knob.name, knob.low, knob.high, log=knob.log)
        case Float():
            return asked.suggest_float(knob.name, knob.low, knob.high, log=knob.log)
        case Categorical():
            return knob.choices[asked.suggest_categorical(knob.name, range(len(knob.choices)))]


def distribution(knob: Knob) -> BaseDistribution:
    """A knob in Optuna's words."""
    match knob:
        case Int():
            return IntDistribution(knob.low, knob.high, log=knob.log)
        case Float():
            return FloatDistribution(knob.low, knob.high, log=knob.log)
        case Categorical():  # by position: Optuna takes 1 and True for the same choice
            return CategoricalDistribution(range(len(knob.choices)))


def to_optuna(knob: Knob, value: Value) -> Value:
    """A value of `distribution(knob)`."""
    return knob.index(value) if isinstance(knob, Categorical) else value


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna announces each study it makes; its own verbosity is put back afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
