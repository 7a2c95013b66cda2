"""How big a model is, derived from its architecture fields.

    weights of a layer  = attention + MLP + norms            (biases are left out: below 0.1 % of any model here)
    attention           = hidden*(heads + 2*kv_heads)*head_dim + heads*head_dim*hidden
    MLP                 = m*hidden*intermediate, m = 3 for a gated MLP (SwiGLU), else 2; times `experts` + router
    embeddings          = vocab*hidden, twice when input and output embeddings are not tied
    KV bytes per token  = 2*layers*kv_heads*head_dim*bytes; MLA: layers*(kv_lora_rank + rope dims)*bytes

Sources: the models' published config.json files; DeepSeek-V2 (arXiv 2405.04434) for MLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sloguard.errors import SpecError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer. `intermediate` is one expert's where there are experts.

    `dense_layers` leading layers have a plain MLP of `dense_intermediate` although the others have experts;
    `shared_intermediate` is the width of the experts every token passes. `kv_layers` counts layers that keep KV for
    every token or window (None: all; linear-attention layers keep none), `sliding_layers` of them keep only
    `sliding_window` tokens. `stated_*` are the user's own figures and win over the derivation.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    dtype_bytes: int = 2
    tied_embeddings: bool = False
    experts: int = 1
    active_experts: int = 1
    mla_rank: int | None = None
    sliding_window: int | None = None
    sliding_layers: int = 0
    kv_layers: int | None = None
    gated_mlp: bool = True
    learned_positions: bool = False
    dense_layers: int = 0
    dense_intermediate: int = 0
    shared_intermediate: int = 0
    mla_attention_parameters: int | None = None  # of one layer; MLA's low-rank projections have a shape of their own
    weight_bits: float | None = None  # bits a quantised checkpoint spends on one weight of a linear layer
    quantised_experts_only: bool = False  # attention stays in `dtype_bytes` (gpt-oss)
    stated_kv_bytes_per_token: int | None = None
    stated_weight_bytes: int | None = None

    @staticmethod
    def from_config(name: str, config: Mapping[str, Any], stated_weight_bytes: int | None = None) -> ModelShape:
        """Reads a Hugging Face config.json. Raises SpecError naming the field that is missing or wrong.

        `stated_weight_bytes` is needed where a quantised checkpoint doesn't say how many bits a weight has.
        """
        try:
            return _read(name, config, stated_weight_bytes)
        except (TypeError, ValueError, AttributeError) as error:  # any JSON may stand where a number or table belongs
            fix = "Correct its config.json"
            raise SpecError("--model", name, f"its config.json can't be understood ({error})", fix) from error

    @property
    def attention_parameters(self) -> int:
        """Of one layer."""
        if self.mla_attention_parameters is not None:
            return self.mla_attention_parameters
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    def _mlp(self, width: int) -> int:
        return (3 if self.gated_mlp else 2) * self.hidden * width

    def _layer_stack(self, experts: int) -> int:
        """All layers, with `experts` experts counted in each layer that has them."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        expert_layer = experts * self._mlp(self.intermediate) + self._mlp(self.shared_intermediate) + router
        dense = self.dense_layers * self._mlp(self.dense_intermediate)
        norms = 2 * self.hidden
        return (
            self.layers * (self.attention_parameters + norms) + (self.layers - self.dense_layers) * expert_layer + dense
        )

    @property
    def embedding_parameters(self) -> int:
        positions = self.max_position * self.hidden if self.learned_positions else 0
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2) + positions

    @property
    def parameters(self) -> int:
        return self._layer_stack(self.experts) + self.embedding_parameters + self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass reads: with experts, only the active ones."""
        return self._layer_stack(self.active_experts) + self.embedding_parameters + self.hidden

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as loaded; embeddings and norms stay in `dtype_bytes` in a quantised checkpoint."""
        if self.stated_weight_bytes is not None:
            return self.stated_weight_bytes
        if self.weight_bits is None:
            return self.parameters * self.dtype_bytes
        whole = self.embedding_parameters + self.quantised_experts_only * self.layers * self.attention_parameters
        return int((self.parameters - whole) * self.weight_bits / 8) + whole * self.dtype_bytes

    def _kv_bytes_per_token_of_layer(self, kv_dtype_bytes: float | None, tp: int) -> float:
        width = self.dtype_bytes if kv_dtype_bytes is None else kv_dtype_bytes
        if self.mla_rank is not None:
            return self.mla_rank * width  # the latent is shared by all heads, so every rank holds it whole
        return 2 * max(1, self.kv_heads // tp) * self.head_dim * width  # fewer KV heads than ranks: replicated

    def kv_bytes_per_token_per_rank(self, tp: int, kv_dtype_bytes: float | None = None) -> int:
        """KV bytes of one token on one of `tp` tensor-parallel ranks: all layers, before any window closes.

        `kv_dtype_bytes` None is the model's own dtype.
        """
        return self.kv_bytes(1, tp, kv_dtype_bytes)

    def kv_bytes(self, tokens: int, tp: int = 1, kv_dtype_bytes: float | None = None, chunk_tokens: int = 0) -> int:
        """KV bytes of one sequence of `tokens` tokens on one rank.

        Sliding layers stop growing at their window and the chunk being computed (`chunk_tokens`).
        """
        if self.stated_kv_bytes_per_token is not None:
            return -(-self.stated_kv_bytes_per_token * tokens // tp)
        windowed = tokens if self.sliding_window is None else min(tokens, self.sliding_window + chunk_tokens)
        full_layers = (self.layers if self.kv_layers is None else self.kv_layers) - self.sliding_layers
        layer_tokens = full_layers * tokens + self.sliding_layers * windowed
        return int(layer_tokens * self._kv_bytes_per_token_of_layer(kv_dtype_bytes, tp))


# Spellings of one field over model families: llama/qwen/mistral/gemma, gpt2, opt, falcon/bloom/mpt.
_FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "vocab": ("vocab_size",),
    "max_position": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active_experts": ("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
    "expert_width": ("moe_intermediate_size", "expert_intermediate_size"),
}
_UNGATED = frozenset({"opt", "gpt2", "phi", "gpt_neox", "gpt_bigcode", "falcon", "bloom", "starcoder2", "gptj", "mpt"})
# Where config.json does not say: the default of the family's own class in transformers is "tied".
_TIED_BY_DEFAULT = frozenset(
    {
        "opt",
        "gpt2",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "bloom",
        "falcon",
        "gpt_bigcode",
        "cohere",
        "cohere2",
        "mpt",
    }
)
_LEARNED_POSITIONS = frozenset({"opt", "gpt2", "gpt_bigcode"})
_ALTERNATING_WINDOW = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2}  # every n-th layer is full attention
_DTYPE_BYTES = {"float32": 2, "float16": 2, "bfloat16": 2, "half": 2}  # vLLM's dtype "auto" loads float32 as 16 bit


def _number(name: str, config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """The first spelling of `field` that is set. Raises SpecError where it is absent without default, or no count."""
    for spelling in _FIELDS.get(field, (field,)):
        value = config.get(spelling)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"{spelling} of {name}", value, "not a positive whole number", "Correct its config.json")
        return value
    if default is not None:
        return default
    spellings = " or ".join(_FIELDS.get(field, (field,)))
    raise SpecError(
        "--model",
        name,
        f"its config.json has no {spellings}",
        "Use a decoder-only text model, or complete its config.json",
    )


def _read(name: str, raw: Mapping[str, Any], stated_weight_bytes: int | None) -> ModelShape:
    config: dict[str, Any] = {**raw, **(raw.get("text_config") or {})}  # multimodal configs nest the language model
    family = str(config.get("model_type", ""))
    hidden, heads = _number(name, config, "hidden"), _number(name, config, "heads")
    layers = _number(name, config, "layers")
    dense_width = _number(name, config, "intermediate", 4 * hidden)  # gpt2, bloom, falcon: 4*hidden unless stated
    experts = _number(name, config, "experts", 1)
    width = _number(name, config, "expert_width", dense_width) if experts > 1 else dense_width
    dense_layers = _dense_layers(config, layers) if experts > 1 else 0
    window, sliding_layers, kv_layers = _attention_layers(config, family, layers)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=width,
        heads=heads,
        kv_heads=1 if config.get("multi_query") is True else _number(name, config, "kv_heads", heads),
        head_dim=_number(name, config, "head_dim", hidden // heads),
        vocab=_number(name, config, "vocab"),
        max_position=int(_number(name, config, "max_position") * _rope_factor(config, family)),
        dtype_bytes=_DTYPE_BYTES.get(dtype, 2),
        tied_embeddings=bool(config.get("tie_word_embeddings", family in _TIED_BY_DEFAULT)),
        experts=experts,
        active_experts=_number(name, config, "active_experts", 1) if experts > 1 else 1,
        sliding_window=window,
        sliding_layers=sliding_layers,
        kv_layers=kv_layers,
        gated_mlp=family not in _UNGATED,
        learned_positions=family in _LEARNED_POSITIONS,
        dense_layers=dense_layers,
        dense_intermediate=dense_width if dense_layers else 0,
        shared_intermediate=_shared_width(config, width) if experts > 1 else 0,
        weight_bits=_weight_bits(_quantization(config)),
        quantised_experts_only=_quantization(config).get("quant_method") == "mxfp4",
        stated_weight_bytes=stated_weight_bytes,
    )
    shape = _with_mla(shape, config) if config.get("kv_lora_rank") else shape
    if _quantization(config) and shape.weight_bits is None:
        return replace(shape, weight_bits=_mean_weight_bits(shape, _quantization(config)))
    return shape


def _rope_factor(config: Mapping[str, Any], family: str) -> float:
    """By how much RoPE scaling stretches max_position_embeddings, as vLLM 0.32 reads it (config/model.py)."""
    rope: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    return float(rope.get("factor") or 1.0) if kind in ("linear", "dynamic") and "gemma3" not in family else 1.0


def _dense_layers(config: Mapping[str, Any], layers: int) -> int:
    """How many layers of a mixture of experts have a plain MLP (DeepSeek, GLM: the first k; Qwen: a list)."""
    listed: list[int] = config.get("mlp_only_layers") or []
    return min(layers, len(listed) or int(config.get("first_k_dense_replace") or 0))


def _shared_width(config: Mapping[str, Any], width: int) -> int:
    """Qwen-MoE states the shared expert's width, DeepSeek how many there are of the usual width."""
    return int(config.get("shared_expert_intermediate_size") or int(config.get("n_shared_experts") or 0) * width)


def _attention_layers(config: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, int, int | None]:
    """(window, layers limited to it, layers that keep KV or None for all)."""
    window = int(config.get("sliding_window") or 0)
    if config.get("use_sliding_window") is False:  # Qwen2 states a window that it does not use
        window = 0
    kinds: list[str] = config.get("layer_types") or []
    if kinds:
        sliding = sum("sliding" in kind for kind in kinds) if window else 0
        without_kv = sum("linear" in kind or "mamba" in kind for kind in kinds)
        return (window if sliding else None), sliding, (layers - without_kv if without_kv else None)
    if not window:
        return None, 0, None
    every = int(config.get("sliding_window_pattern") or _ALTERNATING_WINDOW.get(family, 0))
    return window, layers - layers // every if every else layers, None


def _quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    return config.get("quantization_config") or {}


def _weight_bits(quantization: dict[str, Any]) -> float | None:
    """Bits per weight of a linear layer, group scales included; None where it isn't quantised or doesn't say."""
    method = str(quantization.get("quant_method", ""))
    if method in ("fp8", "fbgemm_fp8"):
        return 8.0
    if method == "mxfp4":
        return 4.25  # blocks of 32 four-bit values share an eight-bit scale (OCP MX v1.0)
    if method == "bitsandbytes":
        return 4.5 if quantization.get("load_in_4bit") else 8.0
    stated: dict[str, Any] = quantization
    if method == "compressed-tensors":
        groups: dict[str, dict[str, Any]] = quantization.get("config_groups") or {}
        for group in groups.values():
            stated = group.get("weights") or stated
    bits: Any = stated.get("bits") or stated.get("num_bits")
    group_size: Any = stated.get("group_size")
    if not isinstance(bits, int) or bits < 1:
        return None
    grouped = isinstance(group_size, int) and group_size > 0  # then one 16-bit scale per group of weights
    return bits + 16 / group_size if grouped else float(bits)


def _mean_weight_bits(shape: ModelShape, quantization: dict[str, Any]) -> float:
    """From the stated size. Raises SpecError where none is stated."""
    if shape.stated_weight_bytes is None:
        method = quantization.get("quant_method") or "no quant_method"
        raise SpecError(
            "--model",
            shape.name,
            f"its quantization_config ({method}) does not say how many bits a weight has",
            "State the size of its weights: SLOGUARD_MODEL_FOOTPRINT_GB=<GB>",
        )
    return 8 * shape.stated_weight_bytes / shape.parameters


def _with_mla(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    """DeepSeek's latent attention: queries (low rank or full), one latent for K and V, its expansion, the output."""
    latent = _number(shape.name, config, "kv_lora_rank")
    rope, nope = _number(shape.name, config, "qk_rope_head_dim"), _number(shape.name, config, "qk_nope_head_dim")
    value = _number(shape.name, config, "v_head_dim")
    query_width = shape.heads * (nope + rope)
    query_rank = config.get("q_lora_rank")
    query = shape.hidden * query_width if not query_rank else query_rank * (shape.hidden + query_width)
    latent_in = shape.hidden * (latent + rope)
    latent_out = latent * shape.heads * (nope + value)
    output = shape.heads * value * shape.hidden
    return replace(
        shape,
        mla_rank=latent + rope,
        head_dim=nope + rope,
        mla_attention_parameters=query + latent_in + latent_out + output,
    )
