"""`sloguard serve --engine emulator`: the emulator behind the same door and with the same metrics as a real server."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator import emulator_app
from sloguard.engine.serving import OnServing, draining
from sloguard.load.preflight import EMULATED
from sloguard.plugins.board import Board, notice_of
from sloguard.plugins.door import Door
from sloguard.plugins.meters import Meters
from sloguard.plugins.options import DoorOptions
from sloguard.plugins.states import StateBoard
from sloguard.sched.job import Job
from sloguard.sim.cluster import state_of

LOOK_S = 0.25
POLL_S = 0.1
STATE_S = 0.02  # routers look at it about as often
TICKETS = 64
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


class _Watch:
    """Tells the meters and the door of the emulated engine what a scheduler inside vLLM tells them itself."""

    def __init__(self, board: Board, states: StateBoard, registry: CollectorRegistry) -> None:
        self._board, self._states, self._meters = board, states, Meters(registry)
        self._ended = self._steps = 0
        self._tickets: deque[str] = deque(maxlen=TICKETS)

    def came(self, ticket: str) -> None:
        self._tickets.append(ticket)

    def declined(self, job: Job) -> None:
        self._meters.declined()

    def finished(self, job: Job, now_s: float, completed: bool) -> None:
        self._ended += job.first_token_s is not None
        self._meters.finished(job, now_s, completed)

    def look(self, app: FastAPI) -> None:
        replica = app.state.replica
        if app.state.time.fault:
            return  # the door sees that nothing happens any more
        running, waiting = list(replica.running.values()), replica.queued
        begun = sum(job.first_token_s is not None for job in (*running, *waiting))  # evicted ones wait again
        started = self._ended + begun
        self._board.put(notice_of(monotonic(), len(running), waiting, started, app.state.time.began_s))
        self._meters.holds(app.state.time.now_s(), running, waiting, None)
        self._meters.kept_order(replica.stats.steps - self._steps)
        self._steps = replica.stats.steps

    def tell(self, app: FastAPI) -> None:
        state = state_of(app.state.replica)
        self._states.put(state, app.state.time.began_s + state.taken_s, self._tickets)


def served_app(emulated: Emulated, name: str, options: DoorOptions, directory: Path) -> Door:
    """The whole of what listens, as an ASGI app; `directory` is empty and stays until it has ended. Raises SpecError as
    `emulator_app` does.
    """
    registry = CollectorRegistry()
    watch = _Watch(Board(directory), StateBoard(directory), registry)
    app = emulator_app(emulated, name, options.classes, options.default_class, watch)
    app.add_api_route("/metrics", lambda: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST))
    app.router.lifespan_context = _watched(watch, app.router.lifespan_context)
    return Door(app, options.model_copy(update={"boards": str(directory)}), registry=registry)


def _watched(watch: _Watch, inner: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            tasks = [
                asyncio.create_task(_each(LOOK_S, lambda: watch.look(app))),
                asyncio.create_task(_each(STATE_S, lambda: watch.tell(app))),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    return lifespan


async def _each(seconds: float, do: Callable[[], None]) -> None:
    while True:
        do()
        await asyncio.sleep(seconds)


class _Draining(uvicorn.Server):
    """A first signal lets nobody in any more, and tells those who ask so, until what is under way is done; a second one
    ends it.
    """

    def __init__(self, config: uvicorn.Config, door: Door, drain_timeout_s: float, say: OnServing, served: str) -> None:
        super().__init__(config)
        self._door, self._drain_timeout_s, self._say, self._served = door, drain_timeout_s, say, served
        self._drains: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._say(self._served)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The engine first: it tells whoever still waits, and uvicorn would cancel it where it has to hurry."""
        await self.lifespan.shutdown()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drains is None and self.started:
            self._drains = self._loop.create_task(self._drain())
            self._loop.call_soon_threadsafe(lambda: None)  # a signal wakes nobody
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        deadline_s = monotonic() + self._drain_timeout_s
        said = 0
        while (left := self._door.drain()) and monotonic() < deadline_s:
            if left != said:
                said = left
                self._say(draining(left))
            await asyncio.sleep(POLL_S)
        self.should_exit = True


def serve_emulator(
    emulated: Emulated,
    name: str,
    options: DoorOptions,
    host: str,
    port: int,
    drain_timeout_s: float,
    say: OnServing,
) -> None:
    """Serves until a signal; then lets what is under way finish, up to `drain_timeout_s`. Raises SpecError."""
    with tempfile.TemporaryDirectory() as directory:
        app = served_app(emulated, name, options, Path(directory))
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
        config.headers = [(EMULATED, str(emulated.gpu))]
        served = f"{name} is served at http://{host}:{port}/v1 by an emulated {emulated.gpu}: answers are filler"
        _Draining(config, app, drain_timeout_s, say, served).run()
