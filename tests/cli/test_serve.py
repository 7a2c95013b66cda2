"""`sloguard serve` as an operator runs it: a process of its own, with the emulator as its engine."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from demo_model import VLLM_PYTHON, needs_vllm
from sloguard.engine.processes import STATE_DIR
from sloguard.engine.profiles import Fitted, Profile, profile_key
from sloguard.load.preflight import EMULATED
from sloguard.perf.batch_time import BatchTime, Piece

CLASSES = """
default = "chat"
[classes.chat]
ttft_ms = 60000
tpot_ms = 5000
[classes.batch]
"""
KEY = "sk-of-this-test"
PATIENCE_S = 60.0
SERVE = ("serve", "--engine", "emulator", "--model", "Qwen/Qwen2-1.5B", "--gpu", "H100")
CODE = "import sys; from sloguard.cli.app import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def started(*options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "COLUMNS": "200", "THE_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *SERVE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


class Server:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(
        self, path: str, body: object = None, headers: dict[str, str] | None = None, key: str | None = KEY
    ) -> tuple[int, Any, dict[str, str]]:
        """GET, or POST where there is a body."""
        given = {"Content-Type": "application/json", **(headers or {})}
        given |= {"Authorization": f"Bearer {key}"} if key else {}
        with closing(self.connect()) as connection:
            payload = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, payload, given)
            response = connection.getresponse()
            text = response.read().decode()
        told = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(text) if "json" in told.get("content-type", "") else text, told

    def complete(self, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, Any]:
        return self.ask("/v1/completions", {"prompt": "Once upon a time", **fields}, headers)[:2]

    def stream(self, tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A request whose first token has come."""
        connection = self.connect()
        body = {"prompt": "a", "max_tokens": tokens, "stream": True, "ignore_eos": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read(1)
        return connection, response

    def metrics(self) -> dict[str, float]:
        lines = self.ask("/metrics", key=None)[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said, once it has ended."""
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    port = free_port()
    process = started("--port", str(port), "--api-key-env", "THE_KEY", *options)
    server = Server(process, port)

    def is_ready() -> bool:
        assert process.poll() is None, process.communicate()
        try:
            return server.ask("/ready", key=None)[0] == 200
        except OSError:
            return False

    try:
        until(is_ready)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    classes = tmp_path_factory.mktemp("serve") / "classes.toml"
    classes.write_text(CLASSES)
    with serving("--slo-classes", str(classes), "--served-name", "the-model") as server:
        yield server


def test_it_answers_as_an_openai_server(server: Server):
    _, answer, headers = server.ask("/v1/models")
    assert answer["data"][0]["id"] == "the-model"
    assert headers[EMULATED] == "H100"
    status, answer = server.complete(model="the-model", max_tokens=5)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
    assert server.ask("/health", key=None)[0] == 200


@pytest.mark.parametrize("key", [None, "sk-another", KEY[:-1]])
def test_without_the_key_nobody_is_served(server: Server, key: str | None):
    for path, body in (("/v1/models", None), ("/v1/completions", {"prompt": "a"}), ("/sloguard/status", None)):
        status, answer, _ = server.ask(path, body, key=key)
        assert status == (404 if "sloguard" in path else 401)
        assert KEY not in json.dumps(answer)


@pytest.mark.parametrize(
    ("headers", "xargs", "param"),
    [
        ({}, {"slo_ttft_ms": "soon"}, "slo_ttft_ms"),
        ({"X-SLO-TTFT-MS": "0"}, {}, "slo_ttft_ms"),
        ({}, {"slo_class": "gold"}, "slo_class"),
        ({"X-SLO-Class": "gold"}, {}, "slo_class"),
        ({"X-SLO-TPOT-MS": "50"}, {"slo_tpot_ms": 40}, "slo_tpot_ms"),
    ],
)
def test_a_promise_that_cannot_be_read_is_refused(server: Server, headers: dict[str, str], xargs: object, param: str):
    status, answer = server.complete(headers, vllm_xargs=xargs)
    assert (status, answer["error"]["param"]) == (400, param)


def test_metrics_count_by_class(server: Server):
    before = server.metrics()
    for headers in ({}, {"X-SLO-Class": "batch"}, {"X-SLO-TTFT-MS": "0.001"}, {"X-SLO-TTFT-MS": "60000"}):
        assert server.complete(headers, max_tokens=3)[0] == 200
    after = server.metrics()
    for slo_class, outcome in (("chat", "met"), ("batch", "best-effort"), ("custom", "missed"), ("custom", "met")):
        name = f'sloguard_requests_total{{outcome="{outcome}",slo_class="{slo_class}"}}'
        assert after[name] == before.get(name, 0) + 1
    until(lambda: server.metrics().get('sloguard_steps_total{order="policy"}', 0) > 0)


def test_what_is_turned_away_is_counted_by_reason(server: Server):
    def refused(reason: str) -> float:
        return server.metrics().get(f'sloguard_refused_total{{reason="{reason}"}}', 0.0)

    before = {reason: refused(reason) for reason in ("key", "bad_request")}
    assert server.ask("/v1/models", key="sk-another")[0] == 401
    assert server.complete({"X-SLO-Class": "gold"})[0] == 400
    assert {reason: refused(reason) - count for reason, count in before.items()} == {"key": 1, "bad_request": 1}


def jobs(server: Server) -> float:
    return sum(count for name, count in server.metrics().items() if name.startswith("sloguard_jobs"))


def test_clients_that_hang_up_leave_nothing(server: Server):
    aborted = 'sloguard_requests_total{outcome="aborted",slo_class="chat"}'
    before = server.metrics().get(aborted, 0)
    for _ in range(5):
        connection, response = server.stream(8000)
        response.close()
        connection.close()
    until(lambda: server.metrics().get(aborted, 0) == before + 5)
    until(lambda: jobs(server) == 0)


def asking(server: Server) -> socket.socket:
    """A client of a long answer who has not been told anything yet."""
    payload = json.dumps({"prompt": "a", "max_tokens": 400, "ignore_eos": True}).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {KEY}\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    return sock


def test_overload_is_refused_with_a_time_to_come_back():
    """One seat and long answers: who comes later would wait for minutes, and is told so instead."""
    with ExitStack() as later, serving("--max-wait", "0.5", "--engine-arg", "max_num_seqs=1") as server:
        for _ in range(40):
            later.enter_context(asking(server))
        told = b""

        def refused() -> bool:
            nonlocal told
            sock = later.enter_context(asking(server))
            sock.settimeout(0.3)
            with suppress(TimeoutError):
                told = sock.recv(1 << 16)
                told += sock.recv(1 << 16)  # the body may come by itself
            return b" 429 " in told

        until(refused)
        assert b"RateLimitError" in told
        retry = re.search(rb"\r\nretry-after: (\d+)\r\n", told)
        assert retry is not None
        assert 1 <= int(retry[1]) <= 60


def test_asked_to_end_it_finishes_what_is_under_way_and_takes_nothing_new():
    with serving("--drain-timeout", "50") as server:
        connection, response = server.stream(600)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.complete()[0] == 503)
        assert server.ask("/ready", key=None)[:2] == (503, {"ready": False, "why": "shutting down"})
        text = response.read().decode()
        connection.close()
        assert text.count('"finish_reason":"length"') == 1
        assert text.endswith("data: [DONE]\n\n")
        code, said = server.ended()
    assert code == 0
    assert said.endswith("sloguard: draining: 1 request under way\nsloguard: ended\n")
    assert "Traceback" not in said


def test_a_second_ctrl_c_ends_it_at_once():
    """Far sooner than the 8,000 tokens under way take, which --drain-timeout would leave time for."""
    with serving("--drain-timeout", "3000") as server:
        connection, _ = server.stream(8000)
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.complete()[0] == 503)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        code, said = server.ended()
        assert (code, "Traceback" in said) == (0, False)
        connection.close()


def test_what_waits_too_long_is_cut_off_at_the_end():
    with serving("--drain-timeout", "1") as server:
        connection, response = server.stream(8000)
        server.process.send_signal(signal.SIGTERM)
        text = response.read().decode()
        connection.close()
        assert "the server is shutting down" in text
        code, said = server.ended()
        assert (code, "Traceback" in said) == (0, False)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("[classes.chat]\nttft_ms = inf\n", "classes.chat.ttft_ms"),
        ("[classes.chat]\nttft = 5\n", "classes.chat.ttft"),
        ("[classes.chat\n", "TOML"),
        ('default = "gold"\n', "'gold'"),
    ],
)
def test_classes_that_cannot_be_read_are_one_line(tmp_path: Path, classes: str, says: str):
    path = tmp_path / "classes.toml"
    path.write_text(classes)
    process = started("--slo-classes", str(path))
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert re.match(r"sloguard: --slo-classes = .*classes\.toml", said)
    assert says in said


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = started("--port", str(port))
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert said.startswith(f"sloguard: --port = {port}")


@pytest.mark.vllm
@needs_vllm
def test_a_real_vllm_keeps_promises_behind_the_door_and_drains(demo_tiny: Path, tmp_path: Path):
    """Start from a profile, headers, a request that is no use, metrics of both processes, SIGTERM during an answer."""
    (tmp_path / "classes.toml").write_text(CLASSES)
    profile = tmp_path / "profile.json"
    key = profile_key(str(demo_tiny), "any", "0.32.0", {})
    time_s = BatchTime((Piece(10e-3, 100e-6, 0.0, 0.0, 0.0),))
    profile.write_text(Profile(key, Fitted(time_s, {}, 60, 0), {}, "2026-01-01T00:00:00").to_text())
    port = free_port()
    arguments = ("enforce_eager=true", "max_model_len=2048", "gpu_memory_utilization=0.05", "kv_cache_memory_bytes=64M")
    words = ["serve", "--model", str(demo_tiny), "--served-name", "tiny", "--engine-python", str(VLLM_PYTHON)]
    words += ["--port", str(port), "--slo-classes", str(tmp_path / "classes.toml"), "--api-key-env", "THE_KEY"]
    words += ["--profile", str(profile)]
    words += [word for pair in arguments for word in ("--engine-arg", pair)]
    environment = {**os.environ, "THE_KEY": KEY, "HF_HUB_OFFLINE": "1", STATE_DIR: str(tmp_path / "state")}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("w+") as err:
        process = subprocess.Popen([sys.executable, "-c", CODE, *words], stdout=out, stderr=err, env=environment)
        try:
            deadline_s = time.monotonic() + 180
            while "is served at" not in (tmp_path / "err").read_text():
                assert process.poll() is None, (tmp_path / "err").read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.2)
            assert f"step times from {profile}, made 2026-01-01" in (tmp_path / "err").read_text()
            server = Server(process, port)  # type: ignore[arg-type]
            fields = {"model": "tiny", "max_tokens": 4, "ignore_eos": True}
            assert server.complete({"x-slo-class": "chat"}, **fields)[0] == 200
            assert server.complete(vllm_xargs={"slo_tpot_ms": 9000}, **fields)[0] == 200
            status, refusal = server.complete({"x-slo-ttft-ms": "soon"}, **fields)
            assert (status, refusal["error"]["param"]) == (400, "slo_ttft_ms")
            assert server.ask("/v1/models", key="wrong")[0] == 401
            metrics = server.ask("/metrics", key=None)[1]
            assert 'sloguard_requests_total{outcome="met",slo_class="chat"}' in metrics
            assert "vllm:request_success_total" in metrics
            assert 'sloguard_refused_total{reason="key"} 1.0' in metrics
            with closing(server.connect()) as connection:
                body = {"prompt": "Once", **fields, "max_tokens": 600, "stream": True}
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
                connection.request("POST", "/v1/completions", json.dumps(body), headers)
                response = connection.getresponse()
                assert response.readline().startswith(b"data: {")
                process.send_signal(signal.SIGTERM)
                text = response.read().decode()
            assert text.rstrip().endswith("data: [DONE]")
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait()
    assert not list((tmp_path / "state" / "serving").glob("*/*"))


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--profile", "{dir}/none.json"), "none.json: can't be read"),
        (("--engine-arg", "max_model_len=999999"), "config_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_vllm_or_a_file_forbids_is_bad_input(option: tuple[str, str], says: str, demo_tiny: Path, tmp_path: Path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", STATE_DIR: str(tmp_path / "state")}
    words = ["serve", "--model", str(demo_tiny), "--engine-python", str(VLLM_PYTHON), "--port", str(free_port())]
    words += [word.format(dir=tmp_path) for word in option]
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, env=environment, timeout=180
    )
    assert ran.returncode == 2, ran.stderr
    assert says in ran.stderr
