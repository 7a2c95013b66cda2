"""Our FCFS takes vLLM's own decisions, step for step: the real scheduler class beside ours on random loads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paths import REPO
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.request import Prefix, Request, Stage
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, View
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnTokens, Replica
from sloguard.sim.serve import simulate

VLLM_PYTHON = Path(os.environ.get("SLOGUARD_TEST_VLLM_PYTHON", REPO / ".venv-vllm" / "bin" / "python"))
BLOCK = 16
CASES = 60

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason=f"no Python with vLLM at {VLLM_PYTHON}"),
]


def random_case(rng: np.random.Generator) -> dict[str, Any]:
    """Small enough that memory, budget and sequence limits all bind now and then."""
    blocks = int(rng.integers(20, 80))
    longest = min(512, (blocks - 1) * BLOCK)
    chunked = bool(rng.random() < 0.7)
    seqs = int(rng.integers(1, 12))
    tokens = int(rng.integers(max(seqs, 16), 256)) if chunked else max(longest, int(rng.integers(longest, 1024)))
    requests = []
    for _ in range(int(rng.integers(5, 40))):
        prompt = int(min(rng.lognormal(4, 1) + 1, longest - 2))
        requests.append(
            {
                "step": int(rng.integers(0, 60)),
                "prompt": prompt,
                "output": int(rng.integers(1, max(2, min(80, longest - prompt)))),
                "family": int(rng.integers(0, 3)),
                "shared_blocks": int(rng.integers(0, 5)) if prompt >= 5 * BLOCK else 0,
            }
        )
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "max_model_len": longest,
        "blocks": blocks,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": bool(rng.random() < 0.7),
        "long_prefill_token_threshold": int(rng.choice([0, 0, 24])),
        "watermark": float(rng.choice([0.0, 0.0, 0.1])),
        "requests": requests,
    }


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def plan(self, now_s: float, view: View) -> Plan:
        made = Fcfs().plan(now_s, view)
        if made.tokens or made.evict:
            tokens = {name.removesuffix("/0"): n for name, n in made.tokens.items()}
            self.seen.append([tokens, sorted(name.removesuffix("/0") for name in made.evict)])
        return made


def our_decisions(case: dict[str, Any]) -> list[Any]:
    limits = Limits(
        max_num_seqs=case["max_num_seqs"],
        max_num_batched_tokens=case["max_num_batched_tokens"],
        max_model_len=case["max_model_len"],
        enable_chunked_prefill=case["enable_chunked_prefill"],
        long_prefill_token_threshold=case["long_prefill_token_threshold"],
        watermark_blocks=int(case["watermark"] * case["blocks"]),
    )
    recorder = Recorder()

    def replica(kernel: Kernel, on_tokens: OnTokens) -> Replica:
        kv = KvCache(case["blocks"] - 1, BLOCK, case["enable_prefix_caching"])  # vLLM keeps one as a placeholder
        one_second = BatchTime((Piece(1.0, 0.0, 0.0, 0.0, 0.0),))
        return Replica(kernel, recorder, limits, kv, one_second, on_tokens)

    simulate([our_request(i, row) for i, row in enumerate(case["requests"])], replica)
    return recorder.seen


def our_request(number: int, row: dict[str, int]) -> Request:
    ids = tuple(100 * row["family"] + j for j in range(row["shared_blocks"]))
    prefix = Prefix(ids, BLOCK) if ids else None
    return Request(str(number), float(row["step"]), (Stage(row["prompt"], row["output"]),), prefix=prefix)


def test_every_decision_is_vllms():
    rng = np.random.default_rng(7)
    cases = [random_case(rng) for _ in range(CASES)]
    answer = subprocess.run(
        [str(VLLM_PYTHON), str(Path(__file__).with_name("vllm_decisions.py"))],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("DECISIONS ")]
    assert lines, answer.stderr[-3000:]
    theirs = json.loads(lines[0].removeprefix("DECISIONS "))
    steps = evictions = 0
    for case, real in zip(cases, theirs, strict=True):
        ours = our_decisions(case)
        assert ours == real, case
        steps += len(real)
        evictions += sum(bool(evicted) for _, evicted in real)
    assert steps > 1000
    assert evictions > 20
