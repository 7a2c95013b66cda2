"""Step times in public tables, read as samples: pure functions of rows. A table is known by its columns, not its name.

composed    one step a row: num_prefill_tokens, num_decode_tokens, total_ms, context_per_decode or kv_tokens, and
            prefill_context if the chunk has one. AIConfigurator with Vidur, LLMServingSim: kernel times added up
phases      one run a row: a batch of `batch_size` prompts of input_tokens_per_request, then output_tokens decodes of
            each, with prompt_time_ms (one step that computes the prompts) and token_time_ms (the mean decode step).
            Splitwise (arXiv 2311.18677): whole steps measured end to end on the engine of 2023

A row of phases is two samples: the prompts as chunks, and the decodes at their mean context, input + output/2. Runs are
repeated, and the prompt step does not depend on the output: each distinct batch is one sample, the median of its rows.
A batch of prompts that took less than half as long as fewer prompts of that length did not run as one batch (the KV of
64 prompts does not fit a 70B model on two GPUs): it is dropped with its decodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median

from sloguard.perf.batch_time import Batch
from sloguard.perf.fit import Sample

Row = Mapping[str, str]
Group = tuple[str, ...]  # GPU, kernels (where named), model, tensor-parallel degree

GROUP_COLUMNS = (("gpu", "system", "hardware"), ("vllm_kernels",), ("model",), ("tp", "tensor_parallel"))
COMPOSED = {"num_prefill_tokens", "num_decode_tokens", "total_ms"}
PHASES = {"input_tokens_per_request", "batch_size", "output_tokens", "prompt_time_ms", "token_time_ms"}
ONE_BATCH = 0.5  # the least a batch takes, as a share of what a part of it takes


def readable(columns: Iterable[str]) -> bool:
    """Whether a table with these columns holds step times that `read_samples` understands."""
    have = set(columns)
    return have >= PHASES or (have >= COMPOSED and bool(have & {"kv_tokens", "context_per_decode"}))


def read_samples(rows: Iterable[Row]) -> dict[Group, list[Sample]]:
    """The samples of each group, every batch once. Rows without a time are passed over."""
    composed: dict[Group, dict[Batch, list[float]]] = defaultdict(lambda: defaultdict(list))
    phases: dict[Group, list[Row]] = defaultdict(list)
    for row in rows:
        group = tuple(row[name] for names in GROUP_COLUMNS for name in names if row.get(name))
        if row.keys() >= PHASES:
            phases[group].append(row)
        elif row["total_ms"]:
            composed[group][_composed(row)].append(float(row["total_ms"]))
    found = dict(composed) | {group: _phases(rows_) for group, rows_ in phases.items()}
    return {group: [Sample(batch, median(ms) / 1e3) for batch, ms in of.items()] for group, of in found.items()}


def _composed(row: Row) -> Batch:
    prefill, decodes = int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])
    kv = row.get("kv_tokens") or decodes * int(row["context_per_decode"])
    return Batch(((prefill, int(row.get("prefill_context") or 0)),) if prefill else (), decodes, int(kv))


def _phases(rows: Iterable[Row]) -> dict[Batch, list[float]]:
    prompts: dict[tuple[int, int], list[float]] = defaultdict(list)
    decodes: dict[tuple[int, int], list[tuple[Batch, float]]] = defaultdict(list)
    for row in rows:
        tokens, size, out = (int(row[name]) for name in ("input_tokens_per_request", "batch_size", "output_tokens"))
        if row["prompt_time_ms"]:
            prompts[tokens, size].append(float(row["prompt_time_ms"]))
        if row["token_time_ms"]:
            batch = Batch((), size, int(size * (tokens + out / 2)))
            decodes[tokens, size].append((batch, float(row["token_time_ms"])))
    found: dict[Batch, list[float]] = defaultdict(list)
    slowest: dict[int, float] = defaultdict(float)
    for tokens, size in sorted(prompts.keys() | decodes.keys()):
        if times := prompts.get((tokens, size)):
            if median(times) < ONE_BATCH * slowest[tokens]:
                continue
            slowest[tokens] = max(slowest[tokens], median(times))
            found[Batch(((tokens, 0),) * size)].extend(times)
        for batch, ms in decodes[tokens, size]:
            found[batch].append(ms)
    return found
