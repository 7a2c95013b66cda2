"""Real processes: whatever way sloguard or the engine ends, nothing that was started is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil
import pytest

from procs import alive_with
from sloguard.engine import processes
from sloguard.engine.processes import STATE_DIR, Exit, Server, reap_orphans, state_dir
from sloguard.errors import SpecError

PYTHON = sys.executable

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
# A leader with one child in its session and one grandchild that made a session of its own.
FAMILY = f"""
import subprocess, sys
subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])
subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)
{SLEEPER}
"""
# A child without the run id in its environment, as a process that rewrites its title may leave it.
UNMARKED = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], env={{}}); {SLEEPER}"
OWNER = """
import os, sys, time
from pathlib import Path
from sloguard.engine.processes import Server
code, trial_dir = sys.argv[1], Path(sys.argv[2])
server = Server.start([sys.executable, "-c", code], dict(os.environ), trial_dir / "log", trial_dir)
print(server.run_id, server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    for process in left:
        process.kill()
    assert not left


def start(code: str, tmp_path: Path) -> Server:
    return Server.start([PYTHON, "-c", code], dict(os.environ), tmp_path / "log", tmp_path)


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come true; fails instead of hanging."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def runs(pid: int) -> bool:
    """A zombie does not run; whether process 1 collects zombies is not for us to say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def records(state: Path) -> list[Path]:
    return list((state / "processes").glob("*"))


def test_both_streams_go_to_the_log(tmp_path: Path) -> None:
    code = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); print('x' * 1_000_000)"
    with start(code, tmp_path) as server:
        until(lambda: server.exit() is not None)
    text = (tmp_path / "log").read_text()
    assert "out\n" in text
    assert "err\n" in text
    assert len(text) > 1_000_000  # more than any pipe holds: nothing blocked


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", Exit(code=3)), ("import os; os.kill(os.getpid(), 9)", Exit(signal=9)), ("", Exit(code=0))],
)
def test_how_it_ended_is_known_before_and_after_stop(code: str, expected: Exit, tmp_path: Path) -> None:
    with start(code, tmp_path) as server:
        until(lambda: server.exit() is not None)
        assert server.exit() == expected
    assert server.exit() == expected


def test_runs_in_a_session_of_its_own(tmp_path: Path, state: Path) -> None:
    with start(SLEEPER, tmp_path) as server:
        assert os.getsid(server.pid) == os.getpgid(server.pid) == server.pid
        assert len(records(state)) == 1
        assert server.exit() is None
    assert records(state) == []


def test_stop_ends_a_family_across_sessions_and_ignored_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.3)
    server = start(FAMILY, tmp_path)
    until(lambda: lines(tmp_path / "log") == 3)
    assert len(alive_with(server.run_id)) == 3
    assert server.stop() == ()
    assert alive_with(server.run_id) == []
    assert server.exit() == Exit(signal=signal.SIGTERM)
    assert server.stop() == ()


def test_a_leader_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    server = start(STUBBORN, tmp_path)
    until(lambda: lines(tmp_path / "log") == 1)
    assert server.stop(grace_s=0.2) == ()
    assert server.exit() == Exit(signal=signal.SIGKILL)


def test_a_stopped_process_is_killed(tmp_path: Path) -> None:
    server = start(STUBBORN, tmp_path)
    until(lambda: lines(tmp_path / "log") == 1)
    os.kill(server.pid, signal.SIGSTOP)
    assert server.stop(grace_s=0.2) == ()
    assert server.exit() == Exit(signal=signal.SIGKILL)


@pytest.mark.parametrize("code", [FAMILY, UNMARKED])
def test_children_of_a_dead_leader_are_ended(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.3)
    server = start(code, tmp_path)
    until(lambda: lines(tmp_path / "log") == (3 if code == FAMILY else 2))
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: server.exit() == Exit(signal=signal.SIGKILL))
    left = server.members()
    assert len(left) == (2 if code == FAMILY else 1)
    assert server.stop() == ()
    assert not any(runs(process.pid) for process in left)


def test_an_interrupt_while_stopping_still_kills(tmp_path: Path) -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    server = start(STUBBORN, tmp_path)
    until(lambda: lines(tmp_path / "log") == 1)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.stop()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alive_with(server.run_id) == []


def test_a_program_that_cannot_run_is_the_users_error(tmp_path: Path, state: Path) -> None:
    with pytest.raises(SpecError, match="nonexistent"):
        Server.start(["/nonexistent/python"], dict(os.environ), tmp_path / "log", tmp_path)
    assert records(state) == []


def owner(code: str, tmp_path: Path) -> tuple[subprocess.Popen[str], str, int]:
    process = subprocess.Popen([PYTHON, "-c", OWNER, code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id, pid = process.stdout.readline().split()
    return process, run_id, int(pid)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_next_start_ends_what_a_killed_owner_left(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.3)
    process, run_id, _ = owner(FAMILY, tmp_path)
    until(lambda: lines(tmp_path / "log") == 3)
    assert reap_orphans() == []  # the owner lives
    assert len(alive_with(run_id)) == 3
    end(process)
    assert len(alive_with(run_id)) == 3
    (orphan,) = reap_orphans()
    assert (orphan.run_id, orphan.trial_dir, orphan.survivors) == (run_id, str(tmp_path), ())
    assert alive_with(run_id) == []
    assert records(state) == []
    assert reap_orphans() == []


def test_a_grandchild_of_a_dead_leader_and_a_dead_owner_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LINGER_S", 0.3)
    process, run_id, pid = owner(FAMILY, tmp_path)
    until(lambda: lines(tmp_path / "log") == 3)
    os.kill(pid, signal.SIGKILL)
    end(process)
    assert len([p for p in alive_with(run_id) if p != pid]) == 2
    assert len(reap_orphans()) == 1
    assert alive_with(run_id) == []


def test_a_start_that_was_announced_but_not_recorded_is_found_by_its_run_id(tmp_path: Path, state: Path) -> None:
    process, run_id, _ = owner(SLEEPER, tmp_path)
    end(process)
    (record,) = records(state)
    record.write_text(record.read_text().splitlines()[0] + '\n{"pi')
    assert len(reap_orphans()) == 1
    assert alive_with(run_id) == []


def test_a_stranger_with_a_recorded_process_id_is_left_alone(tmp_path: Path, state: Path) -> None:
    process, run_id, pid = owner("", tmp_path)
    end(process)
    until(lambda: not alive_with(run_id))
    (record,) = records(state)
    with subprocess.Popen([PYTHON, "-c", SLEEPER], stdout=subprocess.DEVNULL, start_new_session=True) as stranger:
        record.write_text(record.read_text().replace(str(pid), str(stranger.pid)))
        assert reap_orphans() == []
        assert stranger.poll() is None
        stranger.kill()
    assert records(state) == []


def test_records_of_another_boot_or_container_are_left_alone(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, run_id, _ = owner(SLEEPER, tmp_path)
    end(process)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "place", lambda: "elsewhere")
        assert reap_orphans() == []
        assert len(records(state)) == len(alive_with(run_id)) == 1
    assert len(reap_orphans()) == 1


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "file" / "state"))
    with pytest.raises(SpecError, match=STATE_DIR):
        state_dir()
