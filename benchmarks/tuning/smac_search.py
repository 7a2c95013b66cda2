"""SMAC3's random-forest optimisation, rebuilt from the log at every proposal.

A cost is the rate that is kept, negative. A config that was dropped is told half the rate it failed at, and what did
not run, or kept nothing, costs 0: more than anything that ran.
"""

# pyright: reportMissingImports=false
# (smac is installed by hand, see run.py)

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sloguard.errors import MissingExtra
from sloguard.optim.base import Problem, place, taught
from sloguard.optim.fresh import first_fresh
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.space import Space
from sloguard.trial import Config, Trial

UNIFORM_FIRST = 5  # trials before the forest is asked
ASKED = 8  # times, until something new is proposed


@dataclass(frozen=True, slots=True)
class SmacSearch:
    problem: Problem

    def __post_init__(self) -> None:
        if importlib.util.find_spec("smac") is None:
            raise MissingExtra("SMAC3", "smac")

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        known = [t for t in taught(history) if self.problem.space.contains(place(t, self.problem.space))]
        if len(known) < UNIFORM_FIRST:
            return first_fresh(self.problem, history, rng, ())
        seed = int(rng.integers(2**31))
        with TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws = _draws(known, self.problem, seed, Path(directory))
            return first_fresh(self.problem, history, rng, draws)


def _draws(known: Sequence[Trial], problem: Problem, seed: int, directory: Path) -> Iterator[Config]:
    from ConfigSpace import Configuration
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory import TrialInfo, TrialValue

    there = space_of_smac(problem.space, seed)
    scenario = Scenario(
        there, output_directory=directory, deterministic=True, n_trials=len(known) + ASKED + 1, seed=seed
    )
    facade = HyperparameterOptimizationFacade(
        scenario,
        _never,
        initial_design=HyperparameterOptimizationFacade.get_initial_design(
            scenario,
            n_configs=0,
            additional_configs=[Configuration(there, values=_there(place(known[0], problem.space), problem.space))],
        ),
        config_selector=HyperparameterOptimizationFacade.get_config_selector(scenario, retrain_after=1),
        logging_level=logging.ERROR,
        overwrite=True,
    )
    for trial in known:
        values = _there(place(trial, problem.space), problem.space)
        facade.tell(TrialInfo(Configuration(there, values=values), seed=0), TrialValue(cost=_cost(trial, problem)))
    for _ in range(ASKED):
        asked = facade.ask()
        yield _back(dict(asked.config), problem.space)
        facade.tell(asked, TrialValue(cost=0.0))  # only where what came of it was tried before


def _cost(trial: Trial, problem: Problem) -> float:
    score = problem.goal.score(trial)
    if score is not None:
        return -score
    return -0.5 * trial.capacity.high if trial.capacity and trial.capacity.dropped else 0.0


def _never(config: Any, seed: int = 0) -> float:
    raise AssertionError("trials are run by the study")


def space_of_smac(space: Space, seed: int) -> Any:
    from ConfigSpace import ConfigurationSpace, EqualsCondition

    there = ConfigurationSpace(seed=seed)
    for knob in space.knobs:
        there.add(_hyperparameter(knob))
    for knob in space.knobs:
        if knob.when is not None:
            parent, value = knob.when
            position = space.knob(parent).index(value)  # pyright: ignore[reportAttributeAccessIssue] - it is a choice
            there.add(EqualsCondition(there[knob.name], there[parent], position))
    return there


def _hyperparameter(knob: Knob) -> Any:
    from ConfigSpace import CategoricalHyperparameter, UniformFloatHyperparameter, UniformIntegerHyperparameter

    match knob:
        case Int():
            return UniformIntegerHyperparameter(knob.name, knob.low, knob.high, log=knob.log)
        case Float():
            return UniformFloatHyperparameter(knob.name, knob.low, knob.high, log=knob.log)
        case Categorical():
            return CategoricalHyperparameter(knob.name, list(range(len(knob.choices))))


def _there(config: Config, space: Space) -> dict[str, Any]:
    """Choices by their position."""
    knobs = {name: space.knob(name) for name in config}
    return {n: knob.index(config[n]) if isinstance(knob, Categorical) else config[n] for n, knob in knobs.items()}


def _back(values: dict[str, Any], space: Space) -> Config:
    knobs = {name: space.knob(name) for name in values}
    return space.activate(
        {
            name: knob.choices[int(values[name])]
            if isinstance(knob, Categorical)
            else (int(values[name]) if isinstance(knob, Int) else float(values[name]))
            for name, knob in knobs.items()
        }
    )
