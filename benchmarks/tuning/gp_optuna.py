"""Optuna's Gaussian process (GPSampler; needs torch), rebuilt from the log at every proposal.

Its constraints are one process each, so every trial has the same two: whether it ran (+1 where not, else -1) and by how
much its promises were missed. What was not measured is told as the worst that was.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from sloguard.errors import MissingExtra
from sloguard.optim.base import MISS_CAP, Problem, constraints, place, taught
from sloguard.optim.fresh import first_fresh
from sloguard.optim.tpe import COLD_START_TRIALS, DRAWS, ask, distribution, quiet, to_optuna
from sloguard.space.space import Space
from sloguard.trial import Config, Measured, Trial


@dataclass(frozen=True, slots=True)
class GpSearch:
    problem: Problem

    def __post_init__(self) -> None:
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra("Optuna's GPSampler", "bo")

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        space, goal, known = self.problem.space, self.problem.goal, taught(history)
        scores = [s for s in map(goal.score, known) if s is not None]
        floor = min(scores, default=0.0)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the sampler is experimental, and says so
            sampler = optuna.samplers.GPSampler(seed=int(rng.integers(2**32)), n_startup_trials=COLD_START_TRIALS)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for trial in known:
                if space.contains(place(trial, space)):
                    score = goal.score(trial)
                    study.add_trial(_told(trial, space, floor if score is None else score))
            draws = (ask(study, space) for _ in range(DRAWS))
            return first_fresh(self.problem, history, rng, draws)


def _told(trial: Trial, space: Space, value: float) -> optuna.trial.FrozenTrial:
    config, ran = place(trial, space), isinstance(trial.outcome, Measured)
    missed = max(constraints(trial)) if ran else MISS_CAP
    return optuna.trial.create_trial(
        params={name: to_optuna(space.knob(name), setting) for name, setting in config.items()},
        distributions={name: distribution(space.knob(name)) for name in config},
        value=value,
        constraints={"runs": -1.0 if ran else 1.0, "keeps": min(max(missed, -MISS_CAP), MISS_CAP)},
    )
