"""The door of a server: what is decided of a request before the engine sees it. An ASGI middleware around vLLM's own
API (`--middleware sloguard.plugins.door.Door`) and around the emulator's.

    key        a wrong or missing API key: 401. Only /health, /ready and /metrics are open
    draining   no new work while the server is being shut down: 503
    promises   `x-slo-...` headers are put into the body's `vllm_xargs`, where the scheduler finds them; whatever of
               these can't be read, or contradicts the body: 400, naming the field
    overload   the scheduler serves late what it can't promise; once that would be very late (`max_wait_s`) best-effort
               requests are refused, and at twice that all are: 429 with Retry-After. Not those that ask for a promise
               where everybody gets it: what is left of an overload does not keep them waiting
    /ready     200 while the engine takes steps for what waits for it, else 503; for load balancers
    /sloguard  for whoever started the server, by a token of its own: `GET status`, `POST drain`. To such a one answers
               also bring how it stands with the scheduler, for its choice of a replica for the next request

Everything else goes through untouched.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from sloguard.errors import SpecError
from sloguard.plugins.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    Unreadable,
    answer,
    error_body,
    parsed,
    path_of,
    read_body,
    replay,
    set_length,
)
from sloguard.plugins.board import Boards
from sloguard.plugins.meters import refusals
from sloguard.plugins.options import DoorOptions
from sloguard.plugins.queue_wait import QueueWait
from sloguard.plugins.states import States
from sloguard.sched.asked import FIELDS, OF_ROUTERS, Asked, read_asked

OPEN = ("/health", "/ready", "/metrics")
TAKES_PROMISES = (  # vLLM has `vllm_xargs` in these; in the last since a later version than 0.28
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
)
GENERATES = (
    *TAKES_PROMISES,
    "/v1/chat/completions/batch",
    "/v1/systemone",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/cohere/v2/chat",
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
)
HEADERS = {name.replace("_", "-"): name for name in FIELDS}
CONTROL = "/sloguard/"
STATUS_PATH, DRAIN_PATH = f"{CONTROL}status", f"{CONTROL}drain"
STATE_HEADER = "x-sloguard-state"
LONGEST_HEADER_BYTES = 7000  # clients' libraries take 8190; a longer state is asked for
STALLED_S = 60.0  # without a step, though there is work
SILENT_S = 5.0  # an engine that has nothing to do says nothing: what it said of its queue holds no longer
LONGEST_RETRY_S = 60
REASONS = {401: "key", 503: "draining"}  # as refusals are counted; where 429 has two, it says which


@dataclass(slots=True)
class _InFlight:
    """`since_s`: since when each request waits for the engine; inf while its client is slow to take what there is, or
    talks over a websocket.
    """

    since_s: dict[int, float] = field(default_factory=dict[int, float])
    numbers: int = 0

    def enter(self, now_s: float) -> int:
        self.numbers += 1
        self.since_s[self.numbers] = now_s
        return self.numbers

    def noting(self, number: int, send: Send, clock: Callable[[], float]) -> Send:
        async def noted(message: Message) -> None:
            self.since_s[number] = math.inf
            await send(message)
            self.since_s[number] = clock()

        return noted


class _Refused(Exception):  # noqa: N818 - says what was done
    def __init__(
        self, status: int, message: str, param: str | None = None, retry_s: int | None = None, reason: str = ""
    ) -> None:
        self.status, self.message, self.param, self.retry_s = status, message, param, retry_s
        self.reason = reason or REASONS.get(status, "bad_request")
        super().__init__(message)


class Door:
    """`options` None: from the environment, as `sloguard serve` sets it. `why_not_ready` is asked where there is no
    engine behind the door; `more_status` is told to whoever started the server. Raises SpecError where the environment
    can't be read.
    """

    def __init__(
        self,
        app: App,
        options: DoorOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        registry: CollectorRegistry = REGISTRY,
        why_not_ready: Callable[[], str | None] = lambda: None,
        more_status: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._app, self._clock, self._refusals = app, clock, refusals(registry)
        self._why_app_is_not, self._more_status = why_not_ready, more_status
        self.options = options or DoorOptions.from_environment(os.environ)
        self._boards = Boards(Path(self.options.boards)) if self.options.boards else None
        self._states = States(Path(self.options.boards)) if self.options.boards else None
        self._wait = QueueWait()
        self._in_flight = _InFlight()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        try:
            self._check_key(scope)
        except _Refused as refused:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self._refuse(send, refused)
        if scope["type"] != "http":
            if self._draining:
                return await send({"type": "websocket.close", "code": 1012})
            return await self._counted(scope, receive, send, math.inf)
        path = path_of(scope)
        if path == "/ready":
            return await self._ready(send)
        if path.startswith(CONTROL):
            return await self._control(scope, path, send)
        if scope["method"] != "POST" or path not in GENERATES:
            return await self._app(scope, receive, send)
        try:
            receive = await self._let_in(scope, receive, path)
        except _Refused as refused:
            return await self._refuse(send, refused)
        return await self._counted(scope, receive, send, self._clock())

    async def _refuse(self, send: Send, refused: _Refused) -> None:
        self._refusals.labels(refused.reason).inc()
        await _answer_error(send, refused)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, since_s: float) -> None:
        number = self._in_flight.enter(since_s)
        if scope["type"] == "http":
            send = self._in_flight.noting(number, send, self._clock)
            if self._is_ours(scope):
                send = self._bringing_state(send)
        try:
            return await self._app(scope, receive, send)
        finally:
            del self._in_flight.since_s[number]

    def _check_key(self, scope: Scope) -> None:
        path = path_of(scope)
        if self.options.api_key is None or path in OPEN or path.startswith(CONTROL):
            return
        if scope.get("method") == "OPTIONS":  # a browser asks whether it may send the key
            return
        if not _bears(scope, self.options.api_key) and not self._is_ours(scope):
            raise _Refused(401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")

    def _is_ours(self, scope: Scope) -> bool:
        """Whether it comes from whoever started the server."""
        return self.options.control_token is not None and _bears(scope, self.options.control_token)

    async def _let_in(self, scope: Scope, receive: Receive, path: str) -> Receive:
        """What the app is to receive. Raises _Refused."""
        headers = _slo_headers(scope)
        if headers and path not in TAKES_PROMISES:
            raise _Refused(400, f"{path} takes no SLO headers: {' and '.join(TAKES_PROMISES)} do", next(iter(headers)))
        try:
            raw = await read_body(receive)
        except Unreadable as error:
            raise _Refused(error.status, str(error)) from error
        asked: Asked | None = None
        if path in TAKES_PROMISES:
            raw, asked = self._with_promises(scope, raw, headers)
        if self._draining:  # looked at last: a body may take its time
            raise _Refused(503, "the server is shutting down", retry_s=1)
        self._check_load(asked)
        return replay(raw, receive)

    def _with_promises(self, scope: Scope, raw: bytes, headers: Mapping[str, str]) -> tuple[bytes, Asked | None]:
        """The body with the headers in it, and what it asks for. Raises _Refused."""
        body = parsed(raw)
        given = {} if body is None else body.get("vllm_xargs")
        given = {} if given is None else given
        if body is None or not isinstance(given, Mapping):
            return raw, None  # the engine says what is wrong with it
        if not self._is_ours(scope) and (routers := next((name for name in OF_ROUTERS if name in given), None)):
            raise _Refused(400, f"{routers} is for routers. There are {', '.join(FIELDS)}", routers)
        asked = self._asked(given, headers)
        if headers:
            raw = json.dumps(body | {"vllm_xargs": {**given, **headers}}).encode()
            set_length(scope, len(raw))
        return raw, asked

    def _asked(self, given: Mapping[str, object], headers: Mapping[str, str]) -> Asked:
        try:
            for name, value in headers.items():
                if name in given and not _same(given[name], value):
                    raise SpecError(name, value, f"the body says {given[name]!r}", "Give one of them.")
            return read_asked({**given, **headers}, self.options.classes, self.options.default_class)
        except SpecError as error:
            raise _Refused(400, str(error), error.field) from error

    # Overload.

    def _check_load(self, asked: Asked | None) -> None:
        if len(self._in_flight.since_s) >= self.options.max_requests:
            problem = f"the server has {self.options.max_requests} requests under way"
            raise _Refused(429, problem, retry_s=1, reason="max_requests")
        notice, now_s = self._boards.read() if self._boards else None, self._clock()
        if notice is None or now_s - notice.step_s > SILENT_S:
            return
        self._wait.see(now_s, notice)
        best_effort = asked is not None and asked.best_effort
        wait_s, most_s = self._wait.wait_s(now_s), self.options.max_wait_s * (1 if best_effort else 2)
        promised = asked is not None and not best_effort and now_s - notice.put_off_s > SILENT_S
        if wait_s > most_s and not promised:
            retry_s = LONGEST_RETRY_S if math.isinf(wait_s) else math.ceil(wait_s - most_s)
            retry_s = min(max(retry_s, 1), LONGEST_RETRY_S)
            raise _Refused(429, "the server is overloaded", retry_s=retry_s, reason="overload")

    # For load balancers and for whoever started the server.

    def _why_not_ready(self) -> str | None:
        if self._draining:
            return "shutting down"
        if self._boards is None:
            return self._why_app_is_not()
        if self._boards.read() is None:
            return "the engine has not started"
        if self._stalled_s() > STALLED_S:
            return f"requests are under way, but the engine has taken no step for {STALLED_S:.0f} s"
        return None

    def _stalled_s(self) -> float:
        """For how long the engine has taken no step while requests waited for it."""
        notice = self._boards.read() if self._boards else None
        oldest_s = min(self._in_flight.since_s.values(), default=math.inf)
        return max(0.0, self._clock() - max(notice.step_s, oldest_s)) if notice else 0.0

    async def _ready(self, send: Send) -> None:
        why = self._why_not_ready()
        await answer(send, 503 if why else 200, {"ready": why is None, **({"why": why} if why else {})})

    async def _control(self, scope: Scope, path: str, send: Send) -> None:
        asked = (scope["method"], path)
        if not self._is_ours(scope) or asked not in (("GET", STATUS_PATH), ("POST", DRAIN_PATH)):
            return await _answer_error(send, _Refused(404, "Not Found"))
        if path == DRAIN_PATH:
            self.drain()
        return await answer(send, 200, self._status())

    def _status(self) -> dict[str, Any]:
        return {
            "draining": self._draining,
            "in_flight": len(self._in_flight.since_s),
            "why": self._why_not_ready() or "",
            "stalled_s": self._stalled_s(),
            **self._state(),
            **self._more_status(),
        }

    def _state(self) -> dict[str, Any]:
        """The scheduler's, and how old it is."""
        found = self._states.read() if self._states else None
        if found is None:
            return {}
        number, taken_s, text = found
        return {"number": number, "age_s": max(0.0, self._clock() - taken_s), "state": json.loads(text)}

    def _bringing_state(self, send: Send) -> Send:
        async def bringing(message: Message) -> None:
            if message["type"] == "http.response.start":
                state = json.dumps(self._status(), separators=(",", ":")).encode()
                if len(state) <= LONGEST_HEADER_BYTES:
                    message["headers"] = [*message.get("headers", ()), (STATE_HEADER.encode(), state)]
            await send(message)

        return bringing

    def drain(self) -> int:
        """Lets nobody in any more. Returns how many requests are under way."""
        self._draining = True
        return len(self._in_flight.since_s)


def _bears(scope: Scope, secret: str) -> bool:
    given = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
    kind, _, token = given.partition(b" ")
    return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), secret.encode(errors="surrogateescape"))


def _slo_headers(scope: Scope) -> dict[str, str]:
    """Values by the names of `vllm_xargs`. Raises _Refused for one that is given twice or is unknown."""
    found: dict[str, str] = {}
    for raw_name, value in scope["headers"]:
        header = raw_name.lower()
        if not header.startswith(b"x-slo-"):
            continue
        text = header.decode("latin-1").removeprefix("x-")
        if text not in HEADERS:
            raise _Refused(400, f"no such header: x-{text}. There are {', '.join(f'x-{name}' for name in HEADERS)}")
        if HEADERS[text] in found:
            raise _Refused(400, f"x-{text} is given twice", HEADERS[text])
        found[HEADERS[text]] = value.decode("latin-1").strip()
    return found


def _same(given: object, text: str) -> bool:
    """Whether a value of the body says what a header says: 500, 500.0 and "500" are one."""
    try:
        return str(given) == text or float(str(given)) == float(text)
    except ValueError:
        return False


async def _answer_error(send: Send, refused: _Refused) -> None:
    error = error_body(refused.status, refused.message, refused.param)
    extra = [] if refused.retry_s is None else [(b"retry-after", str(refused.retry_s).encode())]
    if refused.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await answer(send, refused.status, {"error": error}, extra)
