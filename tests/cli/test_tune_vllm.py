"""A whole study on a real vLLM: real crashes, a config that serves, and nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo_model import VLLM_PYTHON, needs_vllm
from procs import alive_with
from sloguard.engine.processes import STATE_DIR
from sloguard.engine.vllm_server import VllmServer, free_port

pytestmark = [pytest.mark.vllm, needs_vllm]

# 128 KiB hold no request of 512 tokens: that start fails for real, after the model was loaded.
SPACE = """
[kv_cache_memory_bytes]
type = "categorical"
choices = ["128K", "64M"]

[max_num_batched_tokens]
type = "categorical"
choices = [128, 512]
"""
PINNED = ("enforce_eager=true", "max_model_len=512", "gpu_memory_utilization=0.05")


@pytest.fixture(scope="module")
def study(demo_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tune")
    (directory / "space.toml").write_text(SPACE)
    rows = [f"{i * 0.1:.1f},{32 + 8 * (i % 4)},8" for i in range(20)]
    (directory / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    command = [sys.executable, "-m", "sloguard", "tune", "--engine", "vllm", "--engine-python", str(VLLM_PYTHON)]
    command += ["--model", str(demo_tiny), "--space", str(directory / "space.toml"), "--budget", "5", "--no-default"]
    command += ["--confirm", "0"]
    command += ["--workload", str(directory / "trace.csv"), "--slo-ttft-p99", "5000", "--slo-itl-p99", "2000"]
    command += [word for pair in PINNED for word in ("--engine-arg", pair)]
    env = {**os.environ, STATE_DIR: str(directory / "state"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--out", str(directory / "out")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return directory / "out"


def test_every_config_of_the_space_is_tried_once_and_real_crashes_are_named(study: Path) -> None:
    trials = [json.loads(line) for line in (study / "study.jsonl").read_text().splitlines()[1:]]
    assert len(trials) == 4, "the space holds four configs, so a budget of five ends after them"
    for trial in trials:
        crashes = trial["config"]["kv_cache_memory_bytes"] == "128K"
        assert trial["outcome"]["kind"] == ("crashed" if crashes else "measured")
        if crashes:
            assert (trial["outcome"]["category"], trial["outcome"]["phase"]) == ("oom", "startup")
            assert not trial["outcome"]["environment"]
        else:
            ran = trial["outcome"]["effective"]
            assert ran["max_num_batched_tokens"] == trial["config"]["max_num_batched_tokens"]
        assert (study / "trials" / f"{trial['number']:03d}" / "engine.log").stat().st_size > 0


def test_no_engine_is_left(study: Path) -> None:
    records = [json.loads(path.read_text()) for path in study.glob("trials/*/run.json")]
    assert len(records) == 4
    assert not [pid for record in records for pid in alive_with(record["run_id"])]


def test_best_yaml_starts_a_server(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    argv = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--config", str(study / "best.yaml")]
    server = VllmServer.start(argv, dict(os.environ), free_port(), tmp_path / "engine.log", 60)
    try:
        server.await_ready(300)
    finally:
        server.process.stop(20)
