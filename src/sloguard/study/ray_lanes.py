"""Trials on a Ray cluster: one actor a lane, with GPUs of its own wherever Ray finds them.

An actor keeps its trials in a process of its own, as a lane of this machine does (lanes.py), so that it can be told to
end in the middle of one, and so that the engine ends with it however it goes. What an engine wrote comes back with its
trial: the directory of the study is on the machine of the command alone.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sloguard.engine.processes import reap_orphans
from sloguard.engine.ray_cluster import THREADS
from sloguard.study.lanes import Lane, ProcessWorker, Work, WorkerDied
from sloguard.study.workers import STOP_S
from sloguard.trial import Proposal, Trial

FILE_BYTES = 8 << 20  # of each file that comes back, its end


class _Trials:
    """The actor."""

    def __init__(self, work: Work) -> None:
        reap_orphans()  # of an actor that was killed here
        os.environ.pop(THREADS, None)
        self._worker = ProcessWorker(work)

    def make(self, number: int, proposal: Proposal) -> tuple[Trial, dict[str, bytes]] | None:
        """The trial and what lies in its directory; None where the process died under it."""
        with tempfile.TemporaryDirectory(prefix="sloguard-") as name:
            trial_dir = Path(name) / f"{number:03d}"
            try:
                trial = self._worker.make(number, proposal, trial_dir)
            except WorkerDied:
                return None
            files = (path for path in trial_dir.rglob("*") if path.is_file())
            return trial, {str(path.relative_to(trial_dir)): path.read_bytes()[-FILE_BYTES:] for path in files}

    def end(self) -> None:
        self._worker.end()


class RayWorker:
    """Started wherever `gpus` are free; its first trial waits until they are."""

    def __init__(self, ray: Any, work: Work, gpus: int) -> None:
        self._ray = ray
        kind = ray.remote(num_gpus=gpus, num_cpus=1, max_concurrency=2)(_Trials)  # one makes, one may end it
        self._actor = kind.remote(work)

    def make(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        try:
            made = self._ray.get(self._actor.make.remote(number, proposal))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise WorkerDied from error
        if made is None:
            raise WorkerDied
        trial, files = made
        trial_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = trial_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return trial

    def end(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is gone already, or too slow
            self._ray.get(self._actor.end.remote(), timeout=STOP_S + 5)
        self._ray.kill(self._actor)


def ray_lanes(ray: Any, work: Work, lanes: int, gpus: int) -> list[Lane]:
    """`gpus` to every lane, all on one machine each."""
    return [Lane(lambda: RayWorker(ray, work, gpus)) for _ in range(lanes)]
