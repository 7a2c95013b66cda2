"""Predictions from shape alone: held to physics and to published steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.perf.batch_time import Batch
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.perf.roofline import kind_of, predicted_from, predicted_pieces, predicted_time

H100 = GPUS["H100"]
LLAMA = MODELS["meta-llama/Llama-3.1-8B"]
MIXTRAL = MODELS["mistralai/Mixtral-8x7B-v0.1"]

batches = st.builds(
    lambda tokens, context, decodes, kv: Batch(((tokens, context),) if tokens else (), decodes, decodes * kv),
    st.integers(0, 8192),
    st.integers(0, 8192),
    st.integers(1, 512),
    st.integers(1, 8192),
)


@given(
    st.sampled_from(list(MODELS.values())), st.sampled_from(list(GPUS.values())), st.sampled_from([1, 2, 4]), batches
)
def test_no_step_beats_the_datasheet(model, gpu, tp, batch) -> None:
    tokens = batch.prefill_tokens + batch.decodes
    table = model.vocab * model.hidden * model.dtype_bytes
    active = 2 * (model.active_parameters - model.embedding_parameters)
    reading_s = (active - table) / tp / gpu.bandwidth_bytes_s
    arithmetic_s = active * tokens / tp / gpu.flops
    kv_s = batch.kv_tokens * model.kv_bytes(2048, tp) / 2048 / gpu.bandwidth_bytes_s
    assert predicted_time(model, gpu, tp).seconds(batch) > max(reading_s, arithmetic_s, kv_s)


@given(
    st.sampled_from(list(MODELS.values())), st.sampled_from(list(GPUS.values())), st.sampled_from([1, 2, 4]), batches
)
def test_more_work_never_takes_less_time(model, gpu, tp, batch) -> None:
    time = predicted_time(model, gpu, tp)
    more = (
        replace(batch, chunks=(*batch.chunks, (1, 0))),
        replace(batch, decodes=batch.decodes + 1),
        replace(batch, kv_tokens=batch.kv_tokens + 16),
    )
    assert all(time.seconds(larger) >= time.seconds(batch) for larger in more)


@pytest.mark.parametrize(
    ("model", "tp", "ms"),
    [("meta-llama/Llama-3.1-8B", 1, 6.85), ("meta-llama/Llama-3.1-70B", 4, 16.85)],
)
def test_a_decode_of_eight_takes_as_long_as_its_kernels(model: str, tp: int, ms: float) -> None:
    """Composed from AIConfigurator's vLLM 0.24 kernel tables of H100: 8 requests at 512 tokens."""
    step_s = predicted_time(MODELS[model], H100, tp).seconds(Batch((), 8, 8 * 512))
    assert step_s * 1e3 == pytest.approx(ms, rel=0.1)


def test_half_the_bandwidth_slows_decodes_and_half_the_arithmetic_slows_prompts() -> None:
    slow_memory = replace(H100, bandwidth_bytes_s=H100.bandwidth_bytes_s / 2)
    slow_cores = replace(H100, flops=H100.flops / 2)
    decode, prompt = Batch((), 8, 8 * 2048), Batch(((8192, 0),))

    def factor(gpu, batch: Batch) -> float:
        return predicted_time(LLAMA, gpu, 1).seconds(batch) / predicted_time(LLAMA, H100, 1).seconds(batch)

    assert factor(slow_memory, decode) > 1.6
    assert factor(slow_cores, decode) < 1.05
    assert factor(slow_cores, prompt) > 1.6


def test_one_token_reads_its_own_experts_and_many_tokens_read_all() -> None:
    time = predicted_time(MIXTRAL, H100, 2)
    all_read = max(piece.base_s for piece in predicted_pieces(MIXTRAL, H100, 2))
    one_s = time.seconds(Batch((), 1, 1))
    active_share = MIXTRAL.active_parameters / MIXTRAL.parameters
    assert one_s < all_read * (active_share + 0.15)
    many = Batch((), 64, 64)
    assert time.seconds(many) == pytest.approx(
        max(p.base_s + 64 * p.decode_s + 64 * p.kv_token_s for p in predicted_pieces(MIXTRAL, H100, 2)), rel=1e-3
    )


def test_four_bit_weights_are_read_faster_and_only_eight_bit_floats_compute_faster() -> None:
    decode, prompt = Batch((), 1, 128), Batch(((8192, 0),))
    plain, four, eight = (predicted_time(replace(LLAMA, weight_bits=bits), H100, 1) for bits in (None, 4.5, 8.0))
    assert four.seconds(decode) < eight.seconds(decode) < plain.seconds(decode)
    assert four.seconds(prompt) > 0.95 * plain.seconds(prompt)
    assert eight.seconds(prompt) < 0.7 * plain.seconds(prompt)
    a100 = GPUS["A100-80GB"]  # has no FP8
    prompts_s = [predicted_time(replace(LLAMA, weight_bits=b), a100, 1).seconds(prompt) for b in (None, 8.0)]
    assert prompts_s[1] > 0.95 * prompts_s[0]


def test_windows_save_kv_reads() -> None:
    windowed = replace(LLAMA, sliding_window=512, sliding_layers=24)
    full, some = (predicted_time(m, H100, 1).seconds(Batch((), 128, 128 * 2048)) for m in (LLAMA, windowed))
    assert some < 0.7 * full


def test_gpus_never_measured_say_whose_rates_they_use() -> None:
    assert predicted_from(H100) == "rates measured on H100"
    assert "never measured" in predicted_from(GPUS["B200"])
    assert "H100, H200" in predicted_from(GPUS["B200"])
    assert kind_of(GPUS["L4"]) is kind_of(GPUS["RTX-4090"])
    assert kind_of(GPUS["A100-40GB"]) is kind_of(GPUS["A100-80GB"]) is not kind_of(GPUS["RTX-A6000"])
    assert kind_of(replace(GPUS["B200"], compute_capability=(10, 3))) is kind_of(GPUS["B200"])
