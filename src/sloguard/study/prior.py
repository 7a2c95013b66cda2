"""What is known before the first trial: a simulation of the same task, or studies of other GPUs, models or versions.

What they say may be wrong, and the optimizer finds out how wrong; here they are only read, or made. A simulation is a
study of its own, in the directory `prior` of the real one: it is written down, so it is made once, and a study that is
resumed has the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sloguard.engine.base import Facts
from sloguard.errors import SpecError
from sloguard.optim import OPTIMIZERS
from sloguard.optim.base import Earlier, Optimizer, Problem
from sloguard.registry import load
from sloguard.sim.settings import KNOBS
from sloguard.space.space import Space
from sloguard.study.asking import CapacitySearch
from sloguard.study.build import build_study
from sloguard.study.log import StudyLog
from sloguard.study.runner import Study, run_study
from sloguard.study.spec import StudySpec
from sloguard.trial import Config, Trial

SIMULATION, NONE = "sim", "none"
DRAWN, SOUGHT = 120, 40  # trials: all over the space, then where it is good
COARSE = 0.1  # tolerance of a simulated capacity: finer is beyond what a simulation knows
COUNT, LEG_S, TURNOVERS = 64, 10.0, 1.0  # requests of a simulated load, more where it would be shorter

OnTrial = Callable[[int, int], None]


def earlier_trials(spec: StudySpec, study: Study, directory: Path, on_trial: OnTrial) -> tuple[Earlier, ...]:
    """What the priors of `spec` know. `on_trial` is told how many simulated trials of how many are done.

    Raises SpecError for a directory without a study, or one of no knob of this `study`, and where nothing can be
    simulated.
    """

    def trials(name: str) -> list[Trial]:
        if name != SIMULATION:
            return _read(name, study.space)
        return simulated(spec, study.engine.facts(), directory / "prior", on_trial)

    return tuple(Earlier(name, trials(name)) for name in spec.priors)


def can_simulate(spec: StudySpec, facts: Facts) -> bool:
    """Whether what runs there, its GPU, its model and the knobs are such that a simulation can be had."""
    try:
        _simulation(_asked_of_simulation(spec, facts))
    except SpecError:
        return False
    return True


def _read(name: str, space: Space) -> list[Trial]:
    log = StudyLog(Path(name))
    if not log.exists():
        raise SpecError("--prior", name, "holds no study", "Name the --out of an earlier study, or sim.")
    trials = log.trials()
    if not any(set(trial.config) & set(space.names) for trial in trials):
        raise SpecError("--prior", name, "its trials have none of the knobs that are tuned", "Drop it.")
    return trials


@dataclass(frozen=True, slots=True)
class _DrawnThenSought:
    problem: Problem
    drawn: int

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        tried = len({trial.number for trial in history})  # what the guard turned down has that of a trial
        way = "random" if tried < self.drawn else "tpe"
        optimizer: Optimizer = load(OPTIMIZERS, way, "--optimizer", "propose")(self.problem)
        return optimizer.propose(history, rng)


def rehearsal(study: Study) -> Study:
    """`study`, whose engine is simulated, to be learnt from: the default, if it tries that, DRAWN configs all over the
    space, and from then on, for about SOUGHT trials, what is good. It is asked coarsely, and measures nothing again.
    Nothing is dropped, for that tells little, and a simulated trial costs nothing.
    """
    question, drawn = study.question, DRAWN + study.try_default
    if isinstance(question, CapacitySearch):
        question = replace(
            question, count=min(COUNT, question.count), tolerance=COARSE, leg_s=LEG_S, turnovers=TURNOVERS
        )
    problem = Problem(study.space, study.goal, drawn + SOUGHT, lambda config: study.repair(config).config)
    optimizer = _DrawnThenSought(problem, drawn)
    return replace(study, optimizer=optimizer, question=question, race=False, rechecks=0, budget_s=None)


def simulated(spec: StudySpec, facts: Facts, directory: Path, on_trial: OnTrial) -> list[Trial]:
    """The trials of a simulated study of what `spec` asks on such an engine; those of it that `directory` holds are not
    made again.

    Raises SpecError, LogError.
    """
    log, budget = StudyLog(directory), DRAWN + SOUGHT
    asked = _asked_of_simulation(spec, facts)
    simulation = _simulation(asked)
    with log.writer():
        if not log.exists() or asked.differs_from(log.header()["spec"]):  # of a start that ended before its first trial
            log.clear()
            log.append_header({"spec": asked.to_json(), "engine": simulation.engine.describe()})
        for trial in run_study(simulation, log, budget):
            on_trial(trial.number, budget)
        return log.trials()


def _asked_of_simulation(spec: StudySpec, facts: Facts) -> StudySpec:
    if facts.gpu is None:
        raise SpecError("--prior", SIMULATION, "there is no GPU that could be simulated", "Drop it.")
    return replace(
        spec,
        engine="sim",
        gpu=facts.gpu.name,
        engine_python=None,
        engine_args={name: value for name, value in spec.engine_args.items() if name in KNOBS},
        optimizer="random",
        priors=(),
    )


def _simulation(asked: StudySpec) -> Study:
    try:
        return rehearsal(build_study(asked))
    except SpecError as error:
        why = f"this can't be simulated: {error.field} = {error.value!r}: {error.problem}"
        raise SpecError("--prior", SIMULATION, why, "Drop it.") from error
