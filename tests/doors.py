"""Doors to test, with an app behind them that keeps what it is given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from asgi import Answer, Headers, Message, call
from sloguard.plugins.board import Board, Notice
from sloguard.plugins.door import Door
from sloguard.plugins.options import DoorOptions

COMPLETE = "/v1/completions"
OPTIONS = DoorOptions.model_validate(
    {
        "slo_classes": {"chat": {"ttft_ms": 500, "tpot_ms": 50}, "batch": {}},
        "api_key": "the-key",
        "control_token": "the-token",
    }
)
KEY = [(b"authorization", b"Bearer the-key")]
TOKEN = [(b"authorization", b"Bearer the-token")]
OPEN_DOOR = OPTIONS.model_copy(update={"api_key": None})


class Engine:
    """Reads each request whole and answers 200, once `held` is set; keeps what it was given."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []
        self.bodies: list[bytes] = []
        self.held: asyncio.Event | None = None
        self.after: list[Message] = []  # what came after each body

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        self.after.append(await receive())
        if self.held is not None:
            await self.held.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def asked(
    body: bytes | dict[str, Any] | list[Message] = b"{}",
    headers: Headers = (),
    path: str = COMPLETE,
    options: DoorOptions = OPEN_DOOR,
    **more: str,
) -> tuple[Answer, Engine]:
    engine = Engine()
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    return asyncio.run(call(Door(engine, options), path, raw, headers, **more)), engine


def refusal(answer: Answer) -> tuple[int, str | None, str]:
    """(status, param, message), each as OpenAI's clients read them."""
    error = answer.json["error"]
    assert error["code"] == answer.status
    assert int(answer.headers["content-length"]) == len(answer.body)
    return answer.status, error["param"], error["message"]


class Busy:
    """A door whose engine's notices and clock are ours."""

    def __init__(self, directory: Path, **options: float) -> None:
        self.clock, self.engine, self.board = Clock(), Engine(), Board(directory, "engine")
        told = {"boards": str(directory), **options}
        self.door = Door(self.engine, OPEN_DOOR.model_copy(update=told), self.clock)

    def tell(self, waiting: int, started: int, put_off: bool = True) -> None:
        """`put_off`: whether somebody who asked for a promise has just got none."""
        now_s = self.clock.now_s
        self.board.put(Notice(now_s, 8, 0, waiting, started, now_s if put_off else 0.0))

    def queue(self, waiting: int, started_per_s: float, for_s: float = 10.0, put_off: bool = True) -> None:
        """The same queue for a while, looked at twice a second."""
        began_s = self.clock.now_s
        while (past_s := self.clock.now_s - began_s) <= for_s:
            self.tell(waiting, int(past_s * started_per_s), put_off)
            self.ask(best_effort=True)
            self.clock.now_s += 0.5

    def ask(self, best_effort: bool) -> Answer:
        xargs = {} if best_effort else {"slo_class": "chat"}
        return asyncio.run(call(self.door, COMPLETE, json.dumps({"vllm_xargs": xargs}).encode()))

    def ready(self) -> Answer:
        return asyncio.run(call(self.door, "/ready", method="GET"))
