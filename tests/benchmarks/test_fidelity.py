"""What benchmarks/fidelity.py reads out of a run, and its bars where the public data is at hand."""

from __future__ import annotations

import csv
import gzip
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from paths import REPO, SHARED_DATA, needs_shared_data

sys.path.insert(0, str(REPO / "benchmarks"))

from fidelity_replay import prompt_texts, read_run, read_runs, replay, tpot_s, true_lengths
from fidelity_shapes import leave_one_out, read_groups, shape_named

FACTS = {
    "run": "7", "experiment": "20260101-000000-x", "model": "meta-llama/Llama-2-7b-hf", "gpu": "NVIDIA H100", "tp": "1",
    "max_num_seqs": "128", "max_num_batched_tokens": "2048", "max_model_len": "4096",
    "kv_blocks_total_gpu": "7462", "block_size": "16", "system_prompt_len": "0",
}  # fmt: skip


def test_a_cycle_of_prompts_is_seen_through_changed_places() -> None:
    cycle = np.random.default_rng(0).integers(500, 700, 100)
    prompts = np.tile(cycle, 10)
    prompts[[205, 206]] = prompts[[206, 205]]
    prompts[300:310] = 0  # of failed requests nothing is known
    texts, _ = prompt_texts(prompts)
    expected = np.tile(np.arange(100), 10)
    expected[[205, 206]] = [6, 5]
    assert texts == expected.tolist()


def test_prompts_of_their_own_are_no_cycle() -> None:
    prompts = np.random.default_rng(1).integers(1, 2000, 500)
    assert prompt_texts(prompts) == ([None] * 500, ())


def test_counts_that_decode_times_do_not_follow_are_replaced_by_the_commonest() -> None:
    rng = np.random.default_rng(2)
    counted = np.where(rng.random(1000) < 0.6, 248, rng.integers(1, 248, 1000))
    lengths, note = true_lengths(counted, rng.normal(2.0, 0.1, 1000))
    assert set(lengths.tolist()) == {248}
    assert note
    lengths, note = true_lengths(counted, counted * 0.01)
    assert lengths.tolist() == counted.tolist()
    assert not note


def test_a_failed_request_keeps_its_prompt_and_the_clients_limit() -> None:
    rows = [
        {
            "arrival_s": str(at), "input_tokens": str(500 + at % 5), "output_tokens": "100", "prefix_group": "",
            "has_error": "0", "ttft_s": "0.03", "e2e_s": "1.0",
        }
        for at in range(50)
    ]  # fmt: skip
    rows[33] |= {"has_error": "1", "input_tokens": "0", "output_tokens": "0", "ttft_s": "", "e2e_s": "300.4"}
    model = shape_named(FACTS["model"])
    assert model is not None
    run = read_run(FACTS, rows, model)
    assert run.timeout_s == 300
    assert run.overloaded
    assert run.requests[33].prompt_tokens == 503
    assert np.isnan(run.ttft_s[33])
    assert run.requests[33].prefix == run.requests[3].prefix != run.requests[4].prefix


def test_the_second_asking_of_a_prompt_is_answered_sooner() -> None:
    rows = [
        {
            "arrival_s": str(at), "input_tokens": str(1500 + at % 3), "output_tokens": "8", "prefix_group": "",
            "has_error": "0", "ttft_s": "0.03", "e2e_s": "0.1",
        }
        for at in range(12)
    ]  # fmt: skip
    model = shape_named(FACTS["model"])
    assert model is not None
    ttft_s = replay(read_run(FACTS, rows, model)).ttft_s
    assert ttft_s[:3].min() > 2 * ttft_s[3:].max()


def test_a_model_without_a_shape_is_named_and_passed_over(tmp_path: Path) -> None:
    with (tmp_path / "x_runs.csv").open("w") as file:
        writer = csv.DictWriter(file, FACTS)
        writer.writeheader()
        writer.writerow(FACTS | {"model": "nobody/Unheard-1B"})
    with gzip.open(tmp_path / "x_requests.csv.gz", "wt") as file:
        file.write("run,index\n")
    unknown: set[str] = set()
    assert list(read_runs(tmp_path, unknown)) == []
    assert unknown == {"nobody/Unheard-1B"}


@needs_shared_data
def test_models_left_out_are_predicted_within_15_percent() -> None:
    groups, unknown = read_groups(SHARED_DATA / "perf")
    assert not unknown
    for row in leave_one_out(groups):
        limit = 0.15 if row.rates_of.startswith(row.gpu) else 0.25  # else the GPU was left out with its only model
        assert row.mape <= limit, row
        assert row.seen_mape <= 0.12, row


@needs_shared_data
@pytest.mark.parametrize("number", ["1", "11"])
def test_real_runs_replay_within_10_percent(number: str) -> None:
    """The first requests of a Llama run and of a Mixtral run, after the server has warmed up."""
    whole = next(run for run in read_runs(SHARED_DATA / "e2e", set()) if run.name.split()[0] == number)
    some = 1500
    run = replace(whole, requests=list(islice(whole.requests, some)))
    simulated = replay(run)
    warm = slice(300, some)
    counted = whole.counted_tokens[warm]
    pairs = [
        (whole.ttft_s[warm], simulated.ttft_s[warm]),
        (whole.e2e_s[warm], simulated.e2e_s[warm]),
    ]
    pairs.append(tuple(tpot_s(ttft, e2e, counted) for ttft, e2e in zip(*pairs, strict=True)))
    for measured, ours in pairs:
        assert np.nanmedian(ours) == pytest.approx(np.nanmedian(measured), rel=0.1)
