"""Step times of a model never measured, from its shape and the GPU's datasheet.

    T      = floor + max(R, knee*(R + C), C) + n*(e + r) + D*seq + K*kv + M*mixed + A*pair + c*context - unread
    floor  = layers*(layer_s + 2*all_reduce_s)       kernels too small to be bound by anything; r and all-reduce: tp > 1
    R, C   = weight bytes/bandwidth, 2*active parameters*n/FLOP rate        of one rank, n = P + D tokens; with lm_head
    e      = layers*(8*hidden + 3*MLP width)*bytes/bandwidth        norms and residual; gate, up and their product
    r      = 2*layers*hidden*bytes*2*(tp - 1)/tp/interconnect               two ring all-reduces a layer
    kv     = KV bytes of a token/bandwidth, or the arithmetic on it where that takes longer (MLA)
    pair   = 4*layers*heads*head_dim/tp/FLOP rate                           q.k and p.v, 2 FLOP a dimension each
    unread = s*q^n, q = 1 - active/all experts, s to read all of them: a batch of n tokens misses the share q^n

P, D, K, M, A, c are those of batch_time.py. Where reading and arithmetic take equally long neither hides the other
wholly: `knee`. Rates are shares of the datasheet's, the same for all models: two shares of a kind of GPU, the others of
all GPUs. They are the least-squares solution (of log errors) over the composed steps of AIConfigurator (vLLM 0.14 and
0.24 on A100, H100, H200) and LLMServingSim (vLLM 0.19 on RTX 4090, RTX PRO 6000); benchmarks/fidelity_shapes.py finds
them, and benchmarks/fidelity.py says how far off they are for a model that they have not seen. Two are not fitted.
Composed steps can't tell a floor from a share of the bandwidth; that decodes of real vLLM on H100 (Llama-2-7B on one,
Mixtral-8x7B on two) agree with both says `layer_s` is about 50 us. `elementwise` is 43 % to 50 % in Vidur's tables.

Beside a chunk, FlashAttention 2 reads a KV head once for every query head that shares it, and caches catch a part:
`reread` is what they don't. It shows on GDDR cards, where mixed batches were measured as one kernel; the others' steps
add up kernels measured apart. A chunk's pass over what is already in the cache takes `context_layer_s` a token.

Layers with windows count at 2,048 tokens of context. Arithmetic on quantised weights runs at the 16-bit rate, but FP8
at twice that where the chip has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.gpus import Gpu
from sloguard.perf.model_shape import ModelShape

WINDOW_CONTEXT_TOKENS = 2048
ACTIVATION_BYTES = 2
FP8_SINCE = (8, 9)  # compute capability
UNREAD_CORNERS_TOKENS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Kind:
    """GPUs whose kernels reach like shares of the datasheet; `measured` names those that the shares are from."""

    name: str
    gddr: bool
    capabilities: tuple[tuple[int, int], ...]
    measured: tuple[str, ...]


KINDS = (
    Kind("Ampere with HBM", False, ((7, 0), (8, 0)), ("A100-80GB",)),
    Kind("Hopper with HBM", False, ((9, 0), (10, 0)), ("H100", "H200")),
    Kind("Ada with GDDR", True, ((7, 5), (8, 6), (8, 9)), ("RTX-4090",)),
    Kind("Blackwell with GDDR", True, ((12, 0),), ("RTX-PRO-6000",)),
)


def _by_kind(*shares: float) -> Mapping[str, float]:
    return {kind.name: share for kind, share in zip(KINDS, shares, strict=True)}


@dataclass(frozen=True, slots=True)
class Rates:
    """What kernels reach: shares of the datasheet's peaks, and seconds that depend on no peak."""

    bandwidth: Mapping[str, float] = field(default_factory=lambda: _by_kind(0.624, 0.860, 0.878, 0.797))
    compute: Mapping[str, float] = field(default_factory=lambda: _by_kind(0.779, 0.768, 0.978, 0.729))
    knee: float = 0.680
    elementwise: float = 0.5
    kv: float = 0.894
    attention: float = 0.754
    reread: float = 0.380
    interconnect: float = 0.711
    layer_s: float = 50e-6
    all_reduce_s: float = 4.75e-6
    sequence_layer_s: float = 68.3e-9
    context_layer_s: float = 16.7e-9


RATES = Rates()


def kind_of(gpu: Gpu) -> Kind:
    """The kind whose generation is this GPU's or the last before it."""
    return max(KINDS, key=lambda kind: max(c for c in (*kind.capabilities, (0, 0)) if c <= gpu.compute_capability))


def predicted_from(gpu: Gpu) -> str:
    """On which GPUs the rates of a prediction for `gpu` were measured."""
    kind = kind_of(gpu)
    if gpu.name in kind.measured:
        return f"rates measured on {gpu.name}"
    return f"{gpu.name} was never measured: rates of {', '.join(kind.measured)} ({kind.name})"


def predicted_time(model: ModelShape, gpu: Gpu, tp: int, rates: Rates = RATES) -> BatchTime:
    """GPU time of a step. Its curve is how more and more experts are read by more and more tokens."""
    pieces = predicted_pieces(model, gpu, tp, rates)
    if model.experts == 1:
        return BatchTime(pieces)
    missed = 1 - model.active_experts / model.experts
    expert_parameters = (model.parameters - model.active_parameters) / missed
    expert_bytes = expert_parameters * (model.weight_bits or 8 * model.dtype_bytes) / 8
    read_s = expert_bytes / tp / (rates.bandwidth[kind_of(gpu).name] * gpu.bandwidth_bytes_s)
    ends = (*UNREAD_CORNERS_TOKENS[1:], inf)
    slopes = (
        (missed**start - missed**end) / (end - start) for start, end in zip(UNREAD_CORNERS_TOKENS, ends, strict=True)
    )
    curve = tuple((start, read_s * slope) for start, slope in zip(UNREAD_CORNERS_TOKENS, slopes, strict=True))
    return BatchTime(tuple(replace(piece, base_s=piece.base_s - read_s) for piece in pieces), curve=curve)


def predicted_pieces(model: ModelShape, gpu: Gpu, tp: int, rates: Rates = RATES) -> tuple[Piece, ...]:
    """Bound by reading the weights, by both alike, by arithmetic; every step reads all experts."""
    kind = kind_of(gpu)
    bandwidth = gpu.bandwidth_bytes_s
    flops = rates.compute[kind.name] * gpu.flops
    layers = model.layers
    several = tp > 1

    floor_s = layers * (rates.layer_s + 2 * rates.all_reduce_s * several)
    read_s = _read_bytes(model) / tp / (rates.bandwidth[kind.name] * bandwidth)
    faster = 2 if model.weight_bits == 8 and gpu.compute_capability >= FP8_SINCE else 1
    compute_s = 2 * _active_linear_parameters(model) / tp / (flops * faster)

    width = 8 * model.hidden + 3 * _mlp_width(model) / tp
    token_s = layers * width * ACTIVATION_BYTES / (rates.elementwise * bandwidth)
    if several:
        message_bytes = 2 * (tp - 1) / tp * model.hidden * ACTIVATION_BYTES
        token_s += 2 * layers * message_bytes / (rates.interconnect * gpu.interconnect_bytes_s)

    attended = model.kv_bytes(WINDOW_CONTEXT_TOKENS, tp)
    share = attended / max(1, model.kv_bytes_per_token_per_rank(tp) * WINDOW_CONTEXT_TOKENS)
    attention_layers = layers if model.kv_layers is None else model.kv_layers
    attention_flops = 4 * share * attention_layers * model.heads / tp  # of one pair, a dimension
    attention_rate = rates.attention * gpu.flops
    kv_read_s = attended / WINDOW_CONTEXT_TOKENS / (rates.kv * bandwidth)
    sharing = 1 if model.mla_rank is not None else model.heads / model.kv_heads

    def piece(read_share: float, compute_share: float) -> Piece:
        n_s = token_s + compute_share * compute_s
        return Piece(
            base_s=floor_s + read_share * read_s,
            prefill_token_s=n_s,
            decode_s=n_s + attention_layers * rates.sequence_layer_s,
            kv_token_s=max(kv_read_s, attention_flops * (model.mla_rank or model.head_dim) / attention_rate),
            attention_pair_s=attention_flops * model.head_dim / attention_rate,
            context_token_s=share * attention_layers * rates.context_layer_s,
            mixed_kv_token_s=kv_read_s * rates.reread * (sharing - 1) if kind.gddr else 0.0,
        )

    return piece(1, 0), piece(rates.knee, rates.knee), piece(0, 1)


def _read_bytes(model: ModelShape) -> float:
    """All weights but the input embedding, of which a step reads a few rows; tied, it is read as the output's."""
    table = 0 if model.tied_embeddings else model.vocab * model.hidden
    positions = model.max_position * model.hidden if model.learned_positions else 0
    return model.weight_bytes - (table + positions) * model.dtype_bytes


def _active_linear_parameters(model: ModelShape) -> int:
    """Of one token. lm_head is left out: it computes one row a sequence, not one a token."""
    return model.active_parameters - model.embedding_parameters


def _mlp_width(model: ModelShape) -> float:
    """Mean over layers, of the experts that a token passes."""
    experts = model.active_experts * model.intermediate + model.shared_intermediate
    dense = model.dense_layers / model.layers
    return dense * model.dense_intermediate + (1 - dense) * experts
