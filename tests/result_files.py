"""Result files that load testing tools wrote (tests/golden/results), and what tests do with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from paths import REPO
from sloguard.load.results import read_results
from sloguard.load.run_figures import RunFigures
from sloguard.metrics import Dist
from sloguard.slo import StageSLO

GOLDEN = REPO / "tests" / "golden" / "results"
OWN, OWN_VLLM = GOLDEN / "sloguard_bench.json", GOLDEN / "sloguard_bench_vllm.json"
VLLM = GOLDEN / "vllm_0.32.json"
GUIDELLM = GOLDEN / "guidellm_0.8.json.gz"
AIPERF = GOLDEN / "aiperf_0.13" / "profile_export_aiperf.json"
AIPERF_REFUSED = GOLDEN / "aiperf_0.13_refused" / "profile_export_aiperf.json"
PROMISED = StageSLO(ttft_s=0.05, tpot_s=0.02)


def one(path: Path) -> RunFigures:
    (run,) = read_results(path)
    return run


def document(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def known(dist: Dist | None) -> dict[str, float]:
    """What a tool tells of a distribution, its count left out: GuideLLM's of TPOT is of tokens."""
    assert dist is not None
    return {k: v for k in ("mean", "p50", "p90", "p95", "p99", "max") if (v := getattr(dist, k)) is not None}


def same(found: Dist | None, told: Dist | None) -> None:
    figures = known(told)
    assert {k: known(found)[k] for k in figures} == pytest.approx(figures, rel=1e-6)
