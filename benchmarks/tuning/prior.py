"""Earlier studies that a way is told of before the first trial.

sim        the task as the tuner's own simulator sees it: the undistorted engine, that knows neither what others hold
           of the GPU nor how the truth differs from its step times. Rehearsed as for `--prior sim`, under arrivals of
           its own, once a task for all seeds, and kept in OUT/priors/TASK.jsonl
other      the same of another task: the next in the table, so other GPU, model, requests and promises
mirrored   the same of the task, upside down: its best config is told as the worst, and the worst as the best
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from loop import study_of, trials_of
from tasks import TASKS, Task
from truth import fingerprint
from ways import WAYS

from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.optim.base import Earlier
from sloguard.perf.gpus import gpu_named
from sloguard.report.files import write_text_atomic
from sloguard.study.prior import DRAWN, SOUGHT, rehearsal
from sloguard.trial import Measured, Trial

SEED = 1_234_567  # arrivals that no study is offered
TRIALS = 1 + DRAWN + SOUGHT  # the default is the first


def simulation(out: Path, task: Task) -> Earlier:
    """The rehearsal of `task`, made once."""
    path = out / "priors" / f"{task.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines or json.loads(lines[0])["world"] != fingerprint(task):
            study = rehearsal(study_of(task, _simulator(task), WAYS["random+default"], SEED))
            trials = (trial for trial, *_ in trials_of(study, TRIALS))
            lines = [json.dumps({"world": fingerprint(task)}), *(json.dumps(trial.to_json()) for trial in trials)]
            write_text_atomic(path, "".join(f"{line}\n" for line in lines))
    return Earlier("simulation", tuple(Trial.from_json(json.loads(line)) for line in lines[1:]))


def of_another(out: Path, task: Task) -> Earlier:
    names = list(TASKS)
    return simulation(out, TASKS[names[(names.index(task.name) + 1) % len(names)]])


def mirrored(out: Path, task: Task) -> Earlier:
    told = simulation(out, task)
    lows = [trial.capacity.low for trial in told.trials if trial.capacity and trial.capacity.low]
    return Earlier("mirrored", tuple(_turned(trial, min(lows) * max(lows)) for trial in told.trials))


def _turned(trial: Trial, product: float) -> Trial:
    """The rate that it keeps, and all that were tried, scaled so that old and new rate have this product."""
    outcome, found = trial.outcome, trial.capacity
    if not isinstance(outcome, Measured) or found is None or not found.low:
        return trial
    legs = tuple(replace(leg, rate=leg.rate * product / found.low**2) for leg in found.legs)
    return replace(trial, outcome=replace(outcome, capacity=replace(found, legs=legs)))


PRIORS = {"sim": simulation, "other": of_another, "mirrored": mirrored}


def _simulator(task: Task) -> SimulatedEngine:
    return SimulatedEngine(find_model_shape(task.model), gpu_named(task.gpu), fixed=task.fixed, noise=0.0)
