"""`sloguard serve` on vLLM: one server with sloguard's scheduler and door inside, from its start to its end.

start   vLLM in a session of its own, which nothing survives; sloguard is lent to its Python
ready   once a request has been answered
serve   until vLLM ends by itself, which is a crash whatever its exit code, or this process is asked to end
drain   the door lets nobody in any more, and what is under way may finish, up to a limit; then everything is ended
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import psutil

from sloguard.engine.http_probe import ask
from sloguard.engine.lend import check_hooks, lent_environment, refuse_ours, scheduler_arguments
from sloguard.engine.processes import GRACE_S, place, reap_orphans, state_dir
from sloguard.engine.profiles import device_name, find, path_of, profile_key, read_profile
from sloguard.engine.slo_classes import SloClasses
from sloguard.engine.vllm import checked_arguments, checked_model, server_environment
from sloguard.engine.vllm_install import find_vllm
from sloguard.engine.vllm_server import Died, VllmServer
from sloguard.errors import EngineCrash, SpecError
from sloguard.plugins.options import API_KEY, CONTROL_TOKEN, DOOR, DoorOptions, Options, StepTimes
from sloguard.space.flags import to_flags
from sloguard.trial import Value

DOOR_CLASS = "sloguard.plugins.door.Door"
POLL_S = 0.2
LOG_BYTES = 64 << 20  # a server's log is forwarded as it grows, and begun anew from this size on


@dataclass(frozen=True, slots=True)
class ServeSetup:
    """What is to be served, and how. `arguments` are vLLM's, names underscored."""

    model: str
    python: str | None = None
    gpu: str | None = None
    tensor_parallel: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    arguments: Mapping[str, Value] = field(default_factory=dict[str, Value])
    policy: str = "sloguard"
    policy_options: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])
    classes: SloClasses = field(default_factory=SloClasses)
    api_key: str | None = field(default=None, repr=False)
    max_wait_s: float = 60.0
    max_requests: int = 4096
    start_timeout_s: float = 900.0
    drain_timeout_s: float = 30.0
    step_log: str | None = None
    think_end_token_id: int | None = None
    profile: Path | None = None  # instead of the one that is found


OnServing = Callable[[str], None]


class VllmServing:
    """Raises SpecError for what can't be started at all; then `run` it."""

    def __init__(self, setup: ServeSetup) -> None:
        self.setup = setup
        self.model = checked_model(setup.model)
        self.arguments = checked_arguments(setup.arguments, setup.tensor_parallel)
        refuse_ours(self.arguments)
        self.install = find_vllm(setup.python)
        check_hooks(self.install)
        check_port(setup.host, setup.port)
        device = device_name(setup.gpu, self.install.device)
        key = profile_key(setup.model, device, self.install.version, self.arguments)
        self.profile_path = setup.profile or path_of(key)
        self.profile = find(key) if setup.profile is None else read_profile(setup.profile)
        self._token = os.environ.get(CONTROL_TOKEN) or secrets.token_urlsafe(24)

    def run(self, say: OnServing, log_to: BinaryIO) -> None:
        """Serves until it is interrupted (KeyboardInterrupt), and then drains. Raises EngineCrash where vLLM fails."""
        reap_orphans()
        began_s = time.monotonic()
        with run_dir() as directory:
            say(f"starting vLLM {self.install.version} with {self.model}")
            log = directory / "engine.log"
            argv = [*self.install.server_argv(self.model), *to_flags({**self.arguments, **self._scheduling(directory)})]
            server = VllmServer.start(
                argv,
                self._environment(directory),
                self.setup.port,
                log,
                self.setup.start_timeout_s,
                bind=self.setup.host,
                api_key=self._token,
            )
            try:
                with forwarded(log, log_to):
                    self._serve(server, say, began_s)
            except Died as died:
                raise EngineCrash(died.evidence, time.monotonic() - began_s) from None
            finally:
                server.process.stop(GRACE_S)

    def _serve(self, server: VllmServer, say: OnServing, began_s: float) -> None:
        try:
            model = server.await_ready(self.setup.start_timeout_s)
            self._check_door(server)
            say(f"{model} is served at {server.base_url}/v1, ready after {time.monotonic() - began_s:.0f} s")
            while not server.has_exited():
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            self._drain(server, say)
            return
        raise server.died("load")

    def _check_door(self, server: VllmServer) -> None:
        """A server without it would keep nobody out. Raises SpecError."""
        if ask(server.base_url, "/sloguard/status", timeout_s=5.0, api_key=self._token).status != HTTPStatus.OK:
            problem = "runs a server that takes no middleware, so neither keys nor promises would be looked at"
            raise SpecError("--engine-python", self.install.python, problem, "Unset VLLM_USE_RUST_FRONTEND.")

    def _drain(self, server: VllmServer, say: OnServing) -> None:
        """Waits for what is under way; a second interrupt ends the wait."""
        deadline_s = time.monotonic() + self.setup.drain_timeout_s
        said = -1
        with suppress(KeyboardInterrupt):
            while time.monotonic() < deadline_s and not server.has_exited():
                left = self._in_flight(server)
                if left == 0:
                    break
                if left is not None and left != said:
                    said = left
                    say(draining(left))
                time.sleep(POLL_S)

    def _in_flight(self, server: VllmServer) -> int | None:
        """Requests under way, of which there will be no more; None from a server too busy to say, or that never came up
        (then its process ends the wait).
        """
        try:
            status = ask(server.base_url, "/sloguard/drain", timeout_s=5.0, body={}, api_key=self._token)
        except ConnectionRefusedError:
            return 0
        except OSError:
            return None
        return status.body["in_flight"] if status.status == 200 else None

    def _scheduling(self, run_dir: Path) -> dict[str, Value]:
        setup = self.setup
        options = Options(
            policy=setup.policy,
            policy_options=dict(setup.policy_options),
            slo_classes=setup.classes.classes,
            default_class=setup.classes.default,
            step_log=setup.step_log,
            boards=str(run_dir / "boards"),
            routed=CONTROL_TOKEN in os.environ,
            think_end_token_id=setup.think_end_token_id,
            batch_time=StepTimes.of(self.profile.fitted.batch_time) if self.profile else None,
        )
        # vLLM's own default is a server process for each data-parallel engine, each with a door that counts for itself
        one_door: dict[str, Value] = {"api_server_count": 1} if self.install.has_cli else {}
        scheduler = scheduler_arguments(options.model_dump(exclude_defaults=True))
        return {**scheduler, **one_door, "middleware": DOOR_CLASS}

    def _environment(self, run_dir: Path) -> dict[str, str]:
        setup = self.setup
        door = DoorOptions(
            slo_classes=setup.classes.classes,
            default_class=setup.classes.default,
            boards=str(run_dir / "boards"),
            max_requests=setup.max_requests,
            max_wait_s=setup.max_wait_s,
        )
        secret = {CONTROL_TOKEN: self._token, **({API_KEY: setup.api_key} if setup.api_key else {})}
        told = {DOOR: door.model_dump_json(exclude={"api_key", "control_token"}), **secret}
        metrics = {"PROMETHEUS_MULTIPROC_DIR": str(run_dir / "metrics")}
        inherited = server_environment(self.install)
        inherited.pop(API_KEY, None)  # a key is asked for where this server's user said so
        return inherited | lent_environment(self.install, state_dir()) | told | metrics


def draining(left: int) -> str:
    """What is said while `left` requests are waited for."""
    return f"draining: {left} request{'' if left == 1 else 's'} under way"


def check_port(host: str, port: int) -> None:
    """Raises SpecError for an address that nobody can listen on, before a model is loaded for a minute."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SpecError("--host", host, "is no address", "Give 127.0.0.1, or 0.0.0.0 for every interface.") from None
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                fix = "Give one that it has, or 0.0.0.0 for every interface."
                raise SpecError("--host", host, "is no address of this machine", fix) from error
            fix = "Give another --port, or see who has it: ss -tlnp."
            raise SpecError("--port", port, f"can't be listened on at {host} ({error.strerror})", fix) from error


@contextmanager
def run_dir() -> Iterator[Path]:
    """For the engine's log and what its processes share; gone afterwards, or when the next is made after a kill. Other
    machines may share the state directory: what is there is told by where it runs.
    """
    parent = state_dir() / "serving" / hashlib.sha256(place().encode()).hexdigest()[:12]
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.iterdir():
        owner = left.name.partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    for part in ("boards", "metrics"):
        (path / part).mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def forwarded(log: Path, to: BinaryIO, prefix: bytes = b"") -> Iterator[None]:
    """Copies what the engine writes as it writes it, so that a service manager keeps it; `prefix` before each line."""
    over = threading.Event()

    def follow() -> None:
        cut = b""  # a line whose end has not been written yet
        with log.open("r+b") as file:
            while True:
                last = over.is_set()
                while chunk := file.read(1 << 16):
                    if prefix:
                        *lines, cut = (cut + chunk).split(b"\n")
                        chunk = b"".join(prefix + line + b"\n" for line in lines)
                    with suppress(OSError, ValueError):  # whoever read it has gone: the engine goes on
                        to.write(chunk)
                        to.flush()
                if last:
                    return
                if file.tell() > LOG_BYTES:
                    file.truncate(0)
                    file.seek(0)
                over.wait(POLL_S)

    thread = threading.Thread(target=follow, name="engine log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5.0)
