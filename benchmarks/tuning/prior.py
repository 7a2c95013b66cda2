"""What a simulated study says of a task before the first trial.

The tuner's own simulator is the undistorted engine: it knows neither what others hold of the GPU nor how the truth
differs from its step times. It is rehearsed as for `--prior sim`, once a task for all seeds, under arrivals of
its own. Its trials are kept in OUT/priors/TASK.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock
from loop import study_of, trials_of
from tasks import Task
from truth import fingerprint
from ways import WAYS

from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.optim.base import Earlier
from sloguard.perf.gpus import gpu_named
from sloguard.report.files import write_text_atomic
from sloguard.study.prior import DRAWN, SOUGHT, rehearsal
from sloguard.trial import Trial

NAME = "simulation"
SEED = 1_234_567  # arrivals that no study is offered
TRIALS = 1 + DRAWN + SOUGHT  # the default is the first


def earlier_of(out: Path, task: Task) -> Earlier:
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
    return Earlier(NAME, tuple(Trial.from_json(json.loads(line)) for line in lines[1:]))


def _simulator(task: Task) -> SimulatedEngine:
    return SimulatedEngine(find_model_shape(task.model), gpu_named(task.gpu), fixed=task.fixed, noise=0.0)
