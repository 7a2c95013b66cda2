"""The vLLM result file: its keys against vLLM's own source, its figures against vLLM's own arithmetic."""

from __future__ import annotations

import ast
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from paths import REPO
from sloguard.metrics import summarise
from sloguard.report.vllm_json import to_vllm_json
from sloguard.request import End, Request, Stage, Timeline
from sloguard.slo import StageSLO

SOURCES = sorted(REPO.glob(".venv-vllm/lib/python3*/site-packages/vllm/benchmarks/serve.py"))


def timeline(number: int, token_s: list[float], end: End = End.COMPLETED, slo: StageSLO | None = None) -> Timeline:
    request = Request(f"r{number}", float(number), (Stage(10, 4, slo or StageSLO()),))
    sent_s = float(number)
    return Timeline(
        request, request.arrival_s, sent_s, np.array(token_s), end, "" if end is End.COMPLETED else "why", 11
    )


RUN = [
    timeline(0, [0.2, 0.3, 0.3, 0.5]),
    timeline(1, [1.1, 1.2, 2.4]),
    timeline(2, [2.5], End.FAILED),
    timeline(3, [3.3]),
]


def fields(run: list[Timeline], rate: float | None = 1.0, burstiness: float = 1.0) -> dict:
    return to_vllm_json(
        run,
        summarise(run),
        api="completions",
        model="m",
        request_rate=rate,
        burstiness=burstiness,
        started=datetime(2026, 1, 2),
    )


def written_by_vllm(source: Path) -> set[str]:
    """The keys of a generation run with --save-detailed and default metrics, read from the code that writes them."""
    tree = ast.parse(source.read_text())
    benchmark = next(n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef) and n.name == "benchmark")
    dicts = [n.value for n in ast.walk(benchmark) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)]
    (generation,) = (d for d in dicts if any(isinstance(k, ast.Constant) and k.value == "ttfts" for k in d.keys))
    keys = {str(key.value) for key in generation.keys if isinstance(key, ast.Constant)}
    main = next(n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef) and n.name == "main_async")
    for node in ast.walk(main):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            target = node.targets[0]
            if ast.unparse(target.value) == "result_json" and isinstance(target.slice, ast.Constant):
                keys.add(str(target.slice.value))
    keys -= {"ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps"}  # of a flag that we have not
    return keys | {f"{f}_{m}_ms" for f in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl")}


@pytest.mark.vllm
@pytest.mark.skipif(not SOURCES, reason="no vLLM in .venv-vllm to compare with")
def test_the_keys_are_those_vllm_writes():
    assert set(fields(RUN)) == written_by_vllm(SOURCES[0]) | {"sloguard"}


def test_figures_are_vllms_own_arithmetic():
    data = fields(RUN)
    assert (data["completed"], data["failed"], data["num_prompts"]) == (3, 1, 4)
    assert data["output_lens"] == [4, 3, 0, 1]
    assert data["input_lens"] == [11] * 4
    assert data["errors"] == ["", "", "why", ""]
    ttfts = [0.2, 0.1, 0.3]
    tpots = [(0.5 - 0.2) / 3, (2.4 - 1.1) / 2]
    itls = [0.1, 0.2, 0.1, 1.2]
    for name, values in (("ttft", ttfts), ("tpot", tpots), ("itl", itls)):
        assert data[f"mean_{name}_ms"] == pytest.approx(np.mean(values) * 1000)
        assert data[f"std_{name}_ms"] == pytest.approx(np.std(values) * 1000)
        assert data[f"p99_{name}_ms"] == pytest.approx(np.percentile(values, 99) * 1000)
    assert data["total_token_throughput"] == pytest.approx((33 + 8) / data["duration"])
    assert data["request_goodput"] is None
    assert data["max_output_tokens_per_s"] == 4  # in the first second
    assert data["max_concurrent_requests"] == 1
    json.dumps(data, allow_nan=False)


def test_peak_concurrency_counts_each_second_a_request_is_under_way_in():
    data = fields([timeline(0, [2.5]), timeline(1, [1.5]), timeline(2, [4.5])])
    assert data["max_concurrent_requests"] == 2  # second 1: requests 0 and 1; second 2: requests 0 and 2


def test_goodput_rates_and_empty_runs():
    promised = [timeline(0, [0.2], slo=StageSLO(ttft_s=0.1)), timeline(1, [1.05], slo=StageSLO(ttft_s=0.1))]
    assert fields(promised)["request_goodput"] == pytest.approx(1 / 1.05)
    assert fields(RUN, float("inf"))["request_rate"] == "inf"
    assert json.loads(json.dumps(fields(RUN, burstiness=float("inf")), allow_nan=False))["burstiness"] == "inf"
    assert fields(RUN, None)["request_rate"] == pytest.approx(4 / 3.3)
    nothing = fields([timeline(0, [], End.FAILED)])
    assert (nothing["completed"], nothing["mean_ttft_ms"], nothing["max_concurrent_requests"]) == (0, 0.0, 0)
