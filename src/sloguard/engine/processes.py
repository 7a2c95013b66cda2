"""Engine processes: started in a session of their own, always ended, even by the next sloguard after a `kill -9`.

How a process is known to be ours, safely against reused process ids:

1. Everything we start carries a fresh 128-bit run id in its environment, which children inherit.
2. A live process with the run id in the session that we made proves that the session is still ours (the kernel gives
   out no id that a session bears), so whoever is in that session is ours too.

A run is registered on disk before its process starts, in a file that the owner keeps locked. The kernel drops the lock
however the owner dies: a record that can be locked belongs to a dead owner, and what it started is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self

import platformdirs
import psutil

from sloguard.errors import SpecError

RUN_ID = "SLOGUARD_RUN_ID"
STATE_DIR = "SLOGUARD_STATE_DIR"
PARENT = "SLOGUARD_PARENT"  # the process without which a server of ours is to end
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}  # setproctitle, as vLLM uses it, overwrites /proc/PID/environ without it
GRACE_S = 20.0  # an orderly stop of vLLM takes 0.4 s on CPU; frees GPU memory and shared memory
LINGER_S = 5.0  # what the others get once the leader is gone
KILL_S = 10.0  # SIGKILL works at once except on a process that is stuck in the kernel
POLL_S = 0.05
PARENT_POLL_S = 0.5
CLEANER = "multiprocessing.resource_tracker"  # frees the shared memory of killed processes, then ends by itself


def state_dir() -> Path:
    """Where sloguard remembers things between runs; made if absent. Raises SpecError where it can't be written."""
    path = Path(os.environ.get(STATE_DIR) or platformdirs.user_state_path("sloguard"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the state directory can't be made ({error.strerror})"
        raise SpecError(STATE_DIR, str(path), problem, f"Set {STATE_DIR} to a directory you can write.") from error
    if not os.access(path, os.W_OK):
        fix = f"Set {STATE_DIR} to a directory you can write."
        raise SpecError(STATE_DIR, str(path), "the state directory can't be written", fix)
    return path


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: exactly one of the two is set."""

    code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Orphan:
    """Processes of a dead sloguard that were ended; `survivors` [pids] could not be."""

    run_id: str
    trial_dir: str
    survivors: tuple[int, ...]


class Server:
    """One started command: the leader of its own session and process group."""

    def __init__(self, popen: subprocess.Popen[bytes], run_id: str, record: _Record) -> None:
        self.pid, self.run_id = popen.pid, run_id
        self._popen, self._record = popen, record
        self._exit: Exit | None = None

    @classmethod
    def start(cls, argv: Sequence[str], env: Mapping[str, str], log: Path, trial_dir: Path) -> Self:
        """Starts `argv` with both output streams in `log`. Raises SpecError where it can't be executed."""
        run_id = uuid.uuid4().hex
        log.write_bytes(b"")
        with log.open("ab") as output:  # what follows a log may begin it anew
            record = _Record.create(run_id, argv, trial_dir)
            try:
                popen = subprocess.Popen(
                    list(argv),
                    env={**env, **KEEP_ENVIRONMENT, RUN_ID: run_id},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                record.remove()
                fix = "Give a program that exists and may be executed."
                raise SpecError("engine command", argv[0], f"can't be started ({error.strerror})", fix) from error
        record.started(popen.pid)
        return cls(popen, run_id, record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def exit(self) -> Exit | None:
        """How the leader ended; None while it runs. It is left unreaped, so that its id stays taken until `stop`."""
        if self._exit is None:
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status is not None:
                ended = status.si_code == os.CLD_EXITED
                self._exit = Exit(code=status.si_status) if ended else Exit(signal=status.si_status)
        return self._exit

    def members(self) -> list[psutil.Process]:
        """Every live process of this run. Until `stop` has reaped the leader, its session is ours beyond doubt."""
        return _members(self.run_id, self.pid, proven=self._popen.returncode is None)

    def stop(self, grace_s: float = GRACE_S) -> tuple[int, ...]:
        """SIGTERM, then SIGKILL to whatever is left. Idempotent. Returns the ids of processes that survived both.

        An interrupt on the way only shortens the wait.
        """
        if self._popen.returncode is not None:
            return ()
        try:
            self._ask_to_end(grace_s)
        finally:
            survivors = _kill(self.members)
            if self.exit() is not None:
                self._popen.wait()
            if not survivors:
                self._record.remove()
        return survivors

    def _ask_to_end(self, grace_s: float) -> None:
        """The leader is asked and stops its children itself; children without a leader are asked themselves."""
        if self.exit() is None:
            os.kill(self.pid, signal.SIGTERM)
            deadline_s = time.monotonic() + grace_s
            while self.exit() is None and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
            if self.exit() is None:
                return
        _ask(self.members())


def reap_orphans() -> list[Orphan]:
    """Ends what sloguard processes that died without cleaning up have left behind; live ones' engines are not touched.

    Looks only at records of this boot and this container: elsewhere the same process ids mean other processes.
    """
    found: list[Orphan] = []
    for path in sorted(_registry().glob("*.jsonl")):
        record = _Record.take_over(path)
        if record is None:
            continue
        with contextlib.closing(record):
            facts = record.read()
            if facts.get("place") != place():
                continue
            members = partial(_members, str(facts["run_id"]), facts.get("pid"))
            orphans = members()
            _ask(orphans)
            survivors = _kill(members)
            if orphans:
                found.append(Orphan(str(facts["run_id"]), str(facts["trial_dir"]), survivors))
            if not survivors:
                record.remove()
    return found


def end_with_parent() -> None:
    """Ends this process as SIGTERM would, once the one that PARENT names is not its parent any more."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Record:
    """One line written before the process starts, one after; locked while its owner lives."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file

    @classmethod
    def create(cls, run_id: str, argv: Sequence[str], trial_dir: Path) -> Self:
        path = _registry() / f"{run_id}.jsonl"
        unlisted = path.with_suffix(".new")  # not seen by `reap_orphans` until it is locked and complete
        record = cls(path, unlisted.open("x", encoding="utf-8"))
        fcntl.flock(record._file, fcntl.LOCK_EX)
        digest = hashlib.sha256("\0".join(argv).encode()).hexdigest()
        facts = {"run_id": run_id, "place": place(), "owner_pid": os.getpid(), "argv_sha256": digest}
        record._append({**facts, "trial_dir": str(trial_dir.absolute())})
        unlisted.rename(path)
        _sync_directory(path.parent)
        return record

    @classmethod
    def take_over(cls, path: Path) -> Self | None:
        """The record of a dead owner; None where the owner lives or someone else is at it."""
        try:
            file = path.open("r+", encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if not path.exists():  # ended properly between our two looks
            file.close()
            return None
        return cls(path, file)

    def started(self, pid: int) -> None:
        """`pid` is also the id of the process group and of the session."""
        self._append({"pid": pid, "started_s": time.time()})

    def read(self) -> dict[str, object]:
        """All facts; a line cut short by a crash of the machine is none."""
        facts: dict[str, object] = {}
        for line in self._file.read().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                facts |= json.loads(line)
        return facts

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        self._file.close()

    def _append(self, facts: Mapping[str, object]) -> None:
        self._file.write(json.dumps(facts) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _registry() -> Path:
    path = state_dir() / "processes"
    path.mkdir(exist_ok=True)
    return path


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place() -> str:
    """Names this boot and this process-id namespace; the state directory may be shared with other containers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip() if boot.exists() else str(psutil.boot_time())
    namespace = Path("/proc/self/ns/pid")
    return f"{boot_id} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def _members(run_id: str, session: object, proven: bool = False) -> list[psutil.Process]:
    """Live processes of the run, by the two rules above. `session` is None where the start was never recorded."""
    marked: list[psutil.Process] = []
    seated: list[psutil.Process] = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if session is not None and os.getsid(pid) == session:
                seated.append(process)
            if process.environ().get(RUN_ID) == run_id:
                marked.append(process)
    proven = proven or any(process in seated for process in marked)
    return list({*marked, *(seated if proven else ())})


def _ask(members: Sequence[psutil.Process]) -> None:
    """SIGTERM to every member, then up to `LINGER_S` for them to go."""
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _wait(members, LINGER_S)


def _kill(members: Callable[[], list[psutil.Process]]) -> tuple[int, ...]:
    """SIGKILL until nobody is left, the ones that clean up last. Returns the ids of those that don't go."""
    start_s = time.monotonic()
    while (found := members()) and time.monotonic() < start_s + KILL_S:
        hurried = time.monotonic() > start_s + LINGER_S
        for process in found:
            with contextlib.suppress(psutil.Error):
                if hurried or not _cleans_up(process):
                    process.kill()
        _wait(found, POLL_S)
    return tuple(sorted(process.pid for process in found))


def _wait(members: Sequence[psutil.Process], timeout_s: float) -> None:
    """Up to `timeout_s` for all to end. psutil's own wait would reap the leader and so free its id."""
    deadline_s = time.monotonic() + timeout_s
    while any(_is_alive(process) for process in members) and time.monotonic() < deadline_s:
        time.sleep(min(POLL_S, timeout_s))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cleans_up(process: psutil.Process) -> bool:
    return any(CLEANER in argument for argument in process.cmdline())
