"""What a middleware needs of ASGI: types, bodies read whole, and answers in vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY_BYTES = 64 << 20
TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    413: "RequestEntityTooLargeError",
    429: "RateLimitError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
}


class Unreadable(Exception):  # noqa: N818 - says what the body is
    """A body that can't be taken, and the `status` that says so."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def path_of(scope: Scope) -> str:
    """Below the root path, as Starlette routes it."""
    root, path = scope.get("root_path", ""), scope["path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


async def read_body(receive: Receive) -> bytes:
    """Raises Unreadable for one that is too long, or whose client hangs up."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unreadable(400, "the client hung up")
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY_BYTES:
            raise Unreadable(413, f"the body is longer than {LARGEST_BODY_BYTES} bytes")
        more = message.get("more_body", False)
    return bytes(body)


def replay(raw: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes after it, such as the client's hanging up."""
    waiting: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def set_length(scope: Scope, length: int) -> None:
    """Of a body that is another now."""
    others = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    scope["headers"] = [*others, (b"content-length", str(length).encode())]


def parsed(raw: bytes) -> dict[str, Any] | None:
    """The object that it is in JSON; None for anything else."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """As vLLM writes it."""
    return {"message": message, "type": TYPES[status], "param": param, "code": status}


async def answer(send: Send, status: int, body: Any, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """JSON."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
