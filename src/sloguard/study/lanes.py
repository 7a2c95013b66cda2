"""Where trials run when several do at a time: processes of this machine, each with GPUs of its own.

A lane's process builds the study for itself, from its spec, and makes one trial after the other. One that dies is
replaced, and its trial tried again: a trial counts only once it is in the log. ray_lanes.py has the same on a cluster.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn, Protocol

from sloguard.engine.gpu_detect import VISIBLE
from sloguard.engine.processes import GRACE_S
from sloguard.errors import SpecError, WorkerLost
from sloguard.study.build import build_study
from sloguard.study.runner import attempt
from sloguard.study.spec import StudySpec
from sloguard.study.workers import STOP_S, follow_parent, go_to, without_interrupt
from sloguard.trial import Proposal, Trial

TRIES = 3  # workers that may die under one trial
POLL_S = 0.1
LOCK = "workers.lock"


class WorkerDied(Exception):  # noqa: N818 - another takes its place
    """Under its trial, which is to be made again."""


class Worker(Protocol):
    """Makes one trial at a time."""

    def make(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        """Raises WorkerDied. Any other error is the study's."""
        ...

    def end(self) -> None:
        """Ends what it is doing, its engine too. Called by another thread than `make`."""
        ...


class Lane:
    """Workers, one after the other: `start` makes the next."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lane")  # waits for the worker
        self._worker: Worker | None = None
        self._lock = Lock()  # of the worker, while one starts or ends
        self._closed = False

    def submit(self, number: int, proposal: Proposal, trial_dir: Path) -> Future[Trial]:
        """One at a time. Fails with WorkerLost where workers die again and again."""
        return self._thread.submit(self._made, number, proposal, trial_dir)

    def _made(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        for _ in range(TRIES):
            if (worker := self._at_work()) is None:
                break
            try:
                return worker.make(number, proposal, trial_dir)
            except WorkerDied:
                self._end()
        raise WorkerLost(f"{TRIES} processes were killed under trial {number}. --resume goes on from there.")

    def _at_work(self) -> Worker | None:
        with self._lock:
            if self._worker is None and not self._closed:
                self._worker = self._start()
            return self._worker

    def _end(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def close(self) -> None:
        """Ends what it is doing, engines too."""
        self._closed = True
        self._end()
        self._thread.shutdown()


def close_all(lanes: Sequence[Lane]) -> None:
    """At once: each may take a while."""
    with ThreadPoolExecutor(len(lanes)) as threads:
        list(threads.map(Lane.close, lanes))


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs to build its study. `engine` is what the study's own engine says of itself: that of every
    worker is to say the same. `cwd` is where paths begin, and the user's own modules lie. `environment` is on top of
    the worker's own. As long as a worker lives it holds a lock in `directory`, if there is one.
    """

    spec: StudySpec
    api_key: str | None
    engine: Mapping[str, Any]
    cwd: str
    directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class ProcessWorker:
    def __init__(self, work: Work) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work))
        with without_interrupt():
            self._process.start()
        theirs.close()

    def make(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        try:
            self._pipe.send((number, proposal, trial_dir))
            made = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        if isinstance(made, BaseException):
            raise made
        return made

    def end(self) -> None:
        self._process.terminate()
        self._process.join(STOP_S)
        self._process.kill()
        self._process.join()


def await_workers(directory: Path) -> None:
    """Until those of an earlier run, which was killed, have stopped their engines. Raises WorkerLost."""
    with (directory / LOCK).open("a") as file:
        deadline_s = time.monotonic() + STOP_S + GRACE_S
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline_s:
                    problem = f"workers of an earlier run still hold {directory / LOCK}"
                    raise WorkerLost(f"{problem}. End them, then go on with --resume.") from None
            time.sleep(POLL_S)


def gpu_lanes(work: Work, lanes: int, devices: Sequence[str]) -> list[Lane]:
    """As many of the devices to every lane as its engine is to use. There are enough, or none are needed."""
    each = work.spec.gpus_each
    shares = [devices[at * each : (at + 1) * each] for at in range(lanes)]
    return [_lane(work, {VISIBLE: ",".join(share)} if share else {}) for share in shares]


def _lane(work: Work, environment: Mapping[str, str]) -> Lane:
    return Lane(lambda: ProcessWorker(replace(work, environment=environment)))


def _serve(pipe: Connection, work: Work) -> None:
    """The process of a worker."""
    signal.signal(signal.SIGTERM, _interrupt)
    follow_parent()
    os.environ.update(work.environment)
    try:
        go_to(work.cwd)
        lock = (work.directory / LOCK).open("a") if work.directory else None
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)
        study = build_study(work.spec, work.api_key)
        _check_same(study.engine.describe(), work.engine)
        while True:
            number, proposal, trial_dir = pipe.recv()
            pipe.send(attempt(study, proposal, number, trial_dir))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001 - the edge of a process: whoever waits for the trial is to see it
        pipe.send(error)


def _check_same(mine: Mapping[str, Any], study: Mapping[str, Any]) -> None:
    """Raises SpecError where this engine is not the study's: what it measures could not be compared."""
    for name, value in study.items():
        if mine.get(name) != value:
            fix = "Let all machines have the same GPUs and the same vLLM."
            raise SpecError(f"engine {name}", mine.get(name), f"on one machine, where the study has {value!r}", fix)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt  # so that an engine is stopped on the way out
