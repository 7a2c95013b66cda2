"""Batch times that ship with sloguard, one row per GPU, model and tensor-parallel degree, each with its source.

    fitted      perf/rows.py: GPU time, fitted by tools/fit_batch_time.py on AIConfigurator's kernel tables of vLLM
                (commit 095f58a5) with Vidur's elementwise kernels (commit 7d475133), or on LLMServingSim's profiles of
                vLLM 0.19 (commit 5daddb21), measured on the GPU named. `mape`: mean relative error on held-out steps
    moved       the same chip with another memory reads weights and KV faster or slower in proportion to bandwidth, and
                computes as fast
    published   SLOs-Serve's own coefficients, seconds: fitted end to end on its engine, so nothing is added to them

CPU time, which kernel tables do not hold:

    asynchronous     none: the CPU plans and samples while the GPU runs. Replays of real runs of vLLM on an H100 with up
                     to 128 sequences (benchmarks/fidelity.py) leave nothing to add to the GPU's time
    synchronous      0.2 ms + 0.05 ms a sequence without async scheduling: the line through ML.ENERGY's steady
                     states, of vLLM before async scheduling, less the composed GPU times (Llama-3.1-8B, H100:
                     7.3 - 6.7 ms at batch 8, 26.1 - 13.2 ms at batch 256). Vidur's CPU profile says the same: 5.1 ms
                     at batch 128 of schedule, prepare_inputs and process_outputs (Llama-2-7b, A100)
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
from sloguard.perf.roofline import predicted_from, predicted_time
from sloguard.perf.rows import FITTED

SYNCHRONOUS_STEP_S = 0.2e-3
SYNCHRONOUS_SEQUENCE_S = 0.05e-3
EAGER_LAUNCH_LAYER_S = 0.70e-3


@dataclass(frozen=True, slots=True)
class Coefficients:
    """GPU time of one model on one GPU type; `mape` on held-out steps, if measured. `end_to_end`: CPU time, padding and
    launches are in it already.
    """

    gpu: str
    model: str
    tp: int
    gpu_time: BatchTime
    source: str
    mape: float | None
    end_to_end: bool = False


def _lines(*lines: tuple[float, float], draft_step_s: float = 0.0) -> BatchTime:
    """The form of SLOs-Serve: (seconds a token, of prefill and decode alike; seconds a step)."""
    return BatchTime(tuple(Piece(b, k1, k1, 0.0, 0.0) for k1, b in lines), draft_step_s=draft_step_s)


_PUBLISHED = (
    ("A100-40GB", "facebook/opt-6.7b", 1, _lines((6.878e-5, 0.0248), (7.52e-5, 0.00303))),
    ("A100-40GB", "facebook/opt-13b", 2, _lines((7.213e-5, 0.03173), draft_step_s=3.341e-3)),
    ("A100-40GB", "facebook/opt-30b", 4, _lines((9.314e-5, 0.03788), draft_step_s=2.797e-3)),
    ("H100", "facebook/opt-13b", 1, _lines((4.177e-5, 0.02743))),
)
_SLOS_SERVE = "SLOs-Serve (arXiv 2504.08784), published"


def _fitted() -> list[Coefficients]:
    return [
        Coefficients(
            gpu, model, tp, BatchTime(tuple(Piece(*p) for p in pieces), curve=curve), f"{kernels}, on {gpu}", mape
        )
        for gpu, model, tp, kernels, mape, pieces, curve in FITTED
    ]


def _moved(row: Coefficients, to: str) -> Coefficients:
    """The same chip with another memory: weights and KV are read at the other's bandwidth."""
    old, new = GPUS[row.gpu].bandwidth_bytes_s, GPUS[to].bandwidth_bytes_s
    weights_s = MODELS[row.model].weight_bytes / row.tp * (1 / new - 1 / old)
    source = f"{row.source}, moved to {to} by bandwidth"
    return Coefficients(to, row.model, row.tp, row.gpu_time.reading(weights_s, old / new), source, None)


def _published() -> list[Coefficients]:
    rows = [Coefficients(*row, _SLOS_SERVE, None, end_to_end=True) for row in _PUBLISHED]
    larger = [replace(r, gpu="A100-80GB", source=f"{_SLOS_SERVE} for 40 GB") for r in rows if r.gpu == "A100-40GB"]
    return [*rows, *larger]


def _rows() -> tuple[Coefficients, ...]:
    fitted = _fitted()
    by_gpu = {(row.gpu, row.model): row for row in fitted}
    moved = [_moved(row, "A100-40GB") for row in fitted if row.gpu == "A100-80GB"]
    moved.append(_moved(by_gpu["H100", "Qwen/Qwen2-1.5B"], "H200"))
    return (*fitted, *moved, *_published())


COEFFICIENTS: tuple[Coefficients, ...] = _rows()


def coefficients_for(model: ModelShape, gpu: Gpu, tp: int) -> Coefficients:
    """The shipped row of a model of this architecture (its name may differ), else a prediction from its shape."""
    for row in COEFFICIENTS:
        if (row.gpu, row.tp) == (gpu.name, tp) and _architecture(MODELS[row.model]) == _architecture(model):
            return row
    source = f"predicted from the shape of {model.name} and the datasheet of {gpu.name}; {predicted_from(gpu)}"
    return Coefficients(gpu.name, model.name, tp, predicted_time(model, gpu, tp), source, None)


def batch_time(
    model: ModelShape, gpu: Gpu, tp: int, *, eager: bool, graph_sizes: Sequence[int] = (), synchronous: bool = False
) -> BatchTime:
    """Step time of vLLM: GPU time plus the CPU's part. `graph_sizes` are ignored in eager mode.

    Of a row that was fitted end to end it is the row itself, whatever the mode.
    """
    row = coefficients_for(model, gpu, tp)
    if row.end_to_end:
        return row.gpu_time
    return replace(
        row.gpu_time,
        cpu_step_s=SYNCHRONOUS_STEP_S if synchronous else 0.0,
        cpu_sequence_s=SYNCHRONOUS_SEQUENCE_S if synchronous else 0.0,
        launch_s=EAGER_LAUNCH_LAYER_S * model.layers if eager else 0.0,
        graph_sizes=() if eager else tuple(graph_sizes),
    )


def _architecture(model: ModelShape) -> tuple[object, ...]:
    """What step times depend on."""
    widths = (model.layers, model.hidden, model.intermediate, model.heads, model.kv_heads, model.head_dim, model.vocab)
    return (*widths, model.experts, model.gated_mlp, model.weight_bits, model.dtype_bytes, model.sliding_window)
