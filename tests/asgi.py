"""A client of an ASGI app, without a server between them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
HANG_UP: Message = {"type": "http.disconnect"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parts_of(*parts: bytes) -> list[Message]:
    """A body that comes in these chunks."""
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": at < last} for at, part in enumerate(parts)]


async def call(
    app: App,
    path: str,
    body: bytes | Sequence[Message] = b"",
    headers: Headers = (),
    method: str = "POST",
    root_path: str = "",
) -> Answer:
    """What the app answers; `body` may be the messages that it receives, after which the client hangs up."""
    coming = parts_of(body) if isinstance(body, bytes) else list(body)
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else HANG_UP

    async def send(message: Message) -> None:
        sent.append(message)

    length = [(b"content-length", str(len(body)).encode())] if isinstance(body, bytes) else []
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": [*length, *headers]}
    await app(scope, receive, send)
    start, *rest = sent
    named = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], named, b"".join(message.get("body", b"") for message in rest))
