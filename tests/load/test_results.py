"""Files that the tools themselves wrote, read: what they hold, and what they don't."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from result_files import (
    AIPERF,
    AIPERF_REFUSED,
    GOLDEN,
    GUIDELLM,
    OWN,
    PROMISED,
    VLLM,
    document,
    known,
    one,
    same,
    written,
)
from sloguard.load.results import read_results
from sloguard.load.run_figures import CLIENT_LIMITED, held_against
from sloguard.metrics import Dist, Summary

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
    data = document(GOLDEN / "vllm_0.32_queued.json")
    del data["queue_times"]
    assert one(written(tmp_path / "unqueued.json", data)).counts_from == "sent"
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
