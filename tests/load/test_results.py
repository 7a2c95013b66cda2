"""Files that the tools themselves wrote (tests/golden/results), read and held against what those tools say in them."""

from __future__ import annotations

import gzip
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paths import REPO
from sloguard.errors import SpecError
from sloguard.load.results import read_results
from sloguard.load.run_figures import CLIENT_LIMITED, TOLD_GOODPUT, RunFigures, held_against, recomputed
from sloguard.metrics import Dist, Summary, summarise
from sloguard.report.bench import to_json
from sloguard.report.runs import runs_rows, runs_table
from sloguard.report.vllm_json import to_vllm_json
from sloguard.request import End, Timeline
from sloguard.slo import NO_SLO, StageSLO
from timelines import RUNS, timeline

GOLDEN = REPO / "tests" / "golden" / "results"
OWN, OWN_VLLM = GOLDEN / "sloguard_bench.json", GOLDEN / "sloguard_bench_vllm.json"
VLLM = GOLDEN / "vllm_0.32.json"
GUIDELLM = GOLDEN / "guidellm_0.8.json.gz"
AIPERF = GOLDEN / "aiperf_0.13" / "profile_export_aiperf.json"
AIPERF_REFUSED = GOLDEN / "aiperf_0.13_refused" / "profile_export_aiperf.json"
LEVELS = (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99))
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


# What each file holds. The figures were read off the tools' own reports on the terminal.


def test_our_own_json():
    run = one(OWN)
    summary = Summary.from_json(document(OWN)["summary"])
    assert (run.tool, run.tool_version, run.label) == ("sloguard bench", "0.1.0", "Llama-3.1-8B, 4 req/s constant")
    assert (run.offered, run.completed, run.failed, run.unfinished) == (24, 24, 0, 0)
    assert (run.ttft_s, run.tpot_s, run.itl_s, run.e2el_s) == (
        summary.ttft_s,
        summary.tpot_s,
        summary.itl_s,
        summary.e2el_s,
    )
    assert (run.counts_from, run.slo, run.attainment, run.request_goodput) == (
        "due",
        PROMISED,
        1.0,
        summary.request_goodput,
    )
    assert run.burstiness == np.inf
    assert run.notes == (CLIENT_LIMITED,)
    refused = one(GOLDEN / "sloguard_bench_refused.json")
    assert (refused.offered, refused.completed, refused.failed, refused.attainment) == (12, 6, 6, 0.5)


def test_vllm_with_requests():
    run = one(VLLM)
    assert (run.tool, run.tool_version, run.model) == ("vllm bench serve", None, "meta-llama/Llama-3.1-8B")
    assert (run.strategy, run.request_rate, run.concurrency, run.burstiness) == ("constant", 4.0, None, 1e6)
    assert (run.offered, run.completed, run.failed) == (24, 24, 0)
    assert (run.input_tokens, run.output_tokens) == (24 * 256, 24 * 32)
    assert run.counts_from == "sent"
    assert run.queue_delay_s is None
    assert (run.slo, run.attainment) == (None, 1.0)
    data = document(VLLM)
    assert run.told.request_throughput == data["request_throughput"]
    assert known(run.told.ttft_s)["p99"] == data["p99_ttft_ms"] / 1000
    assert run.e2el_s is not None
    assert run.e2el_s.max == max(data["latencies"])


def test_vllm_without_requests_is_as_told_and_says_so():
    run = one(GOLDEN / "vllm_0.32_aggregate.json")
    assert run.requests is None
    assert (run.duration_s, run.request_throughput, run.ttft_s) == (
        run.told.duration_s,
        run.told.request_throughput,
        run.told.ttft_s,
    )
    assert run.tpot_s is not None
    assert (run.tpot_s.n, run.tpot_s.max) == (None, None)  # nobody told
    assert any("--save-detailed" in note for note in run.notes)
    assert held_against(run, PROMISED).attainment is None


def test_vllm_that_waited_for_its_own_concurrency_limit_counts_from_when_the_rate_was_due():
    run, data = one(GOLDEN / "vllm_0.32_queued.json"), document(GOLDEN / "vllm_0.32_queued.json")
    waited_s = np.mean(data["queue_times"])
    assert run.counts_from == "due"
    assert waited_s > 0.2
    assert known(run.ttft_s)["mean"] == pytest.approx(known(run.told.ttft_s)["mean"] + waited_s)
    assert known(run.e2el_s)["mean"] == pytest.approx(known(run.told.e2el_s)["mean"] + waited_s)
    assert known(run.queue_delay_s)["mean"] == pytest.approx(waited_s)
    same(run.tpot_s, run.told.tpot_s)


def test_vllm_closed_loop_has_no_due_instants(tmp_path: Path):
    data = document(GOLDEN / "vllm_0.32_queued.json") | {"request_rate": "inf"}
    run = one(written(tmp_path / "a.json", data))
    assert (run.strategy, run.request_rate, run.burstiness, run.counts_from) == ("concurrent", np.inf, None, "sent")
    same(run.ttft_s, run.told.ttft_s)
    assert run.label == "Llama-3.1-8B, concurrent, at most 2 at once"


def test_vllm_requests_that_failed():
    run = one(GOLDEN / "vllm_0.32_refused.json")
    assert (run.offered, run.completed, run.failed, run.attainment) == (12, 6, 6, 0.5)
    assert run.ttft_s is not None
    assert run.ttft_s.n == 6
    assert run.duration_s == run.told.duration_s  # when those that failed ended is not in the file
    assert held_against(run, PROMISED).request_goodput == pytest.approx(6 / run.told.duration_s)


def test_vllm_zero_where_nothing_was_measured_is_not_a_latency(tmp_path: Path):
    lost = document(GOLDEN / "vllm_0.32_aggregate.json")
    lost |= {key: 0.0 for key in lost if key.endswith("_ms")}
    lost |= {"completed": 0, "failed": 24, "total_output_tokens": 0, "output_throughput": 0, "request_throughput": 0}
    run = one(written(tmp_path / "lost.json", lost | {"request_goodput": None}))
    assert (run.ttft_s, run.tpot_s, run.e2el_s) == (Dist(), Dist(), Dist())
    assert (run.completed, run.request_throughput, run.attainment) == (0, 0.0, None)
    assert held_against(run, PROMISED).attainment == 0.0  # all that were offered failed
    quick = lost | {"completed": 24, "failed": 0, "total_output_tokens": 24, "mean_ttft_ms": 5.0, "median_ttft_ms": 5.0}
    run = one(written(tmp_path / "quick.json", quick))
    assert run.tpot_s == Dist()  # no answer had a second token
    assert known(run.ttft_s)["mean"] == 0.005


def test_vllm_appended_results_are_several_runs(tmp_path: Path):
    path = tmp_path / "both.json"
    path.write_text(VLLM.read_text().strip() + "\n" + (GOLDEN / "vllm_0.32_refused.json").read_text())
    assert [run.completed for run in read_results(path)] == [24, 6]


def test_older_vllm_files_without_a_count_of_failures_leave_it_unknown(tmp_path: Path):
    data = document(GOLDEN / "vllm_0.32_aggregate.json")
    del data["failed"]
    run = one(written(tmp_path / "a.json", data))
    assert (run.failed, run.offered, run.attainment) == (None, None, None)
    assert run.request_goodput == pytest.approx(data["request_goodput"])


def test_guidellm_gives_a_run_for_each_benchmark():
    slow, fast = read_results(GUIDELLM)
    assert (slow.tool, slow.tool_version) == ("guidellm", "0.8.1")
    assert (slow.label, fast.label) == ("Llama-3.1-8B, 2 req/s constant", "Llama-3.1-8B, 4 req/s constant")
    for run in (slow, fast):
        assert (run.offered, run.completed, run.failed, run.unfinished) == (24, 24, 0, 0)
        assert (run.input_tokens, run.output_tokens) == (24 * 256, 24 * 32)
        assert run.itl_s is None  # its inter_token_latency is a pace, not gaps
        assert (run.slo, run.attainment) == (None, None)
        assert run.counts_from == "due"
    older = one(GOLDEN / "guidellm_0.6.json")
    assert (older.tool_version, older.completed, older.label) == ("0.6.1", 6, "Llama-3.1-8B, 4 req/s constant")


def test_guidellm_requests_that_failed_and_that_were_cut_off():
    refused, cut = one(GOLDEN / "guidellm_0.8_refused.json"), one(GOLDEN / "guidellm_0.8_cut.json")
    assert (refused.completed, refused.failed, refused.unfinished) == (6, 6, 0)
    assert (refused.slo, refused.attainment) == (PROMISED, 0.5)
    assert held_against(refused, PROMISED).attainment == 0.5
    assert (cut.completed, cut.failed, cut.unfinished, cut.offered) == (12, 0, 3, 15)
    assert (cut.strategy, cut.concurrency, cut.request_rate, cut.counts_from) == ("concurrent", 3, None, "sent")
    assert (cut.attainment, held_against(cut, PROMISED).attainment) == (1.0, 1.0)
    assert any("3 of its requests were cut off" in note for note in cut.notes)


def test_guidellm_requests_that_it_lost_sight_of_were_offered():
    run = one(GOLDEN / "guidellm_0.8_lost.json.gz")
    assert (run.offered, run.completed, run.failed, run.unfinished) == (24, 23, 0, 1)
    assert (run.requests is not None, run.attainment) == (True, 1.0)
    assert any(note.startswith("1 of its requests are in no list") for note in run.notes)


def test_guidellm_that_kept_a_sample_of_its_requests_is_as_told(tmp_path: Path):
    data = document(GOLDEN / "guidellm_0.8_cut.json")
    rows = data["benchmarks"][0]["requests"]
    for sample in (rows["successful"][:2], [], None):
        rows["successful"] = sample
        run = one(written(tmp_path / "a.json", data))
        assert (run.requests, run.completed, run.ttft_s, run.counts_from) == (None, 12, run.told.ttft_s, "sent")
        assert any("of 15 requests" in note for note in run.notes)
        assert held_against(run, PROMISED).attainment is None


def test_aiperf_with_the_records_beside_it():
    run = one(AIPERF)
    assert (run.tool, run.tool_version, run.label) == ("aiperf", "0.13.0", "Llama-3.1-8B, 4 req/s constant")
    assert (run.offered, run.completed, run.failed) == (24, 24, 0)
    assert (run.input_tokens, run.output_tokens, run.burstiness) == (24 * 256, 24 * 32, np.inf)
    assert (run.slo, run.attainment, run.counts_from) == (PROMISED, 1.0, "due")
    refused = one(AIPERF_REFUSED)  # whose records are gzipped
    assert refused.requests is not None
    assert (refused.completed, refused.failed, refused.attainment) == (6, 6, 0.5)


def test_aiperf_alone_is_as_told(tmp_path: Path):
    run = one(written(tmp_path / "profile_export_aiperf.json", document(AIPERF)))
    assert (run.requests, run.ttft_s, run.counts_from) == (None, run.told.ttft_s, "sent")
    assert any("profile_export.jsonl" in note for note in run.notes)


def test_aiperf_records_of_another_run_are_left_alone(tmp_path: Path):
    written(tmp_path / "profile_export_aiperf.json", document(AIPERF))
    (tmp_path / "profile_export.jsonl.gz").write_bytes(AIPERF_REFUSED.with_name("profile_export.jsonl.gz").read_bytes())
    run = one(tmp_path / "profile_export_aiperf.json")
    assert (run.requests, run.completed) == (None, 24)
    assert any("another run" in note for note in run.notes)


def test_aiperf_records_alone_give_figures_but_not_what_was_offered():
    run, beside = one(AIPERF.with_name("profile_export.jsonl")), one(AIPERF)
    assert (run.tool, run.tool_version, run.model, run.label) == ("aiperf", None, None, "")
    same(run.ttft_s, beside.told.ttft_s)
    same(run.itl_s, beside.itl_s)


def test_a_gzipped_file_reads_as_the_plain_one(tmp_path: Path):
    packed = tmp_path / "run"  # told by its content, not by its name
    packed.write_bytes(gzip.compress(VLLM.read_bytes()))
    assert one(packed).ttft_s == one(VLLM).ttft_s


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


# What can't be read is said in one line that names the file.

ALL = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "README.md")
JUNK = (None, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 10**400, "x", "", [], {}, [None], [[]], True, [1e308])


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as raised:
        read_results(path, "--compare")
    text = str(raised.value)
    assert "\n" not in text
    assert str(path) in text
    assert text.startswith("--compare = ")
    return text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "of no known tool"),
        ([1], "no JSON object"),
        ({"model_id": "m", "completed": 3, "duration": 1.0}, "total_input_tokens is missing"),
        ({"metadata": {}, "benchmarks": []}, "version None"),
        ({"metadata": {"version": 3}, "benchmarks": [{}]}, "version 3; 1 and 2 are read"),
        ({"metadata": {"version": 2}, "benchmarks": []}, "benchmarks = "),
        ({"schema_version": "2.0", "input_config": {}}, "schema_version '2.0'"),
        ({"schema": 9, "settings": {}, "summary": {}, "requests": []}, "schema 9"),
    ],
)
def test_other_files_and_other_versions(tmp_path: Path, data: Any, expected: str):
    assert expected in refusal(written(tmp_path / "a.json", data))


def test_files_that_are_none(tmp_path: Path):
    assert "No such file" in refusal(tmp_path / "absent.json")
    assert "can't be read" in refusal(tmp_path)
    for content in (
        b"",
        b"\xff\xfe\x00",
        b"\x1f\x8bbroken",
        gzip.compress(b"{}")[:-4],
        b"[" * 100_000,
        b'{"a": 1',
        b"1",
    ):
        (tmp_path / "a.json").write_bytes(content)
        refusal(tmp_path / "a.json")


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_truncated_file_is_refused(tmp_path: Path, path: Path):
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    for share in (0.1, 0.5, 0.99):
        (tmp_path / path.name).write_bytes(text[: int(len(text) * share)])
        assert "no JSON" in refusal(tmp_path / path.name)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed; of lists the first two."""
    found = [at] if at else []
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return found + [place for key, child in inner for place in places(child, (*at, key))]


LINES = {
    path: [json.loads(line) for line in (gzip.decompress(r) if path.suffix == ".gz" else r).splitlines()]
    for path in ALL
    for r in [path.read_bytes()]
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_field_missing_or_of_a_wrong_type_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data):
    path = data.draw(st.sampled_from(ALL))
    lines = json.loads(json.dumps(LINES[path]))
    target = lines[0]
    *way, last = data.draw(st.sampled_from(places(target)))
    for key in way:
        target = target[key]
    if data.draw(st.booleans()):
        del target[last]
    else:
        target[last] = data.draw(st.sampled_from(JUNK))
    file = tmp_path_factory.getbasetemp() / "changed.json"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    try:
        runs = read_results(file)
    except SpecError:
        refusal(file)
        return
    assert json.dumps(runs_rows(runs), allow_nan=False)
    Console(width=120, file=io.StringIO()).print(runs_table(runs))
    for run in runs:
        assert run.label is not None
        for slo in (PROMISED, StageSLO(e2el_s=1.0)):
            held = held_against(run, slo)
            assert held.attainment is None or 0 <= held.attainment <= 1
