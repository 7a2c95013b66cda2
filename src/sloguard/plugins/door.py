"""The door of a server: what is decided of a request before the engine sees it. An ASGI middleware around vLLM's own
API (`--middleware sloguard.plugins.door.Door`) and around the emulator's.

    key        a wrong or missing API key: 401. Only /health, /ready and /metrics are open
    draining   no new work while the server is being shut down: 503
    promises   `x-slo-...` headers are put into the body's `vllm_xargs`, where the scheduler finds them; whatever of
               these can't be read, or contradicts the body: 400, naming the field
    overload   the scheduler serves late what it can't promise; once that would be very late (`max_wait_s`) best-effort
               requests are refused, and at twice that all are: 429 with Retry-After
    /ready     200 while the engine takes steps for what waits for it, else 503; for load balancers
    /sloguard  for whoever started the server, by a token of its own: `GET status`, `POST drain`

Everything else goes through untouched.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from sloguard.errors import SpecError
from sloguard.plugins.board import Boards
from sloguard.plugins.meters import refusals
from sloguard.plugins.options import DoorOptions
from sloguard.plugins.queue_wait import QueueWait
from sloguard.sched.asked import FIELDS, Asked, read_asked

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

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
LARGEST_BODY_BYTES = 64 << 20
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
    """`options` None: from the environment, as `sloguard serve` sets it. Raises SpecError where that can't be read."""

    def __init__(
        self,
        app: App,
        options: DoorOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._app, self._clock, self._refusals = app, clock, refusals(registry)
        self.options = options or DoorOptions.from_environment(os.environ)
        self._boards = Boards(Path(self.options.boards)) if self.options.boards else None
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
        path = _path(scope)
        if path == "/ready":
            return await self._ready(send)
        if path.startswith("/sloguard/"):
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
        try:
            return await self._app(scope, receive, send)
        finally:
            del self._in_flight.since_s[number]

    def _check_key(self, scope: Scope) -> None:
        path = _path(scope)
        if self.options.api_key is None or path in OPEN or path.startswith("/sloguard/"):
            return
        if scope.get("method") == "OPTIONS":  # a browser asks whether it may send the key
            return
        token = self.options.control_token  # whoever started the server asks it whether it serves
        if not _bears(scope, self.options.api_key) and not (token and _bears(scope, token)):
            raise _Refused(401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")

    async def _let_in(self, scope: Scope, receive: Receive, path: str) -> Receive:
        """What the app is to receive. Raises _Refused."""
        headers = _slo_headers(scope)
        if headers and path not in TAKES_PROMISES:
            raise _Refused(400, f"{path} takes no SLO headers: {' and '.join(TAKES_PROMISES)} do", next(iter(headers)))
        raw = await _body(receive)
        best_effort = False
        if path in TAKES_PROMISES:
            raw, best_effort = self._with_promises(scope, raw, headers)
        if self._draining:  # looked at last: a body may take its time
            raise _Refused(503, "the server is shutting down", retry_s=1)
        self._check_load(best_effort)
        return _replay(raw, receive)

    def _with_promises(self, scope: Scope, raw: bytes, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        """The body with the headers in it, and whether it is best effort. Raises _Refused."""
        body = _parsed(raw)
        given = {} if body is None else body.get("vllm_xargs")
        given = {} if given is None else given
        if body is None or not isinstance(given, Mapping):
            return raw, False  # the engine says what is wrong with it
        asked = self._asked(given, headers)
        if headers:
            raw = json.dumps(body | {"vllm_xargs": {**given, **headers}}).encode()
            _set_length(scope, len(raw))
        return raw, asked.best_effort

    def _asked(self, given: Mapping[str, object], headers: Mapping[str, str]) -> Asked:
        try:
            for name, value in headers.items():
                if name in given and not _same(given[name], value):
                    raise SpecError(name, value, f"the body says {given[name]!r}", "Give one of them.")
            return read_asked({**given, **headers}, self.options.classes, self.options.default_class)
        except SpecError as error:
            raise _Refused(400, str(error), error.field) from error

    # Overload.

    def _check_load(self, best_effort: bool) -> None:
        if len(self._in_flight.since_s) >= self.options.max_requests:
            problem = f"the server has {self.options.max_requests} requests under way"
            raise _Refused(429, problem, retry_s=1, reason="max_requests")
        notice, now_s = self._boards.read() if self._boards else None, self._clock()
        if notice is None or now_s - notice.step_s > SILENT_S:
            return
        self._wait.see(now_s, notice)
        wait_s, most_s = self._wait.wait_s(now_s), self.options.max_wait_s * (1 if best_effort else 2)
        if wait_s > most_s:
            retry_s = LONGEST_RETRY_S if math.isinf(wait_s) else math.ceil(wait_s - most_s)
            retry_s = min(max(retry_s, 1), LONGEST_RETRY_S)
            raise _Refused(429, "the server is overloaded", retry_s=retry_s, reason="overload")

    # For load balancers and for whoever started the server.

    def _why_not_ready(self) -> str | None:
        if self._draining:
            return "shutting down"
        notice = self._boards.read() if self._boards else None
        if self._boards and notice is None:
            return "the engine has not started"
        oldest_s = min(self._in_flight.since_s.values(), default=math.inf)
        if notice and self._clock() - max(notice.step_s, oldest_s) > STALLED_S:
            return f"requests are under way, but the engine has taken no step for {STALLED_S:.0f} s"
        return None

    async def _ready(self, send: Send) -> None:
        why = self._why_not_ready()
        await _answer(send, 503 if why else 200, {"ready": why is None, **({"why": why} if why else {})})

    async def _control(self, scope: Scope, path: str, send: Send) -> None:
        if self.options.control_token is None or not _bears(scope, self.options.control_token):
            return await _answer_error(send, _Refused(404, "Not Found"))
        if (scope["method"], path) == ("POST", "/sloguard/drain"):
            self.drain()
        elif (scope["method"], path) != ("GET", "/sloguard/status"):
            return await _answer_error(send, _Refused(404, "Not Found"))
        status = {"draining": self._draining, "in_flight": len(self._in_flight.since_s)}
        return await _answer(send, 200, status)

    def drain(self) -> int:
        """Lets nobody in any more. Returns how many requests are under way."""
        self._draining = True
        return len(self._in_flight.since_s)


def _path(scope: Scope) -> str:
    """Below the root path, as Starlette routes it."""
    root, path = scope.get("root_path", ""), scope["path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


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


async def _body(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the client hung up")
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY_BYTES:
            raise _Refused(413, f"the body is longer than {LARGEST_BODY_BYTES} bytes")
        more = message.get("more_body", False)
    return bytes(body)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _replay(raw: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes after it, such as the client's hanging up."""
    waiting: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _set_length(scope: Scope, length: int) -> None:
    others = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    scope["headers"] = [*others, (b"content-length", str(length).encode())]


TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "RequestEntityTooLargeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


async def _answer_error(send: Send, refused: _Refused) -> None:
    error = {"message": refused.message, "type": TYPES[refused.status], "param": refused.param, "code": refused.status}
    extra = [] if refused.retry_s is None else [(b"retry-after", str(refused.retry_s).encode())]
    if refused.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await _answer(send, refused.status, {"error": error}, extra)


async def _answer(send: Send, status: int, body: Any, extra: list[tuple[bytes, bytes]] | None = None) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
