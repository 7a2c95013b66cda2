"""Counts the tokens of one streamed completion and notes when each arrived.

Not every event carries one token: a speculating engine sends several in one event, a busy server merges steps, and
role, usage and finish events carry none. How many an event carried is taken from, in this order,

1. the ids of its tokens (`return_token_ids`);
2. how far the running usage moved (`continuous_usage_stats`);
3. the final usage, spread evenly over the events that carried text;
4. one for every event that carried text.

1 and 2 are the engine's own count of that event, 3 and 4 are estimates: `Counting` says which it was.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

TOKENS_LIMIT = 10_000_000  # of one answer; beyond it the server's count is nonsense, and would be laid out in memory
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a chat delta; any of them is output


_Kind = TypeVar("_Kind")


class Counting(StrEnum):
    EXACT = "exact"
    SPREAD = "spread over chunks by the final usage"
    CHUNKS = "one token for every chunk with text (the server gave no usage)"


class StreamError(Exception):
    """The server reported an error inside the stream, or sent what is not a stream of completion events."""


class TokenStream:
    """Server-sent events of one completion (either API). `feed(body, at_s)` as bytes arrive, `close()` at their end.

    `at_s`, `counts`: [token-carrying events] instants and tokens of each; an estimated event counts 1 until the end.
    """

    __slots__ = ("_estimated", "_rest", "at_s", "counted", "counts", "done", "finish_reason", "prompt_tokens", "total")

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.counts: list[int] = []
        self.counted = 0
        self.total: int | None = None  # completion tokens by the last usage seen
        self.prompt_tokens: int | None = None
        self.finish_reason: str | None = None
        self.done = False  # [DONE] was seen
        self._estimated = False
        self._rest = b""

    def feed(self, body: bytes, at_s: float) -> None:
        """Raises StreamError on an error event or on what is no event."""
        if self._rest:
            body = self._rest + body
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")  # half a line end stays in _rest and meets its other half there
        end = body.rfind(b"\n\n")
        if end < 0:
            self._rest = body
            return
        self._rest = body[end + 2 :]
        for event in body[:end].split(b"\n\n"):
            self._event(event, at_s)

    def close(self, at_s: float) -> None:
        """The body has ended: reads an event that lacks its blank line. Raises StreamError where no event came."""
        if self._rest.strip():
            self._event(self._rest.replace(b"\r", b""), at_s)
            self._rest = b""
        if not self.done and self.finish_reason is None:
            raise StreamError("the stream ended before the answer did" if self.at_s else "the stream held no answer")

    @property
    def counting(self) -> Counting:
        if not self._estimated:
            return Counting.EXACT
        return Counting.CHUNKS if self.total is None else Counting.SPREAD

    @property
    def output_tokens(self) -> int:
        if self.counting is Counting.SPREAD:
            return self.total or 0
        return max(self.counted, self.total or 0)

    def token_s(self) -> NDArray[np.float64]:
        """[output_tokens] the instant of each token; empty where no event carried any."""
        return np.repeat(np.array(self.at_s, dtype=np.float64), self.chunk_tokens())

    def chunk_tokens(self) -> NDArray[np.int32]:
        """[token-carrying events] the tokens of each in the end; 0 where the usage gives fewer tokens than events."""
        events = len(self.at_s)
        if events and self.counting is Counting.SPREAD:
            event_of_token = np.rint(np.linspace(0, events - 1, self.output_tokens)).astype(np.intp)
            return np.bincount(event_of_token, minlength=events).astype(np.int32)
        counts = np.array(self.counts, dtype=np.int32)
        if events:
            counts[-1] += self.output_tokens - self.counted  # e.g. a stop token that only the usage shows
        return counts

    def _event(self, event: bytes, at_s: float) -> None:
        if event.startswith(b"data: {") and b"\n" not in event:
            # The common event of a long run: its running usage is found without parsing it. The pattern can't occur
            # inside generated text, where the quote before the colon is escaped.
            found = event.rfind(b'"completion_tokens":')
            if found >= 0 and b'"finish_reason":null' in event and b'token_ids":[' not in event:
                digits = event[found + 20 : found + 32].partition(b",")[0].partition(b"}")[0]
                if digits.isdigit() and not self._estimated:
                    self._count(int(digits) - self.counted, at_s)
                    return
            self._data(event[6:], at_s)
            return
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            self._data(b"\n".join(lines), at_s)
        elif event.lstrip().startswith((b"{", b"<")):
            raise StreamError(f"not an event stream: {event[:120].decode(errors='replace')}")

    def _data(self, data: bytes, at_s: float) -> None:
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamError(f"not JSON: {data[:120].decode(errors='replace')}") from None
        if not isinstance(chunk, dict):
            raise _malformed(data)
        if chunk.get("error") or chunk.get("object") == "error":
            raise StreamError(error_message(chunk))
        try:
            self._chunk(chunk, at_s)
        except _Malformed:
            raise _malformed(data) from None

    def _chunk(self, chunk: dict[str, Any], at_s: float) -> None:
        """Raises _Malformed where a field is of another kind than the API's."""
        usage = _field(chunk, "usage", dict) or {}
        self.prompt_tokens = _tokens(usage, "prompt_tokens", self.prompt_tokens)
        running = _tokens(usage, "completion_tokens", None)
        choices = _field(chunk, "choices", list)
        if choices:
            choice = choices[0]
            if not isinstance(choice, dict):
                raise _Malformed
            delta = _field(choice, "delta", dict) or {}
            self.finish_reason = _field(choice, "finish_reason", str) or self.finish_reason
            ids = _field(choice, "token_ids", list) or _field(delta, "token_ids", list)
            if ids:
                self._count(len(ids), at_s)
            elif running is not None and not self._estimated:
                self._count(running - self.counted, at_s)
            elif choice.get("text") or any(delta.get(name) for name in TEXT_FIELDS):
                self._estimated = True
                self._count(1, at_s)
        if running is not None:
            self.total = running

    def _count(self, tokens: int, at_s: float) -> None:
        if tokens > 0:
            self.at_s.append(at_s)
            self.counts.append(tokens)
            self.counted += tokens
            if self.counted > TOKENS_LIMIT:
                raise StreamError(f"an answer of {self.counted} tokens, says the server")


class _Malformed(Exception):  # noqa: N818 - becomes a StreamError as soon as the event is at hand
    pass


def _malformed(data: bytes) -> StreamError:
    return StreamError(f"not a completion event: {data[:120].decode(errors='replace')}")


def _field(parent: dict[str, Any], name: str, kind: type[_Kind]) -> _Kind | None:
    """A field that may be absent or null, but is of no other kind."""
    value = parent.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise _Malformed


def _tokens(usage: dict[str, Any], name: str, absent: int | None) -> int | None:
    value = _field(usage, name, int)
    if value is None:
        return absent
    if isinstance(value, bool) or not 0 <= value <= TOKENS_LIMIT:
        raise _Malformed
    return value


def error_message(body: dict[str, Any]) -> str:
    """The message of an OpenAI-style error object, whichever of its shapes the server uses."""
    error = body.get("error", body)
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]
