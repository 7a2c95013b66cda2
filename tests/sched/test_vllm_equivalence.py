"""Our `vllm` and `vllm-priority` take vLLM's own decisions, step for step: the real scheduler class beside ours."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sched.priority import Priority
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import Replica
from vllm_cases import BLOCK, VLLM_PYTHON, random_case

CASES = 500  # of each policy
ONE_SECOND = BatchTime((Piece(1.0, 0.0, 0.0, 0.0, 0.0),))

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason=f"no Python with vLLM at {VLLM_PYTHON}"),
]


class Recorder:
    """A policy that is asked at each step, what it decided, and how often which of its rules came into play."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seen: list[Any] = []
        self.counts: Counter[str] = Counter()

    def plan(self, now_s: float, view: View) -> Plan:
        made = self.policy.plan(now_s, view)
        if made.tokens or made.evict:
            self.seen.append([[list(pair) for pair in made.tokens.items()], sorted(made.evict)])
            self.count(made, view)
        return replace(made, holds_until_s=float("-inf"))

    def count(self, made: Plan, view: View) -> None:
        line, queue = [job.id for job in view.running], [job.id for job in view.waiting]
        left = {job.id: job.remaining_tokens for job in view.running}
        left |= {job.id: job.known_tokens - made.admit.get(job.id, 0) for job in view.waiting}
        placed = max((i for i, name in enumerate(line) if name in made.tokens), default=-1)
        self.counts["steps"] += 1
        self.counts["chunks"] += sum(n < left[name] for name, n in made.tokens.items())
        self.counts["hits"] += sum(cached > 0 for cached in made.admit.values())
        self.counts["evictions"] += len(made.evict)
        self.counts["tokens taken back"] += sum(line.index(name) < placed for name in made.evict)
        self.counts["overtakings"] += list(made.admit) != queue[: len(made.admit)]
        self.counts["first of the line evicted"] += bool(line) and line[0] in made.evict


def our_decisions(case: dict[str, Any], recorder: Recorder) -> list[Any]:
    limits = Limits(
        max_num_seqs=case["max_num_seqs"],
        max_num_batched_tokens=case["max_num_batched_tokens"],
        max_model_len=case["max_model_len"],
        enable_chunked_prefill=case["enable_chunked_prefill"],
        long_prefill_token_threshold=case["long_prefill_token_threshold"],
        watermark_blocks=int(case["watermark"] * case["blocks"]),
    )
    kernel = Kernel()
    kv = KvCache(case["blocks"] - 1, BLOCK, case["enable_prefix_caching"])  # vLLM keeps one as a placeholder
    replica = Replica(kernel, recorder, limits, kv, ONE_SECOND, lambda *_: None)
    for number, row in enumerate(case["requests"]):
        job = Job(
            id=str(number),
            arrival_s=float(row["step"]),
            prompt_tokens=row["prompt"],
            output_tokens=row["output"],
            prefix_keys=tuple(100 * row["family"] + i for i in range(row["shared_blocks"])),
            priority=row["priority"],
        )
        kernel.at(job.arrival_s, lambda job=job: replica.submit(job))
    kernel.run()
    return recorder.seen


def their_decisions(policy: str, cases: list[dict[str, Any]]) -> list[Any]:
    answer = subprocess.run(
        [str(VLLM_PYTHON), str(Path(__file__).with_name("vllm_decisions.py")), policy],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("DECISIONS ")]
    assert lines, answer.stderr[-3000:]
    return json.loads(lines[0].removeprefix("DECISIONS "))


@pytest.mark.parametrize(
    ("name", "policy", "at_least"),
    [
        ("fcfs", Fcfs(), {"steps": 100_000, "chunks": 10_000, "hits": 1_000, "evictions": 500}),
        (
            "priority",
            Priority(),
            {
                "steps": 100_000,
                "chunks": 10_000,
                "hits": 1_000,
                "evictions": 500,
                "tokens taken back": 100,
                "overtakings": 1_000,
                "first of the line evicted": 20,
            },
        ),
    ],
)
def test_every_decision_is_vllms(name: str, policy: Policy, at_least: dict[str, int]):
    rng = np.random.default_rng(7)
    cases = [random_case(rng) for _ in range(CASES)]
    counts: Counter[str] = Counter()
    for case, theirs in zip(cases, their_decisions(name, cases), strict=True):
        recorder = Recorder(policy)
        assert our_decisions(case, recorder) == theirs, case
        counts += recorder.counts
    short = {what: counts[what] for what, least in at_least.items() if counts[what] < least}
    assert not short, f"the cases exercise too little: {short}"
