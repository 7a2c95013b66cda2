"""Step times of a model never measured, from its shape and the GPU's datasheet."""

from __future__ import annotations

from sloguard.perf.batch_time import Piece
from sloguard.perf.gpus import Gpu
from sloguard.perf.model_shape import ModelShape

BANDWIDTH_SHARE = 0.72
COMPUTE_SHARE = 0.80
LAYER_FLOOR_S = 40e-6  # a layer's kernels at batch 1 beyond reading its weights: norms, activation, attention's start
ALL_REDUCE_S = 12e-6  # one small all-reduce within a node (AIConfigurator, vLLM custom all-reduce in a graph)


def predicted_pieces(model: ModelShape, gpu: Gpu, tp: int) -> tuple[Piece, ...]:
    """A roofline: weights and KV at a share of the bandwidth, arithmetic at a share of the peak."""
    bandwidth = gpu.bandwidth_bytes_s * BANDWIDTH_SHARE
    flops = gpu.flops * COMPUTE_SHARE * tp
    layer_s = LAYER_FLOOR_S + (2 * ALL_REDUCE_S if tp > 1 else 0.0)
    floor_s = model.layers * layer_s
    read_s = model.weight_bytes / tp / bandwidth
    token_s = 2 * (model.active_parameters - model.embedding_parameters) / flops
    kv_s = model.kv_bytes_per_token_per_rank(tp) / bandwidth
    pair_s = 4 * model.layers * model.heads * model.head_dim / flops  # q·k and p·v, 2 FLOP each per dimension
    # While weights are read, half of the arithmetic hides behind it.
    return (
        Piece(floor_s + read_s, token_s / 2, token_s / 2, kv_s, 0.0),
        Piece(floor_s + read_s / 2, token_s, token_s, kv_s, pair_s),
    )
