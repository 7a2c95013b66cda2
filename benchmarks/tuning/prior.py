"""What a simulated study says of a task before the first trial.

The tuner's own simulator is the undistorted engine: it knows neither what others hold of the GPU nor how the truth
differs from its step times. It is asked as coarsely as `--prior sim` does (study/prior.py), once a task for all seeds,
under arrivals of its own. Its trials are kept in OUT/priors/TASK.jsonl.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from loop import study_of
from tasks import Task
from truth import fingerprint
from ways import WAYS

from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.optim.base import Earlier, Exhausted, Problem
from sloguard.optim.random import RandomSearch
from sloguard.optim.tpe import Tpe
from sloguard.perf.gpus import gpu_named
from sloguard.report.files import write_text_atomic
from sloguard.study.asking import CapacitySearch
from sloguard.study.prior import COARSE, COUNT, DRAWN, LEG_S, SOUGHT, TURNOVERS
from sloguard.study.runner import Study, attempt, propose
from sloguard.trial import Trial

NAME = "simulation"
SEED = 1_234_567  # arrivals that no study is offered


def rehearse(study: Study, uniform: int = DRAWN, sought: int = SOUGHT) -> list[Trial]:
    """The trials of `study`, whose engine is simulated: the default, `uniform` random ones, then `sought` by TPE.

    None of them races, for a config that was dropped says little; the study's own optimizer is not asked.
    """
    budget = 1 + uniform + sought
    problem = Problem(study.space, study.goal, budget, lambda config: study.repair(config).config)
    scout = replace(study, optimizer=RandomSearch(problem), try_default=True, race=False, retry_wait_s=0.0)
    seeker = replace(scout, optimizer=Tpe(problem))
    trials: list[Trial] = []
    with TemporaryDirectory() as directory:
        for number in range(1, budget + 1):
            try:
                made = propose(scout if number <= 1 + uniform else seeker, trials, number)
            except Exhausted:
                break
            trials.append(attempt(study, made, number, Path(directory) / "trial"))
    return trials


def earlier_of(out: Path, task: Task) -> Earlier:
    """The rehearsal of `task`, made once."""
    path = out / "priors" / f"{task.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines or json.loads(lines[0])["world"] != fingerprint(task):
            study = study_of(task, _simulator(task), WAYS["random+default"], SEED)
            question = CapacitySearch(task.requests, task.contract, SEED, task.near, COUNT, COARSE, LEG_S, TURNOVERS)
            trials = rehearse(replace(study, question=question))
            lines = [json.dumps({"world": fingerprint(task)}), *(json.dumps(trial.to_json()) for trial in trials)]
            write_text_atomic(path, "".join(f"{line}\n" for line in lines))
    return Earlier(NAME, tuple(Trial.from_json(json.loads(line)) for line in lines[1:]))


def _simulator(task: Task) -> SimulatedEngine:
    return SimulatedEngine(find_model_shape(task.model), gpu_named(task.gpu), fixed=task.fixed, noise=0.0)
