"""`sloguard serve --engine emulator`: the emulator behind the same door and with the same metrics as a real server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator import emulator_app
from sloguard.plugins.board import Board, Notice
from sloguard.plugins.door import App, Door
from sloguard.plugins.meters import Meters
from sloguard.plugins.options import DoorOptions
from sloguard.sched.job import Job, Tier

LOOK_S = 0.25
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


class _Watch:
    """Tells the meters and the door of the emulated engine what a scheduler inside vLLM tells them itself."""

    def __init__(self, board: Board, registry: CollectorRegistry) -> None:
        self._board, self._meters = board, Meters(registry)
        self._ended = self._steps = 0

    def finished(self, job: Job, now_s: float, completed: bool) -> None:
        self._ended += job.first_token_s is not None
        self._meters.finished(job, now_s, completed)

    def look(self, app: FastAPI) -> None:
        replica = app.state.replica
        if app.state.time.fault:
            return  # the door sees that nothing happens any more
        running, waiting = list(replica.running.values()), replica.queued
        best_effort = sum(job.tier is Tier.BEST_EFFORT for job in waiting)
        begun = sum(job.first_token_s is not None for job in (*running, *waiting))  # evicted ones wait again
        started = self._ended + begun
        self._board.put(Notice(monotonic(), len(running), len(waiting) - best_effort, best_effort, started))
        self._meters.holds(app.state.time.now_s(), running, waiting, None)
        self._meters.kept_order(replica.stats.steps - self._steps)
        self._steps = replica.stats.steps


def served_app(emulated: Emulated, name: str, options: DoorOptions, directory: Path) -> App:
    """The whole of what listens, as an ASGI app; `directory` is empty and stays until it has ended. Raises SpecError as
    `emulator_app` does.
    """
    registry = CollectorRegistry()
    watch = _Watch(Board(directory), registry)
    app = emulator_app(emulated, name, options.classes, options.default_class, watch)
    app.add_api_route("/metrics", lambda: Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST))
    app.router.lifespan_context = _watched(watch, app.router.lifespan_context)
    return Door(app, options.model_copy(update={"boards": str(directory)}))


def _watched(watch: _Watch, inner: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            task = asyncio.create_task(_look_on(watch, app))
            try:
                yield
            finally:
                task.cancel()

    return lifespan


async def _look_on(watch: _Watch, app: FastAPI) -> None:
    while True:
        watch.look(app)
        await asyncio.sleep(LOOK_S)


def serve_emulator(
    emulated: Emulated, name: str, options: DoorOptions, host: str, port: int, drain_timeout_s: float
) -> None:
    """Serves until a signal; then lets what is under way finish, up to `drain_timeout_s`. Raises SpecError."""
    with tempfile.TemporaryDirectory() as directory:
        app = served_app(emulated, name, options, Path(directory))
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=ceil(drain_timeout_s)
        )
        uvicorn.Server(config).run()
