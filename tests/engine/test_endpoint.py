"""A running server is measured as it stands: nothing about it is assumed, changed or hidden."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sloguard.engine.base import EngineSetup, Timeouts, once
from sloguard.engine.endpoint import EndpointEngine
from sloguard.engine.http_probe import ask
from sloguard.errors import EngineCrash, SpecError
from sloguard.request import End, Request, Stage
from sloguard.trial import Config

FAKE = Path(__file__).with_name("fake_vllm.py")
LOAD = [Request(f"r{i}", i * 0.01, (Stage(4, 5),)) for i in range(8)]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a fake server; its parameter is the fault it has."""
    port = unused_port()
    env = {**os.environ, "FAKE_VLLM_FAULT": getattr(request, "param", "")}
    argv = [sys.executable, str(FAKE), "-m", "server", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as process:
        for _ in range(400):
            try:
                ask(url, "/health", timeout_s=5)
                break
            except OSError:
                time.sleep(0.05)
        yield url
        process.kill()


def test_a_running_server_is_measured(server: str, tmp_path: Path) -> None:
    engine = EndpointEngine(server + "/v1", "the-model")
    phases: list[str] = []
    run = engine.run(engine.default_config(), once(LOAD), tmp_path, phases.append)
    assert [t.end for t in run.timelines] == [End.COMPLETED] * len(LOAD)
    assert [t.output_tokens for t in run.timelines] == [5] * len(LOAD)
    assert run.startup_s == 0
    assert phases[0] == "loading"
    assert phases[-1] == f"loading: {len(LOAD)}/{len(LOAD)} done, 0 in flight"
    assert engine.facts().version == (0, 32, 0)
    assert engine.describe()["version"] == "0.32.0"


def test_it_cannot_be_configured(server: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="can't be configured"):
        EndpointEngine(server, "the-model").run(Config({"max_num_seqs": 8}), once(LOAD), tmp_path)


def test_a_model_it_does_not_serve(server: str) -> None:
    with pytest.raises(SpecError, match="It serves the-model"):
        EndpointEngine(server, "another")


@pytest.mark.parametrize("server", ["dies-under-load"], indirect=True)
def test_a_server_that_is_gone_afterwards_has_crashed(server: str, tmp_path: Path) -> None:
    engine = EndpointEngine(server, "the-model", timeouts=Timeouts(request_s=2, trial_s=10))
    with pytest.raises(EngineCrash) as caught:
        engine.run(Config(), once(LOAD), tmp_path)
    assert caught.value.evidence.phase == "load"
    assert caught.value.evidence.log_tail


@pytest.mark.parametrize("server", ["fails-a-request"], indirect=True)
def test_warm_up_requests_are_sent_first_and_not_counted(server: str, tmp_path: Path) -> None:
    """The server fails the fourth answer it gives: the preflight's are the first, so a warm-up request meets it."""
    run = EndpointEngine(server, "the-model").run(Config(), once(LOAD), tmp_path)
    assert [t.end for t in run.timelines] == [End.COMPLETED] * len(LOAD)


@pytest.mark.parametrize("server", ["fails-a-request"], indirect=True)
def test_a_failed_request_of_a_live_server_is_a_result(server: str, tmp_path: Path) -> None:
    run = EndpointEngine(server, "the-model", warmup=0).run(Config(), once(LOAD), tmp_path)
    assert sum(t.end is End.FAILED for t in run.timelines) == 1


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(SpecError, match=url):
        EndpointEngine(url, "the-model")


@pytest.mark.parametrize(
    ("setup", "field"),
    [
        (EngineSetup("the-model"), "--base-url"),
        (EngineSetup("the-model", base_url="http://h", python="/usr/bin/python3"), "--engine-python"),
        (EngineSetup("the-model", base_url="http://h", fixed={"max_num_seqs": 8}), "--engine-arg"),
        (EngineSetup("the-model", base_url="ftp://h"), "--base-url"),
        (EngineSetup("the-model", base_url="http://h", gpu="H100"), "--gpu"),
        (EngineSetup("the-model", base_url="http://h", tensor_parallel=2), "--tensor-parallel"),
    ],
)
def test_wrong_input_is_named(setup: EngineSetup, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        EndpointEngine.from_setup(setup)
    assert caught.value.field == field
