"""Sizes derived from architecture fields, held against published figures."""

from __future__ import annotations

import pytest

from sloguard.errors import SpecError
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS

# Published parameter counts (model cards; safetensors metadata where it is more exact), in 10^9.
PUBLISHED = {
    "Qwen/Qwen2-0.5B": 0.494,
    "Qwen/Qwen2-1.5B": 1.544,
    "Qwen/Qwen2.5-3B": 3.086,
    "Qwen/Qwen2.5-7B": 7.616,
    "Qwen/Qwen2.5-14B": 14.77,
    "Qwen/Qwen2.5-32B": 32.76,
    "Qwen/Qwen2.5-72B": 72.71,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-14B": 14.77,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-30B-A3B": 30.53,
    "meta-llama/Llama-3.2-1B": 1.236,
    "meta-llama/Llama-3.2-3B": 3.213,
    "meta-llama/Llama-3.1-8B": 8.030,
    "meta-llama/Llama-3.1-70B": 70.55,
    "meta-llama/Llama-2-7b-hf": 6.738,
    "meta-llama/Llama-2-13b-hf": 13.016,
    "meta-llama/Llama-2-70b-hf": 68.98,
    "codellama/CodeLlama-7b-hf": 6.739,
    "codellama/CodeLlama-13b-hf": 13.016,
    "codellama/CodeLlama-34b-hf": 33.744,
    "01-ai/Yi-34B": 34.389,
    "mistralai/Mixtral-8x22B-v0.1": 140.62,
    "mistralai/Mistral-7B-v0.1": 7.242,
    "mistralai/Mistral-7B-v0.3": 7.248,
    "mistralai/Mixtral-8x7B-v0.1": 46.70,
    "facebook/opt-6.7b": 6.658,
    "facebook/opt-13b": 12.853,
    "facebook/opt-30b": 29.975,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1.100,
    "microsoft/phi-4": 14.66,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_has_the_published_number_of_parameters(name: str) -> None:
    assert MODELS[name].parameters == pytest.approx(PUBLISHED[name] * 1e9, rel=0.002)


def test_every_row_of_the_table_is_of_a_published_size() -> None:
    """Variants (Instruct, other context) share the size of a row that is checked above."""
    sizes = {MODELS[name].parameters for name in PUBLISHED}
    others = {"Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"}
    assert {m.name for m in MODELS.values() if m.parameters not in sizes} - others == set()


def test_active_parameters_of_a_mixture_of_experts() -> None:
    assert MODELS["mistralai/Mixtral-8x7B-v0.1"].active_parameters == pytest.approx(12.9e9, rel=0.01)
    assert MODELS["Qwen/Qwen3-30B-A3B"].active_parameters == pytest.approx(3.3e9, rel=0.02)
    dense = MODELS["meta-llama/Llama-3.1-8B"]
    assert dense.active_parameters == dense.parameters


CONFIGS: dict[str, tuple[dict[str, object], float]] = {
    "llama": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
        8.030,
    ),
    "qwen3": (
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        },
        0.596,
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "n_inner": None,
            "vocab_size": 50257,
        },
        0.1244,
    ),
    "opt-125m": (
        {
            "model_type": "opt",
            "hidden_size": 768,
            "ffn_dim": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 2048,
            "vocab_size": 50272,
        },
        0.1252,
    ),
    "phi-2": (
        {
            "model_type": "phi",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
            "vocab_size": 51200,
            "tie_word_embeddings": False,
        },
        2.780,
    ),
    "gemma-2-9b": (
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 4096,
            "max_position_embeddings": 8192,
            "vocab_size": 256000,
        },
        9.242,
    ),
    "mixtral-8x22b": (
        {
            "model_type": "mixtral",
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_hidden_layers": 56,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 65536,
            "vocab_size": 32768,
        },
        140.63,
    ),
    "deepseek-v2-lite": (
        {
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "max_position_embeddings": 163840,
            "vocab_size": 102400,
        },
        15.71,
    ),
    "deepseek-v3": (
        {
            "model_type": "deepseek_v3",
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "max_position_embeddings": 163840,
            "vocab_size": 129280,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        },
        671.0,
    ),
    "qwen1.5-moe-a2.7b": (
        {
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 8192,
            "use_sliding_window": False,
            "sliding_window": 32768,
            "vocab_size": 151936,
        },
        14.32,
    ),
    "gpt-oss-20b": (
        {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072,
            "vocab_size": 201088,
            "quantization_config": {"quant_method": "mxfp4"},
        },
        20.91,
    ),
}


def shape_of(name: str, **changes: object) -> ModelShape:
    return ModelShape.from_config(name, {**CONFIGS[name][0], **changes})


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_of_every_family(name: str) -> None:
    assert shape_of(name).parameters == pytest.approx(CONFIGS[name][1] * 1e9, rel=0.005)


def test_a_nested_language_model_reads_as_itself() -> None:
    nested = {"model_type": "llava", "vision_config": {"hidden_size": 1}, "text_config": CONFIGS["llama"][0]}
    assert ModelShape.from_config("llama", nested) == shape_of("llama")


def test_kv_bytes_per_token_of_known_models() -> None:
    """Qwen2-1.5B: 2*28*2*128*2 = 28,672; MLA of DeepSeek-V3: 61*(512+64)*2 = 70,272 (arXiv 2412.19437: 70 KB)."""
    assert MODELS["Qwen/Qwen2-1.5B"].kv_bytes_per_token_per_rank(1) == 28_672
    assert MODELS["Qwen/Qwen2-1.5B"].kv_bytes_per_token_per_rank(1, kv_dtype_bytes=1) == 14_336
    assert shape_of("deepseek-v3").kv_bytes_per_token_per_rank(1) == 70_272
    # vllm-project/vllm#34076: 24.0 GiB for 262,144 tokens, which is this architecture's figure
    assert MODELS["Qwen/Qwen3-30B-A3B"].kv_bytes(262_144) == 24 * 1024**3


def test_tensor_parallel_shares_kv_heads_and_replicates_below_one() -> None:
    llama = MODELS["meta-llama/Llama-3.1-70B"]
    assert llama.kv_bytes_per_token_per_rank(4) * 4 == llama.kv_bytes_per_token_per_rank(1)
    assert llama.kv_bytes_per_token_per_rank(16) == llama.kv_bytes_per_token_per_rank(8)
    mla = shape_of("deepseek-v3")
    assert mla.kv_bytes_per_token_per_rank(8) == mla.kv_bytes_per_token_per_rank(1)  # the latent is not split


def test_sliding_layers_stop_growing() -> None:
    gemma = shape_of("gemma-2-9b")
    per_layer = 2 * 8 * 256 * 2
    assert gemma.sliding_layers == 21
    assert gemma.kv_bytes(1000) == 42 * 1000 * per_layer
    assert gemma.kv_bytes(8000) == 21 * (8000 + 4096) * per_layer
    assert gemma.kv_bytes(8000, chunk_tokens=512) == 21 * (8000 + 4608) * per_layer
    assert MODELS["mistralai/Mistral-7B-v0.1"].kv_bytes(32768) == MODELS["mistralai/Mistral-7B-v0.1"].kv_bytes(4096)
    assert shape_of("qwen1.5-moe-a2.7b").sliding_layers == 0  # a window that is stated and not used


def test_linear_attention_layers_keep_no_kv() -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 7
    hybrid = shape_of("qwen3", layer_types=kinds)
    assert hybrid.kv_bytes(100) * 4 == shape_of("qwen3").kv_bytes(100)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.125),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8.0),
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
            },
            4.5,
        ),
    ],
)
def test_quantised_checkpoints(quantization: dict[str, object], bits: float) -> None:
    shape = shape_of("llama", quantization_config=quantization)
    linear = shape.parameters - shape.embedding_parameters
    assert shape.weight_bits == bits
    assert shape.weight_bytes == pytest.approx(linear * bits / 8 + shape.embedding_parameters * 2)


def test_published_checkpoint_sizes() -> None:
    """gpt-oss-20b is 12.8 GiB of mxfp4 experts and bf16 attention (its model card); DeepSeek-V3 is 671 GB of fp8."""
    assert shape_of("gpt-oss-20b").weight_bytes == pytest.approx(12.8 * 1024**3, rel=0.01)
    assert shape_of("deepseek-v3").weight_bytes == pytest.approx(671e9, rel=0.02)


def test_float32_checkpoints_are_loaded_in_16_bits() -> None:
    assert shape_of("gpt2", torch_dtype="float32").weight_bytes == shape_of("gpt2").parameters * 2


def test_rope_scaling_stretches_the_context_where_vllm_says_so() -> None:
    assert shape_of("llama").max_position == 131072  # llama3 scaling is already in it
    assert shape_of("llama", rope_scaling={"type": "linear", "factor": 4.0}).max_position == 524288


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_field_is_named(missing: str) -> None:
    config = {key: value for key, value in CONFIGS["llama"][0].items() if key != missing}
    with pytest.raises(SpecError, match=missing):
        ModelShape.from_config("some/model", config)


@pytest.mark.parametrize("value", [0, -3, "12", 1.5, True])
def test_a_wrong_field_is_named(value: object) -> None:
    with pytest.raises(SpecError, match="num_hidden_layers of llama"):
        shape_of("llama", num_hidden_layers=value)


@pytest.mark.parametrize(
    "strange", [{"rope_scaling": "yarn"}, {"layer_types": 5}, {"sliding_window": [4096]}, {"text_config": [1]}]
)
def test_a_config_of_another_make_is_the_users_error(strange: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=r"config\.json can't be understood"):
        shape_of("llama", **strange)


def test_a_quantisation_that_does_not_say_its_bits_is_refused() -> None:
    with pytest.raises(SpecError, match="SLOGUARD_MODEL_FOOTPRINT_GB"):
        shape_of("llama", quantization_config={"quant_method": "quip"})
