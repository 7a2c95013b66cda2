"""Fits the batch-time coefficients that sloguard ships and prints the module that holds them.

    python tools/fit_batch_time.py DATA_DIR > src/sloguard/perf/rows.py

DATA_DIR holds `derived_batch_times_*.csv.gz` (steps composed from kernel times, one row each; perf/samples.py says the
columns) and `aic_vllm/SYSTEM_VERSION_{gemm,context_attention,generation_attention}_perf.parquet` (AIConfigurator's vLLM
kernel tables). Models in the first files are fitted on them. Others are composed here from the kernel tables:

    layer = GEMM(qkv) + GEMM(o) + GEMM(gate_up) + GEMM(down) + attention + elementwise;  step = layers*layer + lm_head

GEMM and attention are interpolated in the tables' own axes; elementwise is the first file's for Llama-3.1-8B, scaled
with the layer's width because it moves bytes. No step of these has a chunk that continues a prompt, so what attention
to earlier tokens costs is taken from perf/roofline.py. Needs pyarrow. How well each fit did goes to stderr.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sloguard.perf.batch_time import Batch
from sloguard.perf.fit import Sample, fit, held_out, residuals
from sloguard.perf.gpus import GPUS
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS
from sloguard.perf.roofline import predicted_pieces
from sloguard.perf.samples import Group, read_samples

AIC = {"A100-80GB": ("a100_sxm", "0.14.0"), "H100": ("h100_sxm", "0.24.0"), "H200": ("h200_sxm", "0.24.0")}
AIC_MODELS = {
    "meta-llama/Llama-3.1-8B": ("Llama-3.1-8B", 1),
    "meta-llama/Llama-3.1-70B": ("Llama-3.1-70B", 4),
    "meta-llama/Llama-2-70b-hf": ("Llama-2-70B", 4),
}
AIC_COMPOSED = ("Qwen/Qwen2-1.5B",)
PROFILED = (
    ("RTX-PRO-6000", "meta-llama/Llama-3.1-8B", "RTXPRO6000"),
    ("RTX-PRO-6000", "Qwen/Qwen3-32B", "RTXPRO6000"),
    ("RTX-4090", "meta-llama/Llama-3.1-8B", "RTX4090"),
)
WIDTH_OF = MODELS["meta-llama/Llama-3.1-8B"]

PREFILLS = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
DECODES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024)
CONTEXTS = (128, 512, 1024, 2048, 4096)
MAX_KV_TOKENS = 1_400_000  # what 40 GB hold of the smallest model's KV

HEAD = '''"""GPU time of steps, fitted by tools/fit_batch_time.py, which printed this module: don't edit it.

One entry a GPU, model and tensor-parallel degree: kernels measured, mean relative error on held-out steps, pieces (the
fields of batch_time.Piece), curve (from so many tokens on, seconds a token).
"""

Fitted = tuple[str, str, int, str, float, tuple[tuple[float, ...], ...], tuple[tuple[int, float], ...]]

# fmt: off
FITTED: tuple[Fitted, ...] = ('''

Step = Callable[[int, int, int], float]  # (prefill tokens, decodes, context of each) -> ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    data_dir = parser.parse_args().data_dir
    print(HEAD)
    for row in groups(data_dir):
        print(entry(*row), flush=True)
    print(")")


def groups(data_dir: Path) -> Iterator[tuple[str, str, int, str, list[Sample]]]:
    """(GPU, model, tensor-parallel degree, kernels, samples) of each entry."""
    tables: dict[Group, list[Sample]] = {}
    for path in sorted(data_dir.glob("derived_batch_times_*.csv.gz")):
        with gzip.open(path, "rt") as file:
            tables |= read_samples(csv.DictReader(file))
    for gpu, table in AIC.items():
        kernels = f"AIConfigurator, vLLM {table[1]}"
        for model, (name, tp) in AIC_MODELS.items():
            yield gpu, model, tp, kernels, tables[*table, name, str(tp)]
        if (data_dir / "aic_vllm" / f"{table[0]}_{table[1]}_gemm_perf.parquet").exists():
            for model in AIC_COMPOSED:
                step = compose(MODELS[model], data_dir, table, elementwise(data_dir, table))
                yield gpu, model, 1, kernels, sample_grid(step)
    for gpu, model, name in PROFILED:
        yield gpu, model, 1, "LLMServingSim, vLLM 0.19", tables[name, model, "1"]


def entry(gpu: str, model: str, tp: int, kernels: str, samples: list[Sample]) -> str:
    continued = any(s.batch.context_tokens for s in samples)
    fitter = fit if continued else partial(fit, attention_pair_s=pair_seconds(gpu, model, tp))
    found = fitter(samples)
    kept_out = residuals(samples, held_out(samples, fitter))
    print(f"{gpu} {model} TP{tp}: {found.residuals}; held out {kept_out}", file=sys.stderr, flush=True)
    pieces = [f"({', '.join(number(x) for x in astuple(piece))})," for piece in found.model.pieces]
    curve = ", ".join(f"({start}, {number(slope)})" for start, slope in merged(found.model.curve))
    lines = [f'    ("{gpu}", "{model}", {tp}, "{kernels}", {kept_out.mape:.3f},']
    lines += [f"     ({pieces[0]}", *(f"      {piece}" for piece in pieces[1:])]
    lines[-1] += "),"
    return "\n".join([*lines, *textwrap.wrap(f"({curve})),", 118, initial_indent=" " * 5, subsequent_indent=" " * 6)])


def pair_seconds(gpu: str, model: str, tp: int) -> float:
    return max(piece.attention_pair_s for piece in predicted_pieces(MODELS[model], GPUS[gpu], tp))


def number(x: float) -> str:
    return f"{x:.4g}".replace("e-0", "e-") if x else "0.0"


def merged(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Without corners at which the slope stays the same to the digits printed."""
    slopes = [number(slope) for _, slope in curve]
    return [corner for i, corner in enumerate(curve) if not i or slopes[i] != slopes[i - 1]]


def sample_grid(step: Step) -> list[Sample]:
    grid = ((p, b, c) for p in PREFILLS for b in DECODES for c in CONTEXTS)
    cells = {(p, b, c if b else 0) for p, b, c in grid if p + b and b * c <= MAX_KV_TOKENS}
    return [Sample(_batch(p, b, c), step(p, b, c) / 1e3) for p, b, c in sorted(cells)]


def _batch(prefill: int, decodes: int, context: int) -> Batch:
    return Batch(((prefill, 0),) if prefill else (), decodes, decodes * context)


def elementwise(data_dir: Path, table: tuple[str, str]) -> Callable[[ModelShape, int], float]:
    """ms of norms, rotary embedding, activation and residual of a whole pass over n tokens."""
    by_tokens: dict[int, float] = {}
    with gzip.open(data_dir / "derived_batch_times_aic_vidur.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if (row["system"], row["vllm_kernels"]) == table and row["model"] == "Llama-3.1-8B" and row["tp"] == "1":
                tokens = int(row["num_prefill_tokens"]) + int(row["num_decode_tokens"])
                by_tokens[tokens] = float(row["elementwise_ms"]) / WIDTH_OF.layers
    tokens = sorted(by_tokens)
    ms = [by_tokens[t] for t in tokens]

    def of(shape: ModelShape, n: int) -> float:
        width = (shape.hidden + shape.intermediate) / (WIDTH_OF.hidden + WIDTH_OF.intermediate)
        return shape.layers * width * _line(n, tokens, ms)

    return of


def compose(
    shape: ModelShape, data_dir: Path, table: tuple[str, str], rest: Callable[[ModelShape, int], float]
) -> Step:
    prefix = str(data_dir / "aic_vllm" / f"{table[0]}_{table[1]}_")
    gemm = gemm_ms(prefix + "gemm_perf.parquet")
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    decode = decode_attention_ms(prefix + "generation_attention_perf.parquet", heads)
    prefill = prefill_attention_ms(prefix + "context_attention_perf.parquet", heads)
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    linears = (
        (qkv, shape.hidden),
        (shape.hidden, shape.heads * shape.head_dim),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    )

    def step(p: int, b: int, context: int) -> float:
        n = p + b
        attention = (decode(b, context) if b else 0.0) + (prefill(p) if p else 0.0)
        layer = sum(gemm(n, width, depth) for width, depth in linears) + attention
        return shape.layers * layer + rest(shape, n) + gemm(b + (p > 0), shape.vocab, shape.hidden)

    return step


def gemm_ms(path: str) -> Callable[[int, int, int], float]:
    """(m, n, k) -> ms: linear in m, in n and in k between the measured points; beyond them in proportion."""
    curves: dict[int, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in pq.read_table(path).to_pylist():
        if row["gemm_dtype"] == "bfloat16":
            curves[row["k"]][row["n"]].append((row["m"], row["latency"]))
    depths = sorted(curves)
    widths = {k: sorted(curves[k]) for k in depths}
    lines = {(k, n): tuple(zip(*sorted(curves[k][n]), strict=True)) for k in depths for n in widths[k]}

    @cache
    def of(m: int, n: int, k: int) -> float:
        around = [max(d for d in depths if d <= k), min(d for d in depths if d >= k)]
        at = [_line(n, widths[d], [_line(m, *lines[d, w]) for w in widths[d]]) for d in around]
        return float(np.interp(k, around, at)) if around[0] < around[1] else at[0]

    return of


def _line(x: int, xs: Sequence[int], ys: Sequence[float]) -> float:
    """Linear between points, in proportion beyond the last."""
    return float(np.interp(x, xs, ys)) * max(1.0, x / xs[-1])


def decode_attention_ms(path: str, heads: tuple[int, int, int]) -> Callable[[int, int], float]:
    """(batch, context) -> ms of one layer, bilinear."""
    cells = {
        (r["batch_size"], r["step"] + 1): r["latency"]
        for r in pq.read_table(path).to_pylist()
        if (r["num_heads"], r["num_key_value_heads"], r["head_dim"]) == heads
        and r["kv_cache_dtype"] == "bfloat16"
        and not r.get("window_size")
    }
    batches = sorted({b for b, _ in cells})
    lines = {b: sorted((c, ms) for (bb, c), ms in cells.items() if bb == b) for b in batches}

    def along(b: int, context: int) -> float:
        return _line(context, *zip(*lines[b], strict=True))

    def of(b: int, context: int) -> float:
        return float(np.interp(b, batches, [along(known, context) for known in batches]))

    return of


def prefill_attention_ms(path: str, heads: tuple[int, int, int]) -> Callable[[int], float]:
    """(prompt tokens) -> ms of one layer, one prompt."""
    rows = {
        r["isl"]: r["latency"]
        for r in pq.read_table(path).to_pylist()
        if (r["num_heads"], r["num_key_value_heads"], r["head_dim"]) == heads
        and r["batch_size"] == 1
        and r["kv_cache_dtype"] == "bfloat16"
        and not r.get("window_size")
    }
    tokens = sorted(rows)
    return lambda p: float(np.interp(p, tokens, [rows[t] for t in tokens]))


if __name__ == "__main__":
    main()
