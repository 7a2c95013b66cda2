from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from sloguard.crash import Evidence, classify
from sloguard.errors import SpecError
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.sim.memory import memory_of
from sloguard.sim.settings import Settings, read_settings
from sloguard.sim.start import Start, start, startup_seconds
from sloguard.trial import Value

GIB = 1024**3
SMALL, LLAMA, LARGE = "Qwen/Qwen2-1.5B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"
BASE: dict[str, Value] = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "gpu_memory_utilization": 0.9,
    "max_model_len": 4096,
    "enforce_eager": False,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "kv_cache_dtype": "auto",
    "block_size": 16,
    "quantization": None,
    "long_prefill_token_threshold": 0,
    "scheduling_policy": "fcfs",
    "async_scheduling": True,
    "max_cudagraph_capture_size": None,
    "watermark": 0.0,
}


def given(**changes: Value) -> Settings:
    return read_settings({**BASE, **changes})


def begin(settings: Settings, model: str = SMALL, gpu: str = "A100-40GB", tp: int = 1, seed: int = 0, **more) -> Start:
    return start(settings, MODELS[model], GPUS[gpu], tp, np.random.default_rng(seed), **more)


FAILURES = {
    "seqs over tokens": (given(max_num_seqs=1024, max_num_batched_tokens=512), {}, "startup_failure"),
    "length over tokens": (given(enable_chunked_prefill=False), {}, "startup_failure"),
    "length over model": (given(max_model_len=200_000), {}, "startup_failure"),
    "threshold over length": (given(long_prefill_token_threshold=8192), {}, "startup_failure"),
    "unknown quantization": (given(quantization="foo"), {}, "startup_failure"),
    "fp8 KV on Ampere": (given(kv_cache_dtype="fp8"), {}, "startup_failure"),
    "odd blocks": (given(block_size=24), {}, "startup_failure"),
    "heads over ranks": (given(), {"tp": 5}, "startup_failure"),
    "GPU in use": (given(), {"others_bytes": 8 * GIB}, "oom"),
    "weights": (given(), {"model": LARGE, "gpu": "H100"}, "oom"),
    "activations": (given(max_num_batched_tokens=100_000), {"model": LLAMA, "gpu": "L4"}, "oom"),
    "no KV": (given(gpu_memory_utilization=0.6), {"model": LLAMA, "gpu": "L4"}, "oom"),
    "KV too small": (given(max_model_len=131072, gpu_memory_utilization=0.8), {"model": LLAMA}, "oom"),
    "deadline": (given(), {"limit_s": 20.0}, "timeout"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_reads_as_its_kind_and_as_the_configs_fault(name: str):
    settings, where, category = FAILURES[name]
    failure = begin(settings, **where).failure
    assert failure is not None
    assert failure.phase == "startup"
    crash = classify(
        Evidence(failure.phase, None if failure.timed_out else 1, None, failure.timed_out, "\n".join(failure.lines))
    )
    assert crash.category == category
    assert not crash.environment
    assert crash.cause not in ("unknown", "")


def test_the_same_configs_start_where_they_fit():
    assert begin(given()).failure is None
    assert begin(given(kv_cache_dtype="fp8"), gpu="H100").failure is None
    assert begin(given(max_model_len=131072), model=LLAMA, gpu="A100-80GB").failure is None
    assert begin(given(), model=LARGE, gpu="A100-80GB", tp=4).failure is None


def test_rare_faults_and_memory_lost_under_load_end_the_load_not_the_start():
    settings = given(gpu_memory_utilization=0.95, max_num_seqs=1024)
    starts = [begin(settings, gpu="L4", seed=seed) for seed in range(300)]
    failures = [s.failure for s in starts if s.failure is not None and s.failure.phase == "load"]
    kinds = {classify(Evidence("load", 1, log_tail="\n".join(f.lines))).category for f in failures}
    assert kinds == {"oom", "cuda_error"}
    calm = [begin(given(), seed=seed).failure for seed in range(1000)]
    assert 1 <= sum(f is not None for f in calm) <= 30  # one in a hundred, whatever the config


def test_memory_adds_up_and_moves_as_it_should():
    model, gpu = MODELS[LLAMA], GPUS["A100-40GB"]
    base = memory_of(given(), model, gpu, 1, 0)
    assert base.kv + base.weights + base.runtime + base.activations + base.graphs == base.budget
    assert base.weights == pytest.approx(16.06e9, rel=0.01)
    assert base.kv_block == 16 * 131072  # 128 KiB a token
    assert memory_of(given(gpu_memory_utilization=0.8), model, gpu, 1, 0).kv < base.kv
    assert memory_of(given(max_num_batched_tokens=16384), model, gpu, 1, 0).kv < base.kv
    assert memory_of(given(enforce_eager=True), model, gpu, 1, 0).kv > base.kv
    assert memory_of(given(kv_cache_dtype="fp8"), model, gpu, 1, 0).kv_block == base.kv_block // 2
    assert memory_of(given(quantization="fp8"), model, gpu, 1, 0).weights < 0.6 * base.weights
    assert memory_of(given(), model, gpu, 4, 0).weights == base.weights // 4


def test_captured_sizes_are_vllms():
    assert given(max_num_seqs=16).graph_sizes == (1, 2, 4, 8, 16, 24, 32)
    assert given(max_num_seqs=1024).graph_sizes[-3:] == (480, 496, 512)
    assert given(max_cudagraph_capture_size=64).graph_sizes[-1] == 64
    assert given(enforce_eager=True).graph_sizes == ()


def test_eager_and_fewer_graphs_start_faster_and_bigger_models_slower():
    def seconds(name: str, tp: int = 1, **changes: Value) -> float:
        return startup_seconds(given(**changes), MODELS[name], tp)

    assert seconds(SMALL, enforce_eager=True) < seconds(SMALL, max_num_seqs=8) < seconds(SMALL)
    assert seconds(SMALL) < seconds(LLAMA) < seconds(LARGE, 4)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("max_num_seq", 8, "no such knob"),
        ("max_num_seqs", 0, "whole number"),
        ("max_num_seqs", True, "whole number"),
        ("gpu_memory_utilization", 1.2, "share"),
        ("kv_cache_dtype", "int3", "fp8"),
        ("scheduling_policy", "lifo", "fcfs or priority"),
    ],
)
def test_wrong_knobs_are_the_users_error(name: str, value: Value, part: str):
    with pytest.raises(SpecError, match=part) as raised:
        given(**{name: value})
    assert raised.value.field == name


def test_a_missing_knob_is_named():
    values = {name: value for name, value in BASE.items() if name != "block_size"}
    with pytest.raises(SpecError, match="block_size"):
        read_settings(values)
    assert {field.name for field in fields(Settings)} == set(BASE)
