"""The emulator is a server like any other to its clients, and the simulator's replica to whoever looks inside."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator import emulator_app
from sloguard.engine.http_probe import ask
from sloguard.errors import SpecError
from sloguard.load.drive import offer
from sloguard.load.target import Api, Target
from sloguard.request import End, Request, Stage
from sloguard.rng import stream
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job, Tier
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sim.replica import Replica
from sloguard.sim.serve import simulate
from sloguard.slo import StageSLO, TpotRule
from sloguard.study.choice import Choice
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import requests_of, run

SMALL, GPU = "Qwen/Qwen2-1.5B", "H100"  # steps of a few milliseconds
NAME = "the-model"
SHORT = {"max_model_len": 256}
CLASSES = {"chat": StageSLO(0.5, 0.05)}


class Seen:
    def __init__(self) -> None:
        self.ended: list[tuple[Job, float, bool]] = []

    def came(self, ticket: str) -> None:
        raise AssertionError("nobody routes here")

    def declined(self, job: Job) -> None:
        raise AssertionError("there is nobody else")

    def finished(self, job: Job, now_s: float, completed: bool) -> None:
        self.ended.append((job, now_s, completed))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def app(seen: Seen) -> FastAPI:
    return emulator_app(Emulated(SMALL, GPU), NAME, CLASSES, "chat", seen)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def short_url() -> Iterator[str]:
    """Of a server whose context is short."""
    with serving(emulator_app(Emulated(SMALL, GPU, engine_args=SHORT), NAME)) as url:
        yield url


def post(url: str, path: str, body: object) -> tuple[int, Any]:
    answer = ask(url, path, timeout_s=30, body=body)
    return answer.status, answer.body


def complete(url: str, **fields: Any) -> dict[str, Any]:
    status, body = post(url, "/v1/completions", {"model": NAME, "prompt": "Once upon a time", **fields})
    assert status == 200, body
    return body


def events(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    text = post(url, path, {**body, "stream": True})[1]
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]


def until_empty(replica: Replica) -> None:
    for _ in range(1000):
        if not (replica.running or replica.queued):
            break
        time.sleep(0.01)
    assert (replica.running, replica.queued) == ({}, [])
    assert replica.kv.free_blocks == replica.kv.blocks


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_load_client_measures_it_as_it_measures_any_server(url: str, api: Api):
    requests = [Request(f"{api}{i}", i * 0.01, (Stage(30 + i, 5 + i), Stage(9, 3))) for i in range(30)]
    offered = offer(Target(url, NAME, api), requests, seed=0)
    assert offered.notes == ()
    for timeline, request in zip(offered.timelines, requests, strict=True):
        assert (timeline.end, len(timeline.token_s)) == (End.COMPLETED, request.output_tokens)
        if api == "completions":
            assert timeline.prompt_tokens == 2 * (30 + int(request.id[11:])) + 9 + 5 + int(request.id[11:])


def test_usage_text_ids_and_the_tokenizer_agree(url: str):
    plain = complete(url, max_tokens=37, return_token_ids=True)
    choice = plain["choices"][0]
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 41, "completion_tokens": 37}
    assert choice["finish_reason"] == "length"
    assert len(choice["text"].split()) == 37
    assert post(url, "/tokenize", {"prompt": choice["text"]})[1]["tokens"] == choice["token_ids"]
    ids = post(url, "/tokenize", {"prompt": "Once upon a time"})[1]["tokens"]
    assert complete(url, prompt=ids)["usage"]["prompt_tokens"] == len(ids) == 4
    assert complete(url, prompt=["Once upon a time"])["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    "usage", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
def test_a_stream_is_the_answer_in_pieces(url: str, usage: dict[str, bool] | None):
    body = {"prompt": "Once upon a time", "max_tokens": 5, "return_token_ids": True, "stream_options": usage}
    pieces = events(url, "/v1/completions", body)
    last = pieces.pop() if usage else None
    whole = complete(url, max_tokens=5, return_token_ids=True)["choices"][0]
    choices = [piece["choices"][0] for piece in pieces]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [token for choice in choices for token in choice["token_ids"]] == whole["token_ids"]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    final = {"prompt_tokens": 4, "total_tokens": 9, "completion_tokens": 5}
    assert last is None or (last["choices"], last["usage"]) == ([], final)
    running = [piece["usage"]["completion_tokens"] for piece in pieces if "usage" in piece]
    assert running == ([1, 2, 3, 4, 5] if usage and "continuous_usage_stats" in usage else [])


def test_a_chat_begins_with_its_role(url: str):
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "max_completion_tokens": 3}
    deltas = [piece["choices"][0]["delta"] for piece in events(url, "/v1/chat/completions", body)]
    assert deltas[0] == {"role": "assistant", "content": ""}
    said = "".join(delta["content"] for delta in deltas)
    whole = post(url, "/v1/chat/completions", body)[1]
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": said}
    assert whole["usage"]["completion_tokens"] == 3


def test_where_no_length_is_asked_answers_are_as_long_as_a_chatbots(short_url: str):
    assert len(complete(short_url)["choices"][0]["text"]) == 16 * 4, "OpenAI's default"
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: post(short_url, "/v1/chat/completions", body)[1], range(8)))
    told = {answer["choices"][0]["finish_reason"] for answer in answers}
    room = 256 - answers[0]["usage"]["prompt_tokens"]
    assert told == {"stop", "length"}, "some end by themselves, some where the context does"
    for answer in answers:
        tokens = answer["usage"]["completion_tokens"]
        assert tokens < room if answer["choices"][0]["finish_reason"] == "stop" else tokens == room
    assert complete(short_url, max_tokens=None, ignore_eos=True)["usage"]["total_tokens"] == 256
    assert complete(short_url, max_tokens=None, min_tokens=200)["usage"]["completion_tokens"] >= 200


LONG = "This model's maximum context length is 256 tokens. However, you requested 253 output tokens"


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"prompt": "Once upon a time", "max_tokens": 253}, 400, "input_tokens", LONG),
        ({"prompt": list(range(256)), "max_tokens": None}, 400, "input_tokens", "maximum context length is 256"),
        ({"prompt": "a", "max_tokens": None, "min_tokens": 256}, 400, "min_tokens", "maximum context length"),
        ({"prompt": "a", "min_tokens": 17}, 400, "min_tokens", "max_tokens=16, got 17"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"prompt": "a", "n": 2}, 400, "n", "one answer"),
        ({"prompt": ["a", "b"]}, 400, "prompt", "one a request"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": []}, 400, "prompt", "empty"),
        ({"prompt": [-1]}, 400, "prompt", "greater than or equal to 0"),
        ({"prompt": "\ud800"}, 400, "prompt", "surrogates"),
        ({}, 400, "prompt", "required"),
        ([], 400, None, "dictionary"),
        ({"prompt": "a", "model": "another"}, 404, "model", "The model `another` does not exist."),
        ({"prompt": "a", "stream_options": {}}, 400, "stream_options", "stream=True"),
        ({"prompt": "a", "vllm_xargs": {"slo_ttft_ms": "soon"}}, 400, "vllm_xargs.slo_ttft_ms", "not a number"),
        ({"prompt": "a", "vllm_xargs": {"slo_class": "chat"}}, 400, "vllm_xargs.slo_class", "best-effort"),
        ({"prompt": "a", "vllm_xargs": {"slo_ttft_ms": None}}, 400, "vllm_xargs", "valid"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said_in_openais_words(
    short_url: str, body: object, status: int, param: str | None, message: str
):
    told, answer = post(short_url, "/v1/completions", body)
    error = answer["error"]
    assert (told, error["code"], error["param"]) == (status, status, param)
    assert message in error["message"]
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_what_is_no_request_of_the_api_is_told_apart(url: str):
    def raw(method: str, path: str, body: bytes) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())["error"]["message"]
        connection.close()
        return answer

    assert raw("POST", "/v1/completions", b'{"prompt": "a"') == (400, "The body is not JSON.")
    assert raw("POST", "/v1/completions", b"\xff\xfe")[0] == 400
    assert raw("GET", "/v1/completions", b"")[0] == 405
    assert raw("GET", "/v1/nothing", b"")[0] == 404


def test_it_says_what_it_is(url: str):
    assert ask(url, "/health", timeout_s=30).status == 200
    version = ask(url, "/version", timeout_s=30).body
    assert version["emulator"].startswith("sloguard")
    assert (version["gpu"], version["tokenizer"]) == (GPU, "4 UTF-8 bytes a token")
    (card,) = ask(url, "/v1/models", timeout_s=30).body["data"]
    assert (card["id"], card["root"], card["max_model_len"]) == (NAME, SMALL, 8192)


def test_promises_of_the_request_reach_the_engine(url: str, seen: Seen):
    for xargs in ({}, {"slo_ttft_ms": "300", "slo_tpot_ms": 40, "slo_stages_left": 2}, {"slo_class": "best-effort"}):
        complete(url, vllm_xargs=xargs, priority=7)
    jobs = [job for job, _, _ in seen.ended[-3:]]
    assert [(job.app, job.ttft_s, job.tpot_s, job.stages_left) for job in jobs] == [
        ("chat", 0.5, 0.05, 0),
        ("custom", 0.3, 0.04, 2),
        ("best-effort", None, None, 0),
    ]
    assert jobs[2].tier is Tier.BEST_EFFORT
    assert {job.priority for job in jobs} == {7}


def test_equal_beginnings_are_computed_once(url: str, app: FastAPI):
    steps = app.state.replica.stats
    tokens: list[int] = []
    for ending in ("one", "two"):
        before = steps.step_tokens
        complete(url, prompt="It was a dark and stormy night; " * 40 + ending, max_tokens=1)
        tokens.append(steps.step_tokens - before)
    assert tokens == [321, 1]


def test_clients_that_hang_up_leave_nothing_behind(url: str, app: FastAPI, seen: Seen):
    rng, before = stream(0, "patience"), len(seen.ended)
    open_sockets: list[tuple[float, socket.socket]] = []
    host, port = url.removeprefix("http://").split(":")
    for number in range(150):
        body = {"prompt": [number] * int(rng.integers(1, 3000)), "max_tokens": int(rng.integers(1, 300))}
        payload = json.dumps({**body, "stream": bool(number % 2)}).encode()
        sock = socket.create_connection((host, int(port)))
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        sock.sendall(f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        open_sockets.append((time.monotonic() + float(rng.exponential(0.3)), sock))
        for patience in [one for one in open_sockets if one[0] < time.monotonic()]:
            patience[1].close()
            open_sockets.remove(patience)
    for until_s, sock in sorted(open_sockets, key=lambda one: one[0]):
        time.sleep(max(0.0, until_s - time.monotonic()))
        sock.close()
    while app.state.time.calls:
        time.sleep(0.01)
    until_empty(app.state.replica)
    ended = seen.ended[before:]
    assert len({job.id for job, _, _ in ended}) == len(ended) <= 150, "one end for each"
    assert not all(completed for _, _, completed in ended)


def test_a_server_that_stops_tells_those_it_still_serves():
    seen = Seen()
    with ExitStack() as later:
        with serving(emulator_app(Emulated(SMALL, GPU), NAME, observer=seen)) as url:
            connection = later.enter_context(closing(http.client.HTTPConnection(url.removeprefix("http://"))))
            body = json.dumps({"prompt": "a", "max_tokens": 8000, "stream": True})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read(1)
        last, done = response.read().decode().split("\n\n")[-3:-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is shutting down"
    assert done == "data: [DONE]"
    assert [completed for _, _, completed in seen.ended] == [False]


class Broken(Fcfs):
    def plan(self, now_s: float, view: View) -> Plan:
        raise RuntimeError("out of ideas")


def test_a_policy_that_breaks_is_an_error_of_the_server():
    seen = Seen()
    with serving(emulator_app(Emulated(SMALL, GPU, policy=f"{__name__}:Broken"), NAME, observer=seen)) as url:
        for _ in range(2):
            status, body = post(url, "/v1/completions", {"prompt": "a"})
            assert (status, body["error"]["code"]) == (500, 500)
            assert "out of ideas" in body["error"]["message"]
        assert ask(url, "/health", timeout_s=30).status == 503
    assert [completed for _, _, completed in seen.ended] == [False]


def test_its_replica_is_the_simulators():
    spec = SimSpec(
        policy=Choice("sloguard", "sloguard"),
        router=Choice("round-robin", "round-robin"),
        model="meta-llama/Llama-3.1-8B",
        gpu="A100-40GB",
        scenario="chatbot",
        num_requests=100,
        max_num_batched_tokens=2048,
        tpot_rule=TpotRule.MEAN,
    )
    requests = requests_of(spec, 8.0, 0).requests
    emulated = Emulated(spec.model, spec.gpu, policy="sloguard")
    timelines = simulate(requests, lambda kernel, on_tokens, _: emulated.replica(kernel, on_tokens))
    for ours, theirs in zip(timelines, run(spec, requests, 0).timelines, strict=True):
        assert np.array_equal(ours.token_s, theirs.token_s)


@pytest.mark.parametrize(
    ("emulated", "field"),
    [
        (Emulated("no/such-model", GPU), "--model"),
        (Emulated(SMALL, "H1000"), "--gpu"),
        (Emulated(SMALL, GPU, tp=5), "--model"),
        (Emulated("facebook/opt-30b", "A100-40GB"), "--model"),
        (Emulated(SMALL, GPU, policy="fastest"), "--policy"),
        (Emulated(SMALL, GPU, policy="sloguard", policy_options={"speed": 3}), "--policy"),
        (Emulated(SMALL, GPU, engine_args={"max_num_sequences": 3}), "max_num_sequences"),
        (Emulated(SMALL, GPU, engine_args={"max_model_len": 10**7}), "--model"),
        (Emulated(SMALL, GPU, noise=2.0), "noise"),
    ],
    ids=str,
)
def test_what_cannot_be_emulated_is_the_users_error(emulated: Emulated, field: str):
    with pytest.raises(SpecError) as raised:
        emulator_app(emulated, NAME)
    assert raised.value.field == field


def test_a_default_class_that_there_is_not_is_the_users_error():
    with pytest.raises(SpecError, match="slo_class = 'gold'"):
        emulator_app(Emulated(SMALL, GPU), NAME, CLASSES, "gold")
