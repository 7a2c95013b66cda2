from __future__ import annotations

import csv
import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import SHARED_DATA, needs_shared_data
from sloguard.perf.batch_time import MAX_TOKENS, Batch, BatchTime, Piece
from sloguard.perf.coefficients import COEFFICIENTS, batch_time, coefficients_for, predicted_pieces
from sloguard.perf.fit import Sample, fit, residuals
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS

READING = Piece(10e-3, 1e-6, 1e-6, 10e-9, 0.0)
COMPUTING = Piece(5e-3, 50e-6, 50e-6, 10e-9, 1e-9)
TWO = BatchTime((READING, COMPUTING))

chunks = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 8192)), max_size=4).map(tuple)
batches = st.builds(Batch, chunks, st.integers(0, 512), st.integers(0, 500_000))

per_token = st.sampled_from([0.0, 1e-6, 7.3e-6, 1e-4])
bases = st.sampled_from([-5e-3, 0.0, 1e-3, 8.1e-3])
pieces = st.builds(Piece, bases, per_token, per_token, st.just(1e-8), per_token, per_token, st.just(3e-8), per_token)
corners = st.dictionaries(st.integers(1, 150), per_token, max_size=4)
curves = st.builds(lambda first, more: ((0, first), *sorted(more.items())), per_token, corners)
models = st.builds(
    BatchTime,
    st.lists(pieces, min_size=1, max_size=3).map(tuple),
    cpu_step_s=st.sampled_from([0.0, 2e-4]),
    cpu_sequence_s=st.sampled_from([0.0, 5e-5]),
    launch_s=st.sampled_from([0.0, 5e-3]),
    draft_step_s=st.sampled_from([0.0, 3e-3]),
    graph_sizes=st.sets(st.integers(1, 150), max_size=6).map(lambda sizes: tuple(sorted(sizes))),
    curve=st.just(()) | curves,
)
others = st.fixed_dictionaries(
    {
        "decodes": st.integers(0, 100),
        "kv_tokens": st.integers(0, 100_000),
        "context_tokens": st.integers(0, 5000),
        "draft_tokens": st.integers(0, 30),
        "draft_steps": st.integers(0, 5),
    }
)


def one_chunk(tokens: int, decodes: int, kv_tokens: int, context_tokens: int, draft_tokens: int, draft_steps: int):
    return Batch(((tokens, context_tokens),) if tokens else (), decodes, kv_tokens, draft_tokens, draft_steps)


def test_larger_of_the_pieces_counts():
    assert TWO.seconds(Batch((), 1, 0)) == pytest.approx(10e-3 + 1e-6)
    assert TWO.seconds(Batch(((1000, 0),))) == pytest.approx(5e-3 + 1000 * 50e-6 + 500_000 * 1e-9)


@given(batches)
def test_more_work_never_takes_less_time(batch: Batch):
    more = Batch((*batch.chunks, (16, 0)), batch.decodes + 1, batch.kv_tokens + 100)
    for row in COEFFICIENTS:
        model = BatchTime(row.pieces)
        assert model.seconds(more) >= model.seconds(batch) > 0


@given(models, others, st.integers(0, 150), st.floats(0.5, 1.5))
def test_the_inverse_is_the_largest_chunk_within_the_budget(
    model: BatchTime, others: dict[str, int], n: int, off: float
):
    exact_s = model.seconds(one_chunk(n, **others))
    for budget_s in (exact_s, exact_s * off):
        found = model.inverse(budget_s, **others)
        fitting = [t for t in range(1, 200) if model.seconds(one_chunk(t, **others)) <= budget_s]
        assert fitting == list(range(1, min(found, 199) + 1))
        if found:
            assert model.seconds(one_chunk(found, **others)) <= budget_s
        assert found == MAX_TOKENS or model.seconds(one_chunk(found + 1, **others)) > budget_s


@given(models, others, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_larger_budget_never_holds_less(model: BatchTime, others: dict[str, int], one_s: float, other_s: float):
    less_s, more_s = sorted((one_s, other_s))
    assert model.inverse(less_s, **others) <= model.inverse(more_s, **others)


@given(models, st.integers(0, 300), st.integers(0, 1_000_000), st.integers(0, 40))
def test_a_run_of_decodes_takes_what_its_steps_take_one_by_one(model: BatchTime, decodes: int, kv: int, steps: int):
    one_by_one = [model.seconds(Batch((), decodes, kv + step * decodes)) for step in range(steps)]
    assert model.decode_run_s(decodes, kv, steps).tolist() == one_by_one


@given(models, batches)
def test_lower_pieces_are_never_above_a_step(model: BatchTime, batch: Batch):
    plain = replace(model, graph_sizes=(), launch_s=0.0, cpu_step_s=0.0, cpu_sequence_s=0.0)
    lower = BatchTime(plain.lower_pieces())
    assert lower.seconds(batch) <= plain.seconds(batch) * (1 + 1e-9) + 1e-12


@given(batches)
def test_lower_pieces_of_a_convex_curve_are_exact(batch: Batch):
    model = BatchTime((READING, COMPUTING), curve=((0, 1e-6), (100, 2e-6), (1000, 9e-6)))
    assert BatchTime(model.lower_pieces()).seconds(batch) == pytest.approx(model.seconds(batch))


def test_a_curve_adds_what_its_segments_say_to_padded_tokens():
    model = BatchTime((Piece(1e-3, 0.0, 0.0, 0.0, 0.0),), graph_sizes=(16,), curve=((0, 0.0), (10, 1e-6), (100, 2e-6)))
    assert model.seconds(Batch((), 9, 0)) == pytest.approx(1e-3 + 6e-6)
    assert model.seconds(Batch(((150, 0),), 10)) == pytest.approx(1e-3 + 90e-6 + 120e-6)


@pytest.mark.parametrize("curve", [((1, 0.0),), ((0, 0.0), (5, 1e-6), (5, 2e-6)), ((0, -1e-6),)])
def test_a_curve_that_is_none_is_refused(curve: tuple[tuple[int, float], ...]):
    with pytest.raises(ValueError, match="curve"):
        BatchTime((READING,), curve=curve)


@given(models, batches, st.floats(0.1, 10))
def test_a_scaled_model_takes_so_many_times_as_long(model: BatchTime, batch: Batch, factor: float):
    assert model.scaled(factor).seconds(batch) == pytest.approx(factor * model.seconds(batch))


def test_a_prompt_in_chunks_has_the_attention_of_the_whole():
    whole = Batch(((1024, 0),)).attention_pairs
    halves = Batch(((512, 0),)).attention_pairs + Batch(((512, 512),)).attention_pairs
    assert halves == whole


def test_graphs_pad_to_the_next_captured_size_and_not_beyond_the_last():
    model = BatchTime((COMPUTING,), graph_sizes=(8, 16))
    assert model.seconds(Batch((), 9, 0)) == pytest.approx(5e-3 + 9 * 50e-6 + 7 * 50e-6)
    assert model.seconds(Batch((), 16, 0)) == pytest.approx(5e-3 + 16 * 50e-6)
    assert model.seconds(Batch((), 17, 0)) == pytest.approx(5e-3 + 17 * 50e-6)


def test_eager_steps_wait_for_the_launches_until_the_gpu_is_slower():
    model = BatchTime((COMPUTING,), launch_s=20e-3)
    assert model.seconds(Batch((), 1, 0)) == 20e-3
    assert model.seconds(Batch(((2000, 0),))) > 0.1


def test_fit_recovers_two_known_pieces():
    rng = np.random.default_rng(0)
    grid = [(int(p), int(d), int(d * c)) for p in (0, 32, 128, 512, 2048) for d in (1, 8, 64, 256) for c in (64, 2048)]
    samples = [
        Sample(b, TWO.seconds(b) * rng.lognormal(0, 0.005))
        for p, d, k in grid
        for b in [Batch(((p, 0),) if p else (), d, k)]
    ]
    found = fit(samples)
    assert found.mape < 0.01
    assert found.r2 > 0.999
    slow, fast = sorted(found.model.pieces, key=lambda piece: piece.prefill_token_s, reverse=True)
    assert slow.prefill_token_s == pytest.approx(COMPUTING.prefill_token_s, rel=0.03)
    assert fast.base_s == pytest.approx(READING.base_s, rel=0.03)


def test_fit_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="too few"):
        fit([Sample(Batch((), 1, 1), 1.0)] * 5)
    with pytest.raises(ValueError, match="some time"):
        fit([Sample(Batch((), 1, 1), 0.0)] * 20)


def sample(row: dict[str, str]) -> Sample:
    prefill = int(row["num_prefill_tokens"])
    batch = Batch(((prefill, 0),) if prefill else (), int(row["num_decode_tokens"]), int(row["kv_tokens"]))
    return Sample(batch, float(row["total_ms"]) / 1e3)


@needs_shared_data
@pytest.mark.parametrize(
    ("gpu", "system", "kernels", "name", "model", "tp"),
    [
        ("A100-80GB", "a100_sxm", "0.14.0", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B", 1),
        ("A100-80GB", "a100_sxm", "0.14.0", "Llama-3.1-70B", "meta-llama/Llama-3.1-70B", 4),
        ("H100", "h100_sxm", "0.24.0", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B", 1),
        ("H100", "h100_sxm", "0.24.0", "Llama-3.1-70B", "meta-llama/Llama-3.1-70B", 4),
        ("H200", "h200_sxm", "0.24.0", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B", 1),
        ("H200", "h200_sxm", "0.24.0", "Llama-3.1-70B", "meta-llama/Llama-3.1-70B", 4),
    ],
)
def test_shipped_coefficients_and_a_fit_of_half_the_steps_predict_the_measured_ones(
    gpu: str, system: str, kernels: str, name: str, model: str, tp: int
):
    with gzip.open(SHARED_DATA / "perf" / "derived_batch_times_aic_vidur.csv.gz", "rt") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["system"], row["vllm_kernels"], row["model"], row["tp"]) == (system, kernels, name, str(tp))
        ]
    samples = [sample(row) for row in rows]
    shipped = residuals(BatchTime(coefficients_for(MODELS[model], GPUS[gpu], tp).pieces), samples)
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    half = len(samples) // 2
    held_out = residuals(fit(shuffled[:half]).model, shuffled[half:])
    for result in (shipped, held_out):
        assert result.mape <= 0.05
        assert result.r2 > 0.95


@pytest.mark.parametrize(("eager", "published_ms"), [(False, 431), (True, 1980)])
def test_published_latency_of_100_tokens(eager: bool, published_ms: float):
    """SLO-Guard's public trials: Qwen2-1.5B on an A100 40 GB, requests of 100 output tokens, one at a time."""
    model = batch_time(MODELS["Qwen/Qwen2-1.5B"], GPUS["A100-40GB"], 1, eager=eager)
    prefill_s = model.seconds(Batch(((20, 0),)))
    decode_s = sum(model.seconds(Batch((), 1, 20 + k)) for k in range(1, 100))
    assert (prefill_s + decode_s) * 1e3 == pytest.approx(published_ms, rel=0.15)


@pytest.mark.parametrize("row", COEFFICIENTS, ids=lambda row: f"{row.gpu} {row.model}")
def test_a_prediction_from_shape_is_near_what_was_measured(row):
    predicted = BatchTime(predicted_pieces(MODELS[row.model], GPUS[row.gpu], row.tp))
    measured = BatchTime(row.pieces)
    for batch in (Batch((), 1, 256), Batch((), 64, 65536), Batch(((512, 0),)), Batch(((2048, 0),), 64, 32768)):
        assert predicted.seconds(batch) == pytest.approx(measured.seconds(batch), rel=0.30)


def test_a_finetune_of_a_shipped_model_has_its_coefficients_and_another_model_a_labelled_prediction():
    tuned = coefficients_for(MODELS["meta-llama/Llama-3.1-8B-Instruct"], GPUS["H100"], 1)
    assert tuned.model == "meta-llama/Llama-3.1-8B"
    assert tuned.mape is not None
    other = coefficients_for(MODELS["Qwen/Qwen2-7B"], GPUS["L4"], 1)
    assert other.mape is None
    assert other.source.startswith("predicted")


def test_every_row_names_its_source_and_memory_moves_only_what_reads_memory():
    assert all(row.source for row in COEFFICIENTS)
    rows = {(row.gpu, row.model): row for row in COEFFICIENTS}
    small, large = rows["A100-40GB", "Qwen/Qwen2-1.5B"], rows["A100-80GB", "Qwen/Qwen2-1.5B"]
    for slow, fast in zip(small.pieces, large.pieces, strict=True):
        assert slow.prefill_token_s == fast.prefill_token_s
        assert slow.kv_token_s / fast.kv_token_s == pytest.approx(2039 / 1555)
        assert slow.base_s - fast.base_s == pytest.approx(3.09e9 / 1.555e12 - 3.09e9 / 2.039e12, rel=0.01)
