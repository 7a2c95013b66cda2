"""The page of a study while it is made, over HTTP: whoever looks at it is told when the log has grown.

GET /         the page as the log is now
GET /events   server-sent events: `change`, at once and whenever the study on disk is another
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from threading import Lock

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sloguard.errors import SloguardError
from sloguard.page.page import Page, Verdict, render
from sloguard.page.tune import tune_page
from sloguard.study.log import StudyLog
from sloguard.study.record import BEST_NAME, read_record

POLL_S = 0.5  # a look at two files
STILL_HERE_S = 15.0  # proxies close what is silent for longer

State = tuple[tuple[int, int] | None, ...]


def watch_app(directory: Path, host: str, api_key: str | None, ended: Callable[[], bool]) -> FastAPI:
    """Serves the study in `directory`, which need not have begun, to who brings the key: `?key=` or a bearer token.
    On a loopback `host` other names of it are refused, so that no page from elsewhere can read this one. Those who
    listen for changes are let go once `ended` says so.
    """
    app = FastAPI(title="sloguard watch", docs_url=None, redoc_url=None, openapi_url=None)
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1", "[::1]"])
    pages = _Pages(directory)

    def allowed(request: Request) -> bool:
        told = request.query_params.get("key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return api_key is None or hmac.compare_digest(told.encode(), api_key.encode())

    @app.get("/")
    def page(request: Request) -> Response:
        return HTMLResponse(pages.now(), headers={"cache-control": "no-store"}) if allowed(request) else _refused()

    @app.get("/events")
    async def events(request: Request) -> Response:
        headers = {"cache-control": "no-store"}
        return (
            StreamingResponse(_changes(directory, ended), 200, headers, "text/event-stream")
            if allowed(request)
            else _refused()
        )

    return app


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine can ask there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _refused() -> Response:
    return PlainTextResponse("Give the key: /?key=...", 401)


class _Pages:
    """The page of the newest state, made once for all who ask."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._made: tuple[State, str] | None = None

    def now(self) -> str:
        with self._lock:
            state = _state(self._directory)
            if self._made is None or self._made[0] != state:
                self._made = state, render(_page(self._directory), live=True)
            return self._made[1]


def _page(directory: Path) -> Page:
    """Of the study; where there is none yet, or none that can be read, a page that says so."""
    log = StudyLog(directory)
    try:
        if not log.exists() or not log.trials():
            return Page(f"Tuning in {directory}", "", Verdict("good", "Nothing yet", "The first trial has not ended."))
        return tune_page(read_record(directory), live=True)
    except SloguardError as error:
        return Page(f"Tuning in {directory}", "", Verdict("bad", "This study can't be read", str(error)))


async def _changes(directory: Path, ended: Callable[[], bool]) -> AsyncIterator[str]:
    seen, silent_s = None, 0.0
    while not ended():
        if (state := _state(directory)) != seen:
            seen, silent_s = state, 0.0
            yield "event: change\ndata:\n\n"
        elif silent_s >= STILL_HERE_S:
            silent_s = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)
        silent_s += POLL_S


def _state(directory: Path) -> State:
    """Another whenever one of the files that the page is made of is."""
    return tuple(_stamp(path) for path in (StudyLog(directory).path, directory / BEST_NAME))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_size, told.st_mtime_ns
