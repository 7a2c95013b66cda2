"""The emulator: a simulated replica behind the OpenAI API, in real time. Nothing here is a real GPU.

Routers, clients and dashboards can be developed against it: requests wait, are scheduled, evicted and paced as the
simulator says that a model on that GPU would; the text is filler.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from time import time
from typing import Any, Protocol
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from sloguard import __version__
from sloguard.engine.emulated import Emulated
from sloguard.engine.emulated_api import (
    TOKEN_BYTES,
    TOKENIZER,
    Answer,
    ApiError,
    Asking,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    bytes_of,
    count_of,
    error_event,
    ids_of,
)
from sloguard.engine.real_time import SHUT_DOWN, Call, RealTime
from sloguard.engine.simulated import VLLM_VERSION
from sloguard.errors import SpecError
from sloguard.rng import stream
from sloguard.route.prefixes import block_keys
from sloguard.sched.asked import read_asked
from sloguard.sched.job import Job, Tier
from sloguard.sim.serve import too_long
from sloguard.slo import StageSLO
from sloguard.workload.applications import APPLICATIONS

ANSWERS = APPLICATIONS[0]  # the chatbot's: as long as an answer is where no length is asked
ANSWERS_DRAWN = 1024  # at once
NOT_RUNNING = "EngineDeadError"


class Observer(Protocol):
    """Sees every request that reached the engine."""

    def came(self, ticket: str) -> None:
        """A router's name for a request that has come."""
        ...

    def declined(self, job: Job) -> None:
        """Another replica is to serve it."""
        ...

    def finished(self, job: Job, now_s: float, completed: bool) -> None:
        """Once for each other, whatever its end. Instants are those of `app.state.time.now_s()`."""
        ...


class Unobserved:
    def came(self, ticket: str) -> None:
        """Nobody looks."""

    def declined(self, job: Job) -> None:
        """Nobody looks."""

    def finished(self, job: Job, now_s: float, completed: bool) -> None:
        """Nobody looks."""


def emulator_app(
    emulated: Emulated,
    served_name: str,
    classes: Mapping[str, StageSLO] | None = None,
    default_class: str | None = None,
    observer: Observer = Unobserved(),  # noqa: B008 - has no state
) -> FastAPI:
    """The engine runs while the app's lifespan does. `app.state.replica` and `app.state.time` are for reading, on its
    event loop. Raises SpecError where `emulated` can't be, or there is no class `default_class`.
    """
    read_asked({}, classes or {}, default_class)
    door = _Door(emulated, served_name, classes or {}, default_class, observer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with door.time.running():
            yield

    app = FastAPI(title="sloguard emulator", version=__version__, lifespan=lifespan)
    app.state.replica, app.state.time = door.time.replica, door.time
    for method, path, endpoint in (
        ("GET", "/health", door.health),
        ("GET", "/version", door.version),
        ("GET", "/v1/models", door.models),
        ("POST", "/v1/completions", door.complete),
        ("POST", "/v1/chat/completions", door.chat),
        ("POST", "/tokenize", door.tokenize),
        ("POST", "/detokenize", door.detokenize),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    return app


class _Door:
    """Turns requests into jobs."""

    def __init__(
        self,
        emulated: Emulated,
        served_name: str,
        classes: Mapping[str, StageSLO],
        default_class: str | None,
        observer: Observer,
    ) -> None:
        self.time = RealTime(emulated.replica, observer.finished, observer.declined)
        self._observer = observer
        self._name, self._classes, self._default_class = served_name, classes, default_class
        self._lengths = _answer_lengths(emulated.seed)
        self._described = {**emulated.describe(), "tokenizer": TOKENIZER}
        self._created_s = int(time())

    async def health(self) -> Response:
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE if self.time.fault else HTTPStatus.OK)

    async def version(self) -> dict[str, Any]:
        """Clients read the version of vLLM whose behaviour they get."""
        return {"version": ".".join(map(str, VLLM_VERSION)), "emulator": f"sloguard {__version__}", **self._described}

    async def models(self) -> dict[str, Any]:
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "sloguard",
            "root": self._described["model"],
            "parent": None,
            "max_model_len": self._longest,
            "emulated": self._described,
        }
        return {"object": "list", "data": [card]}

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        self._check_model(body.model)
        tokens = ids_of(body.prompt_bytes)
        return {"count": len(tokens), "max_model_len": self._longest, "tokens": tokens, "token_strs": None}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, Any]:
        self._check_model(body.model)
        return {"prompt": bytes_of(body.tokens).rstrip(b"\0").decode(errors="replace")}

    async def complete(self, body: CompletionRequest) -> Response:
        return self._answered(body, f"cmpl-{uuid4().hex}")

    async def chat(self, body: ChatRequest) -> Response:
        return self._answered(body, f"chatcmpl-{uuid4().hex}")

    @property
    def _longest(self) -> int:
        return self.time.replica.limits.max_model_len

    def _answered(self, body: Asking, job_id: str) -> Response:
        if self.time.fault:
            raise ApiError(self.time.fault, None, 500, NOT_RUNNING)
        self._check_model(body.model)
        body.check()
        prompt = body.prompt_bytes
        prompt_tokens = count_of(prompt)
        output_tokens, finish_reason = self._length(body, prompt_tokens)
        try:
            asked = read_asked(body.vllm_xargs or {}, self._classes, self._default_class)
        except SpecError as error:
            raise ApiError(str(error), f"vllm_xargs.{error.field}") from error
        job = Job(
            id=job_id,
            arrival_s=self.time.now_s(),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix_keys=block_keys(prompt, TOKEN_BYTES * self.time.replica.kv.block_tokens),
            ttft_s=asked.slo.ttft_s,
            tpot_s=asked.slo.tpot_s,
            app=asked.slo_class,
            priority=body.priority,
            stages_left=asked.stages_left,
            conversation=asked.conversation,
            hops_left=asked.hops_left,
            tier=Tier.BEST_EFFORT if asked.best_effort else Tier.NEW,
        )
        if asked.ticket:
            self._observer.came(asked.ticket)
        answer = Answer(body, job, self._name, int(time()), finish_reason)
        return _Served(self.time, job, answer, asked.waited_s)

    def _check_model(self, model: str | None) -> None:
        if model and model != self._name:
            raise ApiError(f"The model `{model}` does not exist.", "model", 404, "NotFoundError")

    def _length(self, body: Asking, prompt_tokens: int) -> tuple[int, str]:
        """Tokens of the answer, and why it ends there. Raises ApiError for a request that doesn't fit."""
        if not prompt_tokens:
            raise ApiError("The prompt cannot be empty.", "prompt")
        limit = body.limit_tokens
        if limit is not None or prompt_tokens >= self._longest:
            if refusal := too_long(prompt_tokens, limit or 1, self._longest):
                raise ApiError(refusal, "input_tokens")
            return limit or 1, "length"
        room = self._longest - prompt_tokens
        if refusal := too_long(prompt_tokens, body.min_tokens, self._longest):
            raise ApiError(refusal, "min_tokens")
        wanted = room if body.ignore_eos else max(next(self._lengths), body.min_tokens, 1)
        return (wanted, "stop") if wanted < room else (room, "length")


class _Served(Response):
    """Serves a job for as long as its client listens."""

    def __init__(self, time: RealTime, job: Job, answer: Answer, waited_s: float) -> None:
        self.status_code, self.background = int(HTTPStatus.OK), None
        self.media_type = "text/event-stream" if answer.stream else "application/json"
        self.init_headers()
        self._time, self._job, self._answer, self._waited_s = time, job, answer, waited_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._time.submit(self._job, self._waited_s)
        listening = asyncio.create_task(_when_gone(receive, partial(self._time.abort, call)))
        try:
            if self._answer.stream:
                await self._stream(call, send)
            else:
                await self._whole(call, scope, receive, send)
        finally:
            listening.cancel()
            self._time.abort(call)

    async def _stream(self, call: Call, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        done = 0
        try:
            while sizes := await call.sizes():
                await write(self._answer.events(done, sizes))
                done += sum(sizes)
        except asyncio.CancelledError:  # the server waits no longer for what is in flight
            await write(error_event(SHUT_DOWN), more=False)
            raise
        if call.declined:
            ending = self._answer.declined()
        else:
            ending = error_event(call.error) if call.error else self._answer.ending()
        await write(ending, more=False)

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        while await call.sizes():
            pass
        if call.declined:
            answer = Response(self._answer.declined(), media_type=self.media_type)
        elif call.error:
            answer = _error_response(ApiError(call.error, None, 500, NOT_RUNNING))
        else:
            answer = Response(self._answer.whole(), media_type=self.media_type)
        await answer(scope, receive, send)


async def _when_gone(receive: Receive, do: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    do()


def _answer_lengths(seed: int) -> Iterator[int]:
    rng = stream(seed, "answers")
    while True:
        for stages in ANSWERS.draw(rng, ANSWERS_DRAWN):
            yield stages[0].output_tokens


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _invalid(_: Request, error: Exception) -> Response:
    """The most specific of what is wrong: a prompt has several types that it might have been."""
    assert isinstance(error, RequestValidationError)
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    if worst["type"] == "json_invalid":
        return _error_response(ApiError("The body is not JSON."))
    param = ".".join(str(part) for part in worst["loc"][1:2])
    return _error_response(ApiError(f"{param}: {worst['msg']}" if param else worst["msg"], param or None))


async def _http_error(_: Request, error: Exception) -> Response:
    """No such route, or not by this method."""
    assert isinstance(error, HTTPException)
    return _error_response(ApiError(error.detail, None, error.status_code, HTTPStatus(error.status_code).phrase))


def _error_response(error: ApiError) -> Response:
    """Plain ASCII, for a message may quote what is not even UTF-8."""
    return Response(json.dumps(error.body), error.status, media_type="application/json")
