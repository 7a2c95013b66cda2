"""The OpenAI API as vLLM 0.32 speaks it, for an engine whose answers are filler.

There is no tokenizer: four UTF-8 bytes are a token (English has about as many characters to one), and a token's id is
those bytes as a number. Each word of an answer has four bytes, so usage, ids and text agree.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sloguard.sched.asked import DECLINED
from sloguard.sched.job import Job

TOKENIZER = "4 UTF-8 bytes a token"
TOKEN_BYTES = 4
FILLER = (
    " the",
    " and",
    " was",
    " for",
    " you",
    " not",
    " are",
    " all",
    " new",
    " one",
    " can",
    " now",
    " say",
    " way",
)
FILLER_IDS = tuple(int.from_bytes(word.encode(), "big") for word in FILLER)
COMPLETION_TOKENS = 16  # what OpenAI's completions give where nothing is asked
DONE = b"data: [DONE]\n\n"
_json = json.JSONEncoder(separators=(",", ":")).encode


def _speakable(text: str) -> str:
    """JSON can hold half a character (a lone surrogate), which UTF-8 can't."""
    text.encode()  # its error is a ValueError, which pydantic reports
    return text


Text = Annotated[str, AfterValidator(_speakable)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 8 * TOKEN_BYTES)]


class ApiError(Exception):
    """What a client is told with a status that is not 200."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, status, param)


def error_body(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Asking(BaseModel):
    """What both APIs take. What else a request holds (temperature, stop, tools) changes nothing and is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    ignore_eos: bool = False
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None = None
    return_token_ids: bool | None = False

    @property
    def limit_tokens(self) -> int | None:
        """How many tokens of answer are asked for; None leaves it to the model."""
        return self.max_tokens

    @property
    def prompt_bytes(self) -> bytes:
        raise NotImplementedError

    def check(self) -> None:
        """Raises ApiError for fields that are right only one by one."""
        if self.n not in (None, 1):
            raise ApiError(f"n = {self.n}: the emulator gives one answer a request.", "n")
        if self.stream_options is not None and not self.stream:
            raise ApiError("Stream options can only be defined when `stream=True`.", "stream_options")
        if self.limit_tokens is not None and self.min_tokens > self.limit_tokens:
            raise ApiError(
                f"min_tokens must be less than or equal to max_tokens={self.limit_tokens}, got {self.min_tokens}.",
                "min_tokens",
            )


class CompletionRequest(Asking):
    max_tokens: int | None = Field(default=COMPLETION_TOKENS, ge=1)
    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]]

    @property
    def prompt_bytes(self) -> bytes:
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ApiError(f"{len(prompt)} prompts: the emulator takes one a request.", "prompt")
            prompt = prompt[0]
        return prompt.encode() if isinstance(prompt, str) else bytes_of(prompt)  # pyright: ignore[reportArgumentType]


class Part(BaseModel):
    type: str
    text: Text | None = None


class Message(BaseModel):
    role: Text
    content: Text | list[Part] | None = None

    @property
    def text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        if other := next((part.type for part in self.content if part.type != "text"), None):
            raise ApiError(f"a part of type {other!r}: the emulator takes text.", "messages")
        return "".join(part.text or "" for part in self.content)


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(Asking):
    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def limit_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def prompt_bytes(self) -> bytes:
        return chat_bytes(self.messages)


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: list[TokenId]


class TokenizeRequest(BaseModel):
    model: str | None = None
    prompt: Text | None = None
    messages: Messages | None = None

    @property
    def prompt_bytes(self) -> bytes:
        if (self.prompt is None) == (self.messages is None):
            raise ApiError("give prompt or messages, one of them.", "prompt")
        return chat_bytes(self.messages) if self.messages else (self.prompt or "").encode()


def chat_bytes(messages: Sequence[Message]) -> bytes:
    """A chat template: what comes later in a conversation changes nothing before it."""
    return "".join([*(f"<{message.role}>{message.text}\n" for message in messages), "<assistant>"]).encode()


def count_of(prompt: bytes) -> int:
    return -(-len(prompt) // TOKEN_BYTES)


def ids_of(prompt: bytes) -> list[int]:
    count = count_of(prompt)
    return list(struct.unpack(f">{count}I", prompt.ljust(count * TOKEN_BYTES, b"\0")))


def bytes_of(ids: Sequence[int]) -> bytes:
    return struct.pack(f">{len(ids)}I", *ids)


class Answer:
    """What is written to a client of one request: `output_tokens` words of filler, whole or as events."""

    def __init__(self, request: Asking, job: Job, model: str, created_s: int, finish_reason: str) -> None:
        options = request.stream_options or StreamOptions()
        self.stream = bool(request.stream)
        self._chat = isinstance(request, ChatRequest)
        self._prompt_tokens, self._output_tokens = job.prompt_tokens, job.output_tokens
        self._prompt_ids = ids_of(request.prompt_bytes) if request.return_token_ids else None
        self._finish_reason = finish_reason
        self._final_usage = bool(options.include_usage)
        self._running_usage = self._final_usage and bool(options.continuous_usage_stats)
        self._token_ids = bool(request.return_token_ids)
        kind = "chat.completion" if self._chat else "text_completion"
        suffix = ".chunk" if self._chat and self.stream else ""
        self._head = {"id": job.id, "object": kind + suffix, "created": created_s, "model": model}
        self._event_head = f"data: {_json(self._head)[:-1]}"

    def whole(self) -> bytes:
        text, ids = self._words(0, self._output_tokens)
        choice: dict[str, Any] = {"index": 0}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice |= {"logprobs": None, "finish_reason": self._finish_reason, "stop_reason": None}
        choice |= {"token_ids": ids} if self._token_ids else {}
        return _json({**self._head, "choices": [choice], "usage": self._usage(self._output_tokens)}).encode()

    def declined(self) -> bytes:
        """Whole or as events: another replica is to answer."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": "abort", "stop_reason": DECLINED}
        words = {"delta" if self.stream else "message": {"content": ""}} if self._chat else {"text": ""}
        told = _json({**self._head, "choices": [{**choice, **words}]})
        return f"data: {told}\n\n".encode() + DONE if self.stream else told.encode()

    def events(self, done: int, sizes: Sequence[int]) -> bytes:
        """One event for each step, where `done` tokens went before. The last of the answer tells why it ended."""
        events = [self._event('"delta":{"role":"assistant","content":""}', 0)] if self._chat and not done else []
        for size in sizes:
            text, ids = self._words(done, size)
            done += size
            words = f'"delta":{{"content":"{text}"}}' if self._chat else f'"text":"{text}"'
            events.append(self._event(words, done, ids))
        return "".join(events).encode()

    def ending(self) -> bytes:
        if not self._final_usage:
            return DONE
        usage = _json(self._usage(self._output_tokens))
        return f'{self._event_head},"choices":[],"usage":{usage}}}\n\n'.encode() + DONE

    def _words(self, start: int, count: int) -> tuple[str, list[int]]:
        """By their place in the whole text: who goes on with an answer goes on as if it were the same."""
        first = self._prompt_tokens + start
        places = [at % len(FILLER) for at in range(first, first + count)]
        return "".join(FILLER[at] for at in places), [FILLER_IDS[at] for at in places]

    def _event(self, words: str, done: int, ids: list[int] | None = None) -> str:
        """Written by hand, for there is one for each token."""
        finish = f'"{self._finish_reason}","stop_reason":null' if done == self._output_tokens else "null"
        given = f',"token_ids":{_json(ids)}' if self._token_ids and ids else ""
        if self._prompt_ids is not None:  # with the first event
            given, self._prompt_ids = f'{given},"prompt_token_ids":{_json(self._prompt_ids)}', None
        usage = f',"usage":{_json(self._usage(done))}' if self._running_usage else ""
        choice = f'{{"index":0,{words},"logprobs":null,"finish_reason":{finish}{given}}}'
        return f'{self._event_head},"choices":[{choice}]{usage}}}\n\n'

    def _usage(self, done: int) -> dict[str, int]:
        total = self._prompt_tokens + done
        return {"prompt_tokens": self._prompt_tokens, "total_tokens": total, "completion_tokens": done}


def error_event(message: str) -> bytes:
    """How vLLM ends a stream that has begun and can't go on."""
    return f"data: {_json(error_body(message, 'InternalServerError', 500))}\n\n".encode() + DONE
