"""Two real vLLM replicas, one of which is killed in the middle of its answers."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo_model import VLLM_PYTHON, needs_vllm
from fleet_servers import Fleet, serving

ARGUMENTS = ("enforce_eager=true", "max_model_len=2048", "gpu_memory_utilization=0.05", "kv_cache_memory_bytes=64M")
ENGINE = "vllm.entrypoints.openai.api_server"
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 400}
PROMPTS = 6


@pytest.mark.vllm
@needs_vllm
def test_a_replica_that_is_killed_costs_no_token(demo_tiny: Path, tmp_path: Path):
    words = ["serve", "--model", str(demo_tiny), "--served-name", "tiny", "--engine-python", str(VLLM_PYTHON)]
    words += [word for pair in ARGUMENTS for word in ("--engine-arg", pair)]
    with serving(tmp_path, "local", engine=words) as fleet, ThreadPoolExecutor(PROMPTS) as pool:
        assert fleet.up() == 2, fleet.said()
        alone = [_whole(fleet, number) for number in range(PROMPTS)]
        coming = [pool.submit(fleet.stream, number, prompt=_prompt(number), **GREEDY) for number in range(PROMPTS)]
        time.sleep(1.0)
        for process in fleet.processes(ENGINE)[:1]:
            for one in [process, *process.children(recursive=True)]:
                one.send_signal(signal.SIGKILL)
        assert [one.result()[0] for one in coming] == alone
        assert fleet.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4})[0] == 200


def _prompt(number: int) -> str:
    return f"Tell me story number {number}"


def _whole(fleet: Fleet, number: int) -> str:
    status, said = fleet.ask("/v1/completions", {"prompt": _prompt(number), **GREEDY})
    assert status == 200, said
    return json.loads(said)["choices"][0]["text"]
