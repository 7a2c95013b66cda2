"""Batch times that ship with sloguard, one row per GPU, model and tensor-parallel degree, each with its source.

GPU time is fitted by `tools/fit_batch_time.py` on AIConfigurator's kernel tables of vLLM (commit 095f58a5, measured on
the GPU named) with Vidur's elementwise kernels (commit 7d475133). `mape` is the mean relative error on held-out steps.
Rows marked "moved" have no table of their own: the same chip with another memory reads weights and KV faster or
slower in proportion to bandwidth, and computes as fast.

CPU time, which kernel tables do not hold:

    step, sequence   0.2 ms + 0.05 ms a sequence: the line through ML.ENERGY's steady states of vLLM less the composed
                     GPU times (Llama-3.1-8B, H100: 7.3 - 6.7 ms at batch 8, 26.1 - 13.2 ms at batch 256)
    synchronous      0.36 ms + 0.037 ms a sequence more without async scheduling: schedule, prepare_inputs and
                     process_outputs of Vidur's CPU profile (Llama-2-7b, A100, batch 8: 0.65 ms, batch 128: 5.1 ms)
    eager launch     0.70 ms a layer: SLO-Guard's public trials (Qwen2-1.5B, A100 40 GB, 100 tokens: median 2010 ms
                     eager, 435 ms with graphs). It is that host's CPU (cloud, 2 GHz class); a faster one needs less
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.gpus import GPUS, Gpu
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS
from sloguard.perf.roofline import predicted_pieces

CPU_STEP_S = 0.2e-3
CPU_SEQUENCE_S = 0.05e-3
SYNCHRONOUS_STEP_S = 0.36e-3
SYNCHRONOUS_SEQUENCE_S = 0.037e-3
EAGER_LAUNCH_LAYER_S = 0.70e-3


@dataclass(frozen=True, slots=True)
class Coefficients:
    """GPU time of one model on one GPU type; `pieces` in seconds per unit, `mape` on held-out steps, if measured."""

    gpu: str
    model: str
    tp: int
    pieces: tuple[Piece, ...]
    source: str
    mape: float | None


def _table(gpu: str, version: str) -> str:
    return f"AIConfigurator kernel tables ({gpu}, vLLM {version}) and Vidur elementwise kernels"


_FITTED = (
    Coefficients(
        "A100-80GB",
        "Qwen/Qwen2-1.5B",
        1,
        (
            Piece(3.817e-3, 7.258e-6, 0.0, 21.39e-9, 0.0),
            Piece(3.355e-3, 12.71e-6, 13.17e-6, 20.27e-9, 1277e-12),
        ),
        _table("A100", "0.14.0"),
        0.028,
    ),
    Coefficients(
        "A100-80GB",
        "meta-llama/Llama-3.1-8B",
        1,
        (
            Piece(11.44e-3, 22.36e-6, 20.59e-6, 88.4e-9, 0.0),
            Piece(7.884e-3, 52.59e-6, 53.0e-6, 84.79e-9, 5246e-12),
        ),
        _table("A100", "0.14.0"),
        0.025,
    ),
    Coefficients(
        "A100-80GB",
        "meta-llama/Llama-3.1-70B",
        4,
        (
            Piece(29.13e-3, 86.56e-6, 79.61e-6, 56.41e-9, 0.0),
            Piece(19.55e-3, 162.2e-6, 150.6e-6, 57.37e-9, 234.8e-12),
        ),
        _table("A100", "0.14.0"),
        0.023,
    ),
    Coefficients(
        "H100",
        "Qwen/Qwen2-1.5B",
        1,
        (
            Piece(2.267e-3, 3.836e-6, 2.68e-6, 9.72e-9, 0.0),
            Piece(1.673e-3, 4.912e-6, 5.84e-6, 9.562e-9, 240.6e-12),
        ),
        _table("H100", "0.24.0"),
        0.031,
    ),
    Coefficients(
        "H100",
        "meta-llama/Llama-3.1-8B",
        1,
        (
            Piece(6.594e-3, 10.9e-6, 12.34e-6, 41.21e-9, 5465e-12),
            Piece(2.296e-3, 20.73e-6, 20.19e-6, 41.21e-9, 274.1e-12),
        ),
        _table("H100", "0.24.0"),
        0.022,
    ),
    Coefficients(
        "H100",
        "meta-llama/Llama-3.1-70B",
        4,
        (
            Piece(16.31e-3, 33.89e-6, 28.42e-6, 27.16e-9, 0.0),
            Piece(8.069e-3, 59.28e-6, 62.12e-6, 26.73e-9, 3334e-12),
        ),
        _table("H100", "0.24.0"),
        0.015,
    ),
    Coefficients(
        "H200",
        "meta-llama/Llama-3.1-8B",
        1,
        (
            Piece(5.266e-3, 9.903e-6, 10.91e-6, 30.34e-9, 0.0),
            Piece(3.62e-3, 17.27e-6, 20.8e-6, 29.68e-9, 3209e-12),
        ),
        _table("H200", "0.24.0"),
        0.022,
    ),
    Coefficients(
        "H200",
        "meta-llama/Llama-3.1-70B",
        4,
        (
            Piece(13.15e-3, 33.98e-6, 24.95e-6, 19.4e-9, 0.0),
            Piece(7.246e-3, 57.81e-6, 61.77e-6, 19.51e-9, 4774e-12),
        ),
        _table("H200", "0.24.0"),
        0.012,
    ),
)


def _moved(row: Coefficients, to: str) -> Coefficients:
    """The same chip with another memory: weights and KV are read at the other's bandwidth."""
    old, new = GPUS[row.gpu].bandwidth_bytes_s, GPUS[to].bandwidth_bytes_s
    weights_s = MODELS[row.model].weight_bytes / row.tp * (1 / new - 1 / old)
    pieces = tuple(replace(p, base_s=p.base_s + weights_s, kv_token_s=p.kv_token_s * old / new) for p in row.pieces)
    return Coefficients(to, row.model, row.tp, pieces, f"{row.source}, moved from {row.gpu} by bandwidth", None)


_ROWS = {(row.gpu, row.model, row.tp): row for row in _FITTED}
COEFFICIENTS: tuple[Coefficients, ...] = (
    *_FITTED,
    *(_moved(row, "A100-40GB") for row in _FITTED if row.gpu == "A100-80GB"),
    _moved(_ROWS["H100", "Qwen/Qwen2-1.5B", 1], "H200"),
)


def coefficients_for(model: ModelShape, gpu: Gpu, tp: int) -> Coefficients:
    """The shipped row of a model of this architecture (its name may differ), else a prediction from its shape."""
    for row in COEFFICIENTS:
        if (row.gpu, row.tp) == (gpu.name, tp) and _architecture(MODELS[row.model]) == _architecture(model):
            return row
    source = f"predicted from the shape of {model.name} and the datasheet of {gpu.name}"
    return Coefficients(gpu.name, model.name, tp, predicted_pieces(model, gpu, tp), source, None)


def batch_time(
    model: ModelShape, gpu: Gpu, tp: int, *, eager: bool, graph_sizes: Sequence[int] = (), synchronous: bool = False
) -> BatchTime:
    """Step time of vLLM: GPU pieces plus the CPU's part. `graph_sizes` are ignored in eager mode."""
    return BatchTime(
        pieces=coefficients_for(model, gpu, tp).pieces,
        cpu_step_s=CPU_STEP_S + (SYNCHRONOUS_STEP_S if synchronous else 0.0),
        cpu_sequence_s=CPU_SEQUENCE_S + (SYNCHRONOUS_SEQUENCE_S if synchronous else 0.0),
        launch_s=EAGER_LAUNCH_LAYER_S * model.layers if eager else 0.0,
        graph_sizes=() if eager else tuple(graph_sizes),
    )


def _architecture(model: ModelShape) -> tuple[int, ...]:
    return (model.layers, model.hidden, model.intermediate, model.heads, model.kv_heads, model.head_dim, model.vocab)
