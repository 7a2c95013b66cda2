from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.perf.batch_time import MAX_TOKENS, Batch, BatchTime, Piece
from sloguard.perf.coefficients import COEFFICIENTS, batch_time, coefficients_for
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


@given(batches, st.integers(1, 4096))
def test_more_work_never_takes_less_time(batch: Batch, tokens: int):
    """A decode longer than the mean: the terms of mixed batches know the longest by the mean only."""
    length = batch.kv_tokens // max(1, batch.decodes) + 1
    more = Batch((*batch.chunks, (tokens, 0)), batch.decodes + 1, batch.kv_tokens + length)
    for row in COEFFICIENTS:
        assert row.gpu_time.seconds(more) >= row.gpu_time.seconds(batch) > 0


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


@pytest.mark.parametrize(("eager", "published_ms"), [(False, 431), (True, 1980)])
def test_published_latency_of_100_tokens(eager: bool, published_ms: float):
    """SLO-Guard's public trials: Qwen2-1.5B on an A100 40 GB, requests of 100 output tokens, one at a time."""
    model = batch_time(MODELS["Qwen/Qwen2-1.5B"], GPUS["A100-40GB"], 1, eager=eager)
    prefill_s = model.seconds(Batch(((20, 0),)))
    decode_s = sum(model.seconds(Batch((), 1, 20 + k)) for k in range(1, 100))
    assert (prefill_s + decode_s) * 1e3 == pytest.approx(published_ms, rel=0.15)


def test_a_finetune_of_a_shipped_model_has_its_coefficients_and_another_model_a_labelled_prediction():
    tuned = coefficients_for(MODELS["meta-llama/Llama-3.1-8B-Instruct"], GPUS["H100"], 1)
    assert tuned.model == "meta-llama/Llama-3.1-8B"
    assert tuned.mape is not None
    other = coefficients_for(MODELS["Qwen/Qwen2-7B"], GPUS["L4"], 1)
    assert other.mape is None
    assert other.source.startswith("predicted")


def test_every_row_names_its_source_and_memory_moves_only_what_reads_memory():
    assert all(row.source for row in COEFFICIENTS)
    rows = {(row.gpu, row.model): row.gpu_time for row in COEFFICIENTS}
    small, large = rows["A100-40GB", "Qwen/Qwen2-1.5B"], rows["A100-80GB", "Qwen/Qwen2-1.5B"]
    assert small.curve == large.curve
    for slow, fast in zip(small.pieces, large.pieces, strict=True):
        assert slow.prefill_token_s == fast.prefill_token_s
        assert slow.kv_token_s / fast.kv_token_s == pytest.approx(2039 / 1555)
        assert slow.base_s - fast.base_s == pytest.approx(3.09e9 / 1.555e12 - 3.09e9 / 2.039e12, rel=0.01)


def test_no_row_hides_another():
    keys = [(row.gpu, row.model, row.tp) for row in COEFFICIENTS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("gpu", ["A100-40GB", "A100-80GB"])
def test_published_coefficients_are_end_to_end_so_nothing_is_added(gpu: str):
    """SLOs-Serve, arXiv 2504.08784: T = max(6.878e-5 n + 0.0248, 7.52e-5 n + 0.00303) seconds for n tokens."""
    opt = MODELS["facebook/opt-6.7b"]
    for eager, synchronous in ((False, False), (True, True)):
        time = batch_time(opt, GPUS[gpu], 1, eager=eager, graph_sizes=(512,), synchronous=synchronous)
        assert time.seconds(Batch(((100, 0),), 28, 50_000)) == pytest.approx(0.0248 + 128 * 6.878e-5)
        assert time.seconds(Batch(((8192, 0),))) == pytest.approx(0.00303 + 8192 * 7.52e-5)
    drafting = batch_time(MODELS["facebook/opt-13b"], GPUS[gpu], 2, eager=False)
    assert drafting.seconds(Batch((), 10, 0, 30, 3)) == pytest.approx(0.03173 + 40 * 7.213e-5 + 3 * 3.341e-3)


def test_without_async_scheduling_the_cpu_adds_to_other_rows():
    llama, gpu = MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"]
    batch = Batch((), 100, 50_000)
    gpu_s = coefficients_for(llama, gpu, 1).gpu_time.seconds(batch)
    assert batch_time(llama, gpu, 1, eager=False).seconds(batch) == pytest.approx(gpu_s)
    waits = batch_time(llama, gpu, 1, eager=False, synchronous=True)
    assert waits.seconds(batch) == pytest.approx(gpu_s + 0.2e-3 + 100 * 0.05e-3)
