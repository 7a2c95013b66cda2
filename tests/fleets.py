"""Emulated replicas behind a gateway, each with a socket and a thread of its own."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator_server import served_app
from sloguard.fleet.link import HttpLink, session
from sloguard.fleet.members import Members
from sloguard.fleet.server import gateway_app
from sloguard.plugins.asgi import App
from sloguard.plugins.options import DoorOptions, Promise

MODEL, GPU, NAME, TOKEN = "Qwen/Qwen2-1.5B", "H100", "m", "control"
PATIENCE_S = 30.0
CLASSES = {"chat": Promise(ttft_ms=500, tpot_ms=50), "batch": Promise()}


class Running:
    """An app that listens on a port of its own."""

    def __init__(self, app: App) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive())

    def cut(self) -> None:
        """As if its machine were gone: nothing is finished, and nobody listens any more."""
        self._server.servers[0].get_loop().call_soon_threadsafe(self._abort)
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def _abort(self) -> None:
        self._server.servers[0].close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@dataclass
class Fleet:
    gateway: Running
    replicas: list[Running]

    def ask(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        with closing(self.connect()) as connection:
            response = self.begin(connection, path, body, headers)
            text = response.read().decode()
        return response.status, text, {name.lower(): value for name, value in response.getheaders()}

    def post(self, path: str, **body: Any) -> Any:
        status, text, _ = self.ask(path, body)
        assert status == 200, text
        return json.loads(text)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.gateway.url).netloc, timeout=PATIENCE_S)

    def begin(
        self, connection: http.client.HTTPConnection, path: str, body: object, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        sent = None if body is None else json.dumps(body)
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request("GET" if body is None else "POST", path, sent, given)
        return connection.getresponse()

    def metrics(self) -> dict[str, float]:
        lines = self.ask("/metrics")[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def count(self, name: str) -> float:
        """Over all labels."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)


@contextmanager
def fleet(
    directory: Path, replicas: int = 2, router: str = "headroom", silent_s: float = 2.0, **emulated: Any
) -> Iterator[Fleet]:
    with ExitStack() as stack:
        running: list[Running] = []
        for number in range(replicas):
            place = directory / str(number)
            place.mkdir()
            options = DoorOptions(slo_classes=CLASSES, control_token=TOKEN, api_key=TOKEN)
            app = served_app(Emulated(MODEL, GPU, **emulated), NAME, options, place)
            running.append(Running(app))
            stack.callback(running[-1].close)
        names = [(f"r{number}", replica.url) for number, replica in enumerate(running)]
        door = DoorOptions(slo_classes=CLASSES, control_token=TOKEN)
        made = Fleet(Running(gateway_app(door, router, listed(names), silent_s)), running)
        stack.callback(made.gateway.close)
        until(lambda: made.ask("/ready")[0] == (200 if replicas else 503))
        until(lambda: made.count("sloguard_replica_up") == replicas)
        yield made


def listed(names: list[tuple[str, str]]) -> Callable[[Members], Any]:
    @asynccontextmanager
    async def followed(members: Members) -> AsyncGenerator[None]:
        async with session() as client:
            members.set([HttpLink(client, name, url, TOKEN) for name, url in names])
            yield

    return followed


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
