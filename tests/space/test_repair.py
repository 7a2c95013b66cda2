"""Repair: deterministic, idempotent, inside the space; and what it leaves to the refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.space.knobs import Categorical, Int
from sloguard.space.memory import fits
from sloguard.space.repair import PAPER_MARGIN, RepairContext, refusal, repair
from sloguard.space.space import Space
from sloguard.space.vllm import PAPER8, space_for
from sloguard.trial import Config

QWEN = MODELS["Qwen/Qwen2-1.5B"]
A100 = GPUS["A100-40GB"]
PAPER = RepairContext((0, 32, 0), QWEN, A100, expected_tokens=612, paper=True)
SMALL = RepairContext((0, 32, 0), MODELS["meta-llama/Llama-3.1-8B"], GPUS["L4"], expected_tokens=2000, paper=True)
MODERN = RepairContext((0, 32, 0), QWEN, A100, fixed=Config({"max_model_len": 4096}))
NOTHING_KNOWN = RepairContext()

SPACES = {
    "paper": (PAPER8, PAPER),
    "paper on a small GPU": (PAPER8, SMALL),
    "vllm": (space_for("vllm", gpu=A100, max_len=4096), MODERN),
    "vllm, hopper": (space_for("vllm", gpu=GPUS["H100"], max_len=131072), replace(MODERN, gpu=GPUS["H100"])),
    "vllm, cpu": (space_for("vllm", device="cpu", max_len=2048), RepairContext((0, 32, 0), QWEN)),
    "nothing known": (PAPER8, NOTHING_KNOWN),
}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_repair_ends_inside_and_repeats_itself(name: str, seed: int) -> None:
    space, context = SPACES[name]
    config = space.sample(np.random.default_rng(seed))
    repaired = repair(config, space, context)
    assert space.contains(repaired.config)
    assert repair(config, space, context) == repaired
    assert repair(repaired.config, space, context) == (again := type(repaired)(repaired.config)), again
    assert bool(repaired.notes) == (repaired.config != config)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_repair_lets_pass_keeps_vllms_own_rules(name: str, seed: int) -> None:
    """The checks of vLLM 0.32's SchedulerConfig.verify_max_model_len, written out again."""
    space, context = SPACES[name]
    config = repair(space.sample(np.random.default_rng(seed)), space, context).config
    if refusal(config, space, context) is not None:
        return
    tokens, seqs = config["max_num_batched_tokens"], config["max_num_seqs"]
    assert isinstance(tokens, int)
    assert isinstance(seqs, int)
    assert tokens >= seqs
    length = config.get("max_model_len", context.fixed.get("max_model_len"))
    if config.get("enable_chunked_prefill") is False and isinstance(length, int):
        assert tokens >= length


def paper(**changes: object) -> Config:
    base: dict[str, object] = {
        "quantization": "fp16",
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 2048,
        "enforce_eager": False,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
    }
    return Config({**base, **changes})  # pyright: ignore[reportArgumentType]


def test_a_sound_config_is_left_alone() -> None:
    assert repair(paper(), PAPER8, PAPER).notes == ()


def test_token_budget_is_raised_to_a_whole_prompt_without_chunked_prefill() -> None:
    config = paper(enable_chunked_prefill=False, max_model_len=4000, max_num_batched_tokens=1024)
    repaired = repair(config, PAPER8, PAPER)
    assert repaired.config == config.replace(max_num_batched_tokens=4000)
    assert repaired.notes == (
        "max_num_batched_tokens: 1024 -> 4000 "
        "(without chunked prefill a whole prompt has to fit in one step: max_num_batched_tokens >= max_model_len)",
    )


def test_chunked_prefill_comes_back_where_no_budget_is_large_enough() -> None:
    space = Space((Int("max_num_batched_tokens", 512, 8192), Categorical("enable_chunked_prefill", (True, False))))
    context = RepairContext(fixed=Config({"max_model_len": "32k"}))
    config = Config({"max_num_batched_tokens": 8192, "enable_chunked_prefill": False})
    assert repair(config, space, context).config == config.replace(enable_chunked_prefill=True)


def test_sequences_give_way_where_the_token_budget_is_pinned() -> None:
    space = Space((Int("max_num_seqs", 4, 512),))
    context = RepairContext(fixed=Config({"max_num_batched_tokens": 128}))
    assert repair(Config({"max_num_seqs": 300}), space, context).config == Config({"max_num_seqs": 128})


def test_what_cannot_be_mended_inside_the_space_is_refused_with_the_reason() -> None:
    space = Space((Int("max_num_seqs", 256, 512),))
    context = RepairContext(fixed=Config({"max_num_batched_tokens": 128}))
    config = Config({"max_num_seqs": 300})
    assert repair(config, space, context).config == config
    assert "max_num_batched_tokens >= max_num_seqs" in (refusal(config, space, context) or "")


def test_memory_is_a_reason_too() -> None:
    context = RepairContext((0, 32, 0), MODELS["meta-llama/Llama-3.1-70B"], A100)
    assert "weights" in (refusal(paper(), PAPER8, context) or "")
    assert refusal(paper(), PAPER8, PAPER) is None
    assert refusal(paper(), PAPER8, NOTHING_KNOWN) is None


def test_length_above_the_models_is_lowered() -> None:
    context = RepairContext(model=MODELS["TinyLlama/TinyLlama-1.1B-Chat-v1.0"])
    assert repair(paper(max_model_len=4096), PAPER8, context).config["max_model_len"] == 2048


def test_the_papers_margin_holds_in_its_own_space_only() -> None:
    """Llama-3.1-8B on an L4 at 0.9: 21.9 GiB less 15.0 of weights leaves little room for 128 sequences."""
    config = paper(max_num_seqs=128, max_model_len=1024)
    planned = repair(config, PAPER8, SMALL)
    seqs = planned.config["max_num_seqs"]
    assert isinstance(seqs, int)
    assert seqs < 128
    model, gpu, tokens = SMALL.model, SMALL.gpu, SMALL.expected_tokens
    assert model is not None
    assert gpu is not None
    assert tokens is not None
    room = PAPER_MARGIN * fits(planned.config, model, gpu).kv_room_bytes
    assert seqs * model.kv_bytes(tokens) <= room < (seqs + 1) * model.kv_bytes(tokens)
    assert repair(config, PAPER8, replace(SMALL, paper=False)).config["max_num_seqs"] == 128


def test_fp8_kv_cache_needs_a_recent_gpu() -> None:
    space = Space((Categorical("kv_cache_dtype", ("auto", "fp8")),))
    config = Config({"kv_cache_dtype": "fp8"})
    assert repair(config, space, RepairContext(gpu=GPUS["T4"])).config == Config({"kv_cache_dtype": "auto"})
    for newer in ("A100-40GB", "L4", "H100"):
        assert repair(config, space, RepairContext(gpu=GPUS[newer])).notes == ()
    pinned = RepairContext(gpu=GPUS["T4"], fixed=config)
    assert "compute capability" in (refusal(Config(), Space(()), pinned) or "")


def test_quantization_methods_that_the_gpu_is_too_old_for() -> None:
    space = Space((Categorical("quantization", ("fp8", "fp16")),))
    config = Config({"quantization": "fp8"})
    assert repair(config, space, RepairContext(gpu=GPUS["V100-16GB"])).config == Config({"quantization": "fp16"})
    assert repair(config, space, RepairContext(gpu=GPUS["T4"])).notes == ()


def test_thresholds_and_active_sequences_keep_below_their_limits() -> None:
    space = Space(
        (
            Categorical("long_prefill_token_threshold", (0, 512, 2048)),
            Int("max_num_seqs", 8, 64),
            Int("max_num_active_seqs", 8, 64),
        )
    )
    config = Config({"long_prefill_token_threshold": 2048, "max_num_seqs": 16, "max_num_active_seqs": 64})
    repaired = repair(config, space, RepairContext(fixed=Config({"max_model_len": 1000}))).config
    assert repaired == config.replace(long_prefill_token_threshold=512, max_num_active_seqs=16)


def test_the_engines_own_default_is_not_touched() -> None:
    assert repair(Config(), PAPER8, PAPER).config == Config()


def test_look_up_needs_synchronous_scheduling_where_something_is_asked() -> None:
    space = Space((Categorical("async_scheduling", (True, False)), Categorical("speculative", ("off", "ngram-3"))))
    both = Config({"async_scheduling": True, "speculative": "ngram-3"})
    assert repair(both, space, NOTHING_KNOWN).config == both.replace(async_scheduling=False)
    assert repair(both.replace(speculative="off"), space, NOTHING_KNOWN).notes == ()
    alone = Space((space.knob("speculative"),))
    left_open = Config({"speculative": "ngram-3"})
    assert repair(left_open, alone, RepairContext(gpu=A100)).notes == ()  # vLLM then switches it off itself
    pinned = RepairContext(fixed=Config({"async_scheduling": True}))
    assert repair(left_open, alone, pinned).config == Config({"speculative": "off"})
