"""Replicas on this machine: each a `sloguard serve` of its own behind a gateway. This process starts them all, starts
anew what ended or hangs, and ends them.

The listening socket is this process's, so connections wait while a gateway is being replaced. Which replicas there are
it writes into a file that the gateway follows. What a replica's engine says goes to `log_to`, the replica's name on
every line.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sloguard.engine.http_probe import ask
from sloguard.engine.processes import GRACE_S, PARENT, Server, reap_orphans
from sloguard.engine.serving import OnServing, draining, forwarded, run_dir
from sloguard.engine.vllm_server import EVERYWHERE, HOST, free_port
from sloguard.errors import SloguardError
from sloguard.fleet.server import TOLD, Told
from sloguard.plugins.door import DRAIN_PATH, STATUS_PATH
from sloguard.plugins.options import API_KEY, CONTROL_TOKEN, DOOR, DoorOptions
from sloguard.report.files import write_text_atomic

POLL_S = 0.1
ASK_S = 2.0
LOOK_S = 0.5
LOST_S = 30.0  # down for so long after it was up: it is started anew
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0  # before a start that follows a failure
STOP_S = 10.0  # to end, of a gateway


class NeverServed(SloguardError):  # noqa: N818 - says what the replica did
    """A replica ended before it ever served, with this exit code; None where a signal ended it."""

    def __init__(self, code: int | None, why: str) -> None:
        self.code = code
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class LocalSetup:
    """`argv` and `environments` start replicas, less what is made up here: the port and the token."""

    argv: Sequence[str]
    environments: Sequence[Mapping[str, str]]
    door: DoorOptions
    router: str
    host: str
    port: int
    drain_timeout_s: float


@dataclass(slots=True)
class _Slot:
    """A replica's place. Each start has a name of its own, for what is sent to one must not reach the next."""

    number: int
    log: Path
    server: Server | None = None
    port: int = 0
    starts: int = 0
    was_up: bool = False
    ever_up: bool = False
    rest_s: float = FIRST_REST_S
    start_s: float = 0.0  # not before
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        return f"replica-{self.number}.{self.starts}"


class LocalFleet:
    def __init__(self, setup: LocalSetup) -> None:
        self.setup = setup
        self._token = secrets.token_urlsafe(24)
        self._gateway: subprocess.Popen[bytes] | None = None
        self._said_up = -1

    def run(self, say: OnServing, log_to: BinaryIO) -> None:
        """Serves until it is interrupted (KeyboardInterrupt), and then drains. Raises NeverServed."""
        reap_orphans()
        with ExitStack() as stack:
            directory = stack.enter_context(run_dir())
            listening = stack.enter_context(_listening(self.setup.host, self.setup.port))
            ours, theirs = os.pipe()
            stack.callback(os.close, theirs)
            stack.callback(os.close, ours)
            slots = [_Slot(n, directory / f"replica-{n}.log") for n in range(len(self.setup.environments))]
            stack.callback(self._end, slots)
            told = self._told(directory / "replicas.json", listening, ours)
            try:
                self._go_on(slots, told, say, log_to)
            except KeyboardInterrupt:
                self._drain(say)

    def _go_on(self, slots: list[_Slot], told: Told, say: OnServing, log_to: BinaryIO) -> None:
        look_s = 0.0
        while True:
            if self._gateway is None or self._gateway.poll() is not None:
                if self._gateway is not None:
                    say(f"the gateway ended ({self._gateway.returncode}) and is started anew")
                    time.sleep(FIRST_REST_S)
                self._gateway = self._start_gateway(told)
            changed = [slot for slot in slots if self._mended(slot, {s.port for s in slots}, say, log_to)]
            if changed:
                running = [slot for slot in slots if slot.server is not None]
                urls = [{"name": slot.name, "url": f"http://{HOST}:{slot.port}"} for slot in running]
                write_text_atomic(Path(told.replicas), json.dumps(urls))
            if time.monotonic() >= look_s:
                self._look(slots, say)
                look_s = time.monotonic() + LOOK_S
            time.sleep(POLL_S)

    # Replicas.

    @property
    def _grace_s(self) -> float:
        """A replica's own end is to drain, and then to end its engine by the same means."""
        return self.setup.drain_timeout_s + 2 * GRACE_S

    def _mended(self, slot: _Slot, taken: set[int], say: OnServing, log_to: BinaryIO) -> bool:
        """Starts what is not there. Whether anything changed."""
        if slot.server is not None:
            ended = slot.server.exit()
            if ended is None:
                return False
            why = f"exit code {ended.code}" if ended.signal is None else f"signal {ended.signal}"
            self._clear(slot, self._grace_s)
            if not slot.ever_up:
                raise NeverServed(ended.code, f"{slot.name} ended before it served ({why}): {last_line(slot.log)}")
            say(f"{slot.name} ended ({why})")
            return True
        if time.monotonic() < slot.start_s:
            return False
        self._start(slot, taken, log_to)
        if slot.starts > 1:
            say(f"{slot.name} is starting")
        return True

    def _start(self, slot: _Slot, taken: set[int], log_to: BinaryIO) -> None:
        slot.starts += 1
        slot.was_up = False
        slot.port = next(port for port in iter(free_port, None) if port not in taken)  # others may not listen yet
        argv = [*self.setup.argv, "--host", HOST, "--port", str(slot.port), "--api-key-env", CONTROL_TOKEN]
        env = {**self.setup.environments[slot.number], CONTROL_TOKEN: self._token, PARENT: str(os.getpid())}
        slot.server = Server.start(argv, env, slot.log, slot.log.parent)
        slot.stack.enter_context(forwarded(slot.log, log_to, f"[{slot.name}] ".encode()))

    def _clear(self, slot: _Slot, grace_s: float) -> None:
        """Of what is left of a replica that ended; the next start waits longer each time that none came up."""
        assert slot.server is not None
        slot.server.stop(grace_s)
        reap_orphans()  # a replica that was killed leaves its engine
        slot.stack.close()
        slot.server = None
        slot.rest_s = FIRST_REST_S if slot.was_up else min(2 * slot.rest_s, LONGEST_REST_S)
        slot.start_s = time.monotonic() + (0.0 if slot.was_up else slot.rest_s)

    def _look(self, slots: list[_Slot], say: OnServing) -> None:
        status = self._ask(STATUS_PATH)
        if status is None:
            return
        members = {member["name"]: member for member in status["members"]}
        for slot in slots:
            member = members.get(slot.name)
            if member is None or slot.server is None:
                continue
            if not member["why_down"]:
                slot.was_up = slot.ever_up = True
            elif slot.was_up and time.monotonic() - member["since_s"] > LOST_S:
                say(f"{slot.name} is down ({member['why_down']}) and is ended")
                slot.server.stop(grace_s=0.0)
        up = sum(not member["why_down"] for member in members.values())
        if up != self._said_up and any(slot.ever_up for slot in slots):
            self._said_up = up
            whys = [(slot.name, members.get(slot.name, {}).get("why_down")) for slot in slots if slot.was_up]
            down = "".join(f"; {name}: {why.removeprefix(f'{name}: ')}" for name, why in whys if why)
            say(f"{up} of {len(slots)} replicas up at http://{self.setup.host}:{self.setup.port}/v1{down}")

    # The gateway.

    def _told(self, replicas: Path, listening: socket.socket, parent: int) -> Told:
        return Told(
            router=self.setup.router,
            replicas=str(replicas),
            socket=listening.fileno(),
            parent=parent,
        )

    def _start_gateway(self, told: Told) -> subprocess.Popen[bytes]:
        door = self.setup.door
        key = {API_KEY: door.api_key} if door.api_key else {}
        inherited = {name: value for name, value in os.environ.items() if name != API_KEY}
        env = {
            **inherited,
            DOOR: door.model_dump_json(exclude={"api_key", "control_token"}),
            CONTROL_TOKEN: self._token,
            TOLD: told.model_dump_json(),
            **key,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "sloguard.fleet.server"],
            env=env,
            stdin=subprocess.DEVNULL,
            pass_fds=(told.socket, told.parent),
            start_new_session=True,  # an interrupt of the terminal is for this process alone
        )

    def _ask(self, path: str, body: Any = None) -> dict[str, Any] | None:
        host = HOST if self.setup.host in EVERYWHERE else self.setup.host
        url = f"http://[{host}]:{self.setup.port}" if ":" in host else f"http://{host}:{self.setup.port}"
        try:
            answer = ask(url, path, timeout_s=ASK_S, body=body, api_key=self._token)
        except OSError:
            return None
        return answer.body if answer.status == 200 else None

    # The end.

    def _drain(self, say: OnServing) -> None:
        """Waits for what is under way; a second interrupt ends the wait."""
        deadline_s = time.monotonic() + self.setup.drain_timeout_s
        said = -1
        with suppress(KeyboardInterrupt):
            while time.monotonic() < deadline_s:
                if self._gateway is None or self._gateway.poll() is not None:
                    break
                status = self._ask(DRAIN_PATH, {})
                left = status["in_flight"] if status else None  # it is busy
                if left == 0:
                    break
                if left is not None and left != said:
                    said = left
                    say(draining(left))
                time.sleep(POLL_S)

    def _end(self, slots: list[_Slot]) -> None:
        if self._gateway is not None and self._gateway.poll() is None:
            self._gateway.terminate()
            try:
                self._gateway.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._gateway.kill()
                self._gateway.wait()
        running = [(slot, slot.server) for slot in slots if slot.server is not None]
        for _, server in running:  # all at once: each may take a while
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + self._grace_s
        with suppress(KeyboardInterrupt):  # a further one ends this wait too
            while any(server.exit() is None for _, server in running) and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
        for slot, _ in running:  # a second signal to one that is ending would make it hurry
            self._clear(slot, 0.0)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def environments(
    count: int, devices: Sequence[str], each: int, inherited: Mapping[str, str], variable: str
) -> list[dict[str, str]]:
    """One for each of `count` replicas, with `each` of the devices in `variable`. There are enough."""
    shares = [devices[at * each : (at + 1) * each] for at in range(count)]
    return [{**inherited, variable: ",".join(share)} for share in shares]
