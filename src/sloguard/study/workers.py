"""Where the independent parts of a study are computed: here, in processes of this machine, or on a Ray cluster.

What is computed is a function of its arguments alone, so where that happens changes nothing but how long it takes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import Any

from sloguard.engine.processes import GRACE_S
from sloguard.engine.ray_cluster import cluster, cores
from sloguard.errors import SpecError, WorkerLost

RETRIES = 3  # of a part whose process or machine is lost
STOP_S = 2 * GRACE_S  # to end, of a worker: it may have an engine to stop


@contextmanager
def workers(jobs: int | None, ray_address: str | None = None) -> Generator[tuple[Executor, int]]:
    """Yields what computes, and how many parts at a time keep it busy: `jobs`, or one a core of the machine or cluster.

    Neither an interrupt nor the death of this process leaves any worker behind. Raises WorkerLost where one is killed.
    """
    if ray_address is not None:
        with cluster(ray_address) as ray, _OnRay(ray) as executor:
            yield executor, jobs or max(1, cores(ray))
        return
    jobs = jobs or len(os.sched_getaffinity(0))
    if jobs == 1:
        yield _InProcess(), 1
        return
    executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        with without_interrupt():
            executor.submit(int)  # the first starts all processes
        yield executor, jobs
    except BaseException as error:
        for child in active_children():
            child.terminate()  # it may have minutes to go, and nobody waits for it any more
        executor.shutdown(cancel_futures=True)  # waits: the interpreter's exit races with the executor's thread
        if isinstance(error, BrokenProcessPool):
            raise WorkerLost(
                "a process was killed, perhaps for memory. Use fewer --jobs; a search with --out goes on with --resume."
            ) from error
        raise
    executor.shutdown()


class _InProcess(Executor):
    """Runs at once, here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class _OnRay(Executor):
    """A task a part. Ray makes it again where its worker is lost."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES)(_as_here)
        self._running: dict[Future[Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        task = self._task.remote(os.getcwd(), fn, *args, **kwargs)
        future: Future[Any] = task.future()
        self._running[future] = task
        future.add_done_callback(self._running.pop)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for task in list(self._running.values()):
            self._ray.cancel(task, force=True)

    def __exit__(self, kind: type[BaseException] | None, error: Any, *_: object) -> None:
        self.shutdown()
        if isinstance(error, self._ray.exceptions.RayTaskError):
            raise error.cause from error
        if isinstance(error, self._ray.exceptions.RayError):
            problem = f"a worker of the cluster was lost {RETRIES + 1} times ({type(error).__name__})"
            raise WorkerLost(f"{problem}. See `ray status`; a search with --out goes on with --resume.") from error


def _as_here(directory: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with suppress(SpecError):  # a part that reads no file needs nothing from there
        go_to(directory)
    return fn(*args, **kwargs)


def go_to(directory: str) -> None:
    """Where the command is given: there paths begin, and the user's own modules lie. Raises SpecError on a machine that
    has no such directory.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        fix = "Give the command in a directory that all machines have."
        raise SpecError("the working directory", directory, f"a machine has none ({error.strerror})", fix) from error
    if directory not in sys.path:
        sys.path.insert(0, directory)


@contextmanager
def without_interrupt() -> Generator[None]:
    """For processes that are started in it: one that is still importing would end with a traceback. `follow_parent` is
    where it ends for them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """An interrupt is the parent's to handle; a worker ends when the parent does, even by `kill -9`: as SIGTERM says,
    and in any case after `STOP_S`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_S)
    os._exit(1)
