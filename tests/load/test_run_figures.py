"""Figures computed again from the requests of a file, against independent aggregates; promises held against them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from result_files import (
    AIPERF,
    AIPERF_REFUSED,
    GOLDEN,
    GUIDELLM,
    OWN,
    OWN_VLLM,
    VLLM,
    document,
    known,
    one,
    same,
    written,
)
from sloguard.load.results import read_results
from sloguard.load.run_figures import TOLD_GOODPUT, RunFigures, held_against, judgements, recomputed
from sloguard.metrics import Dist, Summary, summarise
from sloguard.report.bench import to_json
from sloguard.report.vllm_json import to_vllm_json
from sloguard.request import End, Timeline
from sloguard.slo import NO_SLO, Judgement, StageSLO
from timelines import RUNS, timeline

LEVELS = (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99))


# The figures computed again from the requests, against the tool's own aggregates.


@pytest.mark.parametrize("name", ["vllm_0.32.json", "vllm_0.32_refused.json"])
def test_vllm_recomputed(name: str):
    run = one(GOLDEN / name)
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2el_s"):
        same(getattr(run, metric), getattr(run.told, metric))
    assert (run.input_tokens, run.output_tokens) == (run.told.input_tokens, run.told.output_tokens)


@pytest.mark.parametrize("name", ["guidellm_0.8.json.gz", "guidellm_0.6.json", "guidellm_0.8_refused.json"])
def test_guidellm_recomputed(name: str):
    for run, benchmark in zip(read_results(GOLDEN / name), document(GOLDEN / name)["benchmarks"], strict=True):
        requests = run.requests
        assert requests is not None
        done = requests.ended(End.COMPLETED)
        lag_s = requests.sent_s - requests.due_s
        told = known(run.told.ttft_s)
        ttft_s = (requests.ttft_s - lag_s)[done]  # GuideLLM counts from when it sent
        assert told["mean"] == pytest.approx(ttft_s.mean(), rel=1e-6)
        for level, q in LEVELS:
            assert told[level] == pytest.approx(np.percentile(ttft_s, q, method="inverted_cdf"), rel=1e-6)
        decoded = requests.output_tokens[done] - 1
        pace_s = np.sum(requests.tpot_s[done] * decoded) / np.sum(decoded)  # weighted by tokens
        assert known(run.told.tpot_s)["mean"] == pytest.approx(pace_s, rel=1e-6)
        metrics = benchmark["metrics"]
        if "request_dispatch_delay" in metrics:  # 0.8 knows when a request was due
            delay = metrics["request_dispatch_delay"]["successful"]
            assert delay["mean"] == pytest.approx(lag_s[done].mean(), rel=1e-6)
            late = metrics["request_scheduled_latency"]["successful"]["mean"]
            assert late == pytest.approx(known(run.e2el_s)["mean"], abs=2e-3)  # its end is the connection's
        assert run.duration_s == pytest.approx(benchmark["duration"], abs=0.03)


@pytest.mark.parametrize("path", [AIPERF, AIPERF_REFUSED])
def test_aiperf_recomputed(path: Path):
    run = one(path)
    requests = run.requests
    assert requests is not None
    done = requests.ended(End.COMPLETED)
    lag_s = requests.sent_s - requests.due_s
    same(Dist.of((requests.ttft_s - lag_s)[done]), run.told.ttft_s)
    same(Dist.of((requests.e2el_s - lag_s)[done]), run.told.e2el_s)
    same(run.tpot_s, run.told.tpot_s)
    same(run.itl_s, run.told.itl_s)
    effective = document(path)["effective_latency"]  # from when a request was issued, those that failed included
    assert effective["count"] == run.offered
    if run.failed == 0:
        assert known(run.e2el_s)["mean"] == pytest.approx(effective["avg"] / 1000, rel=1e-3)
        assert known(run.e2el_s)["p99"] == pytest.approx(effective["p99"] / 1000, rel=1e-3)


@pytest.mark.parametrize("name", ["sloguard_bench.json", "sloguard_bench_refused.json"])
def test_ours_recomputed(name: str):
    run = one(GOLDEN / name)
    assert run.requests is not None
    again = recomputed(run.requests, run.told)
    for metric in ("ttft_s", "tpot_s", "e2el_s", "queue_delay_s"):
        same(getattr(again, metric), getattr(run, metric))
    assert again.duration_s == pytest.approx(run.duration_s)
    assert (again.completed, again.failed, again.output_tokens) == (run.completed, run.failed, run.output_tokens)


def test_four_tools_measure_the_same_server_under_the_same_load_alike():
    """Where definitions agree: tokens, duration and rates, TPOT, ITL (three of them), TTFT and E2EL from when sent."""
    runs = [one(OWN), one(VLLM), read_results(GUIDELLM)[1], one(AIPERF)]
    reference = runs[0]
    for run in runs:
        assert (run.offered, run.completed, run.request_rate) == (24, 24, 4.0)
        assert (run.input_tokens, run.output_tokens) == (reference.input_tokens, reference.output_tokens)
        assert run.duration_s == pytest.approx(reference.duration_s, rel=0.01)
        assert run.request_throughput == pytest.approx(reference.request_throughput, rel=0.01)
        assert run.output_throughput == pytest.approx(reference.output_throughput, rel=0.01)
        assert known(run.tpot_s)["mean"] == pytest.approx(known(reference.tpot_s)["mean"], rel=0.01)
        if run.tool != "guidellm":
            assert known(run.itl_s)["p50"] == pytest.approx(known(reference.itl_s)["p50"], rel=0.02)
        assert run.requests is not None
        lag_s = 0.0 if run.counts_from == "sent" else run.requests.sent_s - run.requests.due_s
        assert np.median(run.requests.ttft_s - lag_s) == pytest.approx(0.0125, abs=0.002)
        assert np.median(run.requests.e2el_s - lag_s) == pytest.approx(0.217, abs=0.003)


# What is written by us reads back as the run that was measured.


def equals(run: RunFigures, summary: Summary) -> None:
    assert (run.offered, run.completed) == (summary.offered, summary.completed)
    assert (run.input_tokens, run.output_tokens) == (summary.prompt_tokens, summary.output_tokens)
    assert run.duration_s == pytest.approx(summary.duration_s)
    assert run.request_throughput == pytest.approx(summary.request_throughput)
    assert run.output_throughput == pytest.approx(summary.output_throughput)
    for metric in ("ttft_s", "tpot_s", "itl_s", "e2el_s"):
        found, measured = getattr(run, metric), getattr(summary, metric)
        assert found.n == measured.n
        assert known(found) == pytest.approx(known(measured), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.sampled_from([1.0, float("inf"), None]))
def test_the_vllm_json_we_write_reads_back(tmp_path_factory: pytest.TempPathFactory, run: list[Timeline], rate):
    summary = summarise(run)
    data = to_vllm_json(
        run, summary, api="completions", model="m", request_rate=rate, burstiness=1.0, started=datetime(2026, 1, 2)
    )
    read = one(written(tmp_path_factory.getbasetemp() / "ours.json", data))
    equals(read, summary)
    assert (read.tool, read.counts_from) == ("sloguard bench", "due")
    if any(t.request.stages[0].slo != NO_SLO for t in run):
        assert read.attainment == pytest.approx(summary.attainment)
        assert read.request_goodput == pytest.approx(summary.request_goodput)
    else:
        assert (read.attainment, read.request_goodput) == (None, None)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.booleans())
def test_the_json_we_write_reads_back(tmp_path_factory: pytest.TempPathFactory, run: list[Timeline], promised: bool):
    summary = summarise(run)
    about = {"sloguard": "1", "model": "m", "request_rate": "inf", "promised": promised}
    read = one(written(tmp_path_factory.getbasetemp() / "own.json", to_json(run, summary, [], about)))
    equals(read, summary)
    assert read.attainment == (summary.attainment if promised else None)


# Promises held against the requests of a file.


@settings(max_examples=80, deadline=None)
@given(RUNS, st.none() | st.just(1.234567), st.none() | st.just(0.7654321), st.none() | st.just(7.6543212))
def test_attainment_is_that_of_our_own_judge(tmp_path_factory: pytest.TempPathFactory, run, ttft_s, tpot_s, e2el_s):
    slo = StageSLO(ttft_s, tpot_s, e2el_s)
    promised = [
        timeline(
            (t.token_s).tolist(), slo=slo, due_s=t.due_s, sent_s=t.sent_s, end=t.end, error=t.error, ended_s=t.ended_s
        )
        for t in run
    ]
    summary = summarise(promised)
    about = {"sloguard": "1", "model": "m", "promised": False}
    path = written(tmp_path_factory.getbasetemp() / "judged.json", to_json(promised, summary, [], about))
    held = held_against(one(path), slo)
    if slo == NO_SLO:
        assert held.attainment is None
    else:
        assert held.attainment == pytest.approx(summary.attainment)
        assert held.request_goodput == pytest.approx(summary.request_goodput)


def test_the_same_promise_held_against_every_tool():
    slo = StageSLO(ttft_s=0.0125, tpot_s=0.02)
    data = document(VLLM)
    run = held_against(one(VLLM), slo)
    assert run.attainment == sum(ttft_s <= 0.0125 for ttft_s in data["ttfts"]) / 24
    assert run.slo == slo
    assert TOLD_GOODPUT not in run.notes
    for path in (OWN, OWN_VLLM, GUIDELLM, AIPERF):
        for run in read_results(path):
            held = held_against(run, slo)
            assert run.requests is not None
            assert held.attainment == (run.requests.ttft_s <= 0.0125).sum() / 24
            assert held_against(run, NO_SLO) is run


def test_every_request_is_judged_once_for_all_who_ask():
    run = one(GOLDEN / "guidellm_0.8_cut.json")
    assert run.requests is not None
    cut = run.requests.ended(End.CANCELLED)
    wide = judgements(run.requests, StageSLO(ttft_s=1000.0))
    assert [told is Judgement.UNKNOWN for told in wide] == cut.tolist()
    assert judgements(run.requests, StageSLO(ttft_s=1e-6)).count(Judgement.MISSED) >= np.sum(~cut)
    unseen = replace(run.requests, ttft_s=np.full(len(cut), np.nan), ended_s=run.requests.begun_s)
    assert Judgement.MET not in judgements(unseen, StageSLO(ttft_s=1000.0)), "unknown is never a pass"


def test_a_request_that_was_cut_off_has_missed_what_it_had_broken_and_is_left_out_otherwise():
    run = one(GOLDEN / "guidellm_0.8_cut.json")
    requests = run.requests
    assert requests is not None
    cut_ttft_s = requests.ttft_s[requests.ended(End.CANCELLED)]
    limit_s = float(np.sort(cut_ttft_s)[0]) + 1e-6  # the other two had their first token too late
    done = requests.ttft_s[requests.ended(End.COMPLETED)] <= limit_s
    assert held_against(run, StageSLO(ttft_s=limit_s)).attainment == done.sum() / (12 + 2)
    assert held_against(run, StageSLO(e2el_s=1e-3)).attainment == 0.0
    assert held_against(run, StageSLO(tpot_s=1.0)).attainment == 1.0  # of 12: of the other three nobody knows


def test_what_is_unknown_of_one_request_is_unknown_of_the_run(tmp_path: Path):
    data = document(GOLDEN / "guidellm_0.8_refused.json")
    rows = data["benchmarks"][0]["requests"]["successful"]
    for row in rows:
        row["info"]["timings"]["first_token_iteration"] = None  # a server that doesn't stream
    run = one(written(tmp_path / "a.json", data))
    assert held_against(run, StageSLO(e2el_s=1.0)).attainment == 0.5
    assert held_against(run, StageSLO(ttft_s=1.0)).attainment is None
    assert held_against(run, StageSLO(ttft_s=1.0, e2el_s=1e-3)).attainment == 0.0  # missed already by another limit
    assert held_against(run, StageSLO(ttft_slowdown=3.0)).attainment is None
