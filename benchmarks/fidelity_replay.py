"""Replays what a real server was asked on a simulated one: same arrivals, lengths, prompts and KV blocks.

Nothing is fitted to a run or a model: step times are perf/coefficients.py's, and two constants of the request's path
hold for all.

Two things of the published runs (inference-perf against vLLM on H100) have to be read out of them:

prompts    the client cycles through a fixed list of prompts, seen in the lengths: they repeat with one period. Equal
           prompts hit the prefix cache. Neighbours that arrived at nearly one instant may have changed places
lengths    output tokens were counted by encoding the text again, which loses special tokens. Where how long a request
           decoded does not depend on its count at all, every request generated as many tokens: the commonest count.
           TPOT divides by the client's counts, measured and simulated alike
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from fidelity_shapes import shape_named
from numpy.typing import NDArray

from sloguard.errors import SpecError
from sloguard.perf.coefficients import batch_time
from sloguard.perf.gpus import Gpu, gpu_named
from sloguard.perf.model_shape import ModelShape
from sloguard.request import End, Prefix, Request, Stage
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.policy import Limits
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Planner, Replica
from sloguard.sim.serve import simulate

# Besides the GPU's time. vLLM plans a step while the one before it runs (async scheduling), so that the CPU's work on a
# step hides behind the GPU, and a request that arrives during a step waits for the end of that step and of the next.
# What medians of TTFT have beyond that, by running requests, is 5.6 ms + 0.034 ms each for Llama-2-7B on one H100 and
# 4.5 ms + 0.09 ms each for Mixtral-8x7B on two.
REQUEST_S = 5.5e-3  # HTTP, tokenising, two hops between processes and the first chunk's way back
STREAMED_S = 0.05e-3  # of each running request: the API server writes out a step's tokens one by one
GRAPH_SIZES = (1, 2, 4, *range(8, 257, 8))  # captured by default: to twice max_num_seqs, at most 512
MAX_PERIOD = 1000
SAME = 0.95  # of the lengths a period apart are equal: a cycle of prompts (changed places are rare)
UNRELATED = 0.3  # correlation of decode time and counted tokens; where lengths are true it is near 1
OVERLOAD_TTFT_S = 1.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What was asked and measured, by request. `counted_tokens` are the client's; unfinished requests are NaN."""

    name: str
    model: ModelShape
    gpu: Gpu
    tp: int
    limits: Limits
    kv_blocks: int
    block_tokens: int
    requests: Sequence[Request]
    counted_tokens: NDArray[np.int64]
    ttft_s: Floats
    e2e_s: Floats
    timeout_s: float  # the client's; infinite where no request was given up
    notes: tuple[str, ...]

    @property
    def overloaded(self) -> bool:
        return self.timeout_s < float("inf") or float(np.nanmedian(self.ttft_s)) > OVERLOAD_TTFT_S


@dataclass(frozen=True)
class Replayed:
    ttft_s: Floats
    e2e_s: Floats
    evictions: int
    wall_s: float


def tpot_s(ttft_s: Floats, e2e_s: Floats, tokens: NDArray[np.int64]) -> Floats:
    """NaN below two tokens."""
    gaps = np.where(tokens > 1, tokens - 1.0, np.nan)
    return (e2e_s - ttft_s) / gaps


def replay(run: Run) -> Replayed:
    """On one replica under vLLM's policy."""
    sizes = tuple(size for size in GRAPH_SIZES if size <= 2 * run.limits.max_num_seqs)
    time = batch_time(run.model, run.gpu, run.tp, eager=False, graph_sizes=sizes)
    replicas: list[Replica] = []
    streams = np.full(len(run.requests), np.nan)  # running requests when the first token came

    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        def noting(jobs: list[Job], times_s: list[float]) -> None:
            for job in jobs:
                if job.generated_tokens == len(times_s):
                    streams[int(job.stream)] = len(replica.running)
            on_tokens(jobs, times_s)

        kv = KvCache(run.kv_blocks - 1, run.block_tokens)  # vLLM keeps one block as a placeholder
        replica = Replica(kernel, Fcfs(), run.limits, kv, time, noting, on_decline, planner=Planner(async_lag=True))
        replicas.append(replica)
        return replica

    begun_s = perf_counter()
    timelines = simulate(run.requests, make, request_timeout_s=run.timeout_s)
    wall_s = perf_counter() - begun_s
    done = [t.end is End.COMPLETED for t in timelines]
    path_s = REQUEST_S + STREAMED_S * streams
    ttft_s = np.array([t.ttft_s if ok else np.nan for t, ok in zip(timelines, done, strict=True)], np.float64) + path_s
    e2e_s = np.array([t.e2el_s if ok else np.nan for t, ok in zip(timelines, done, strict=True)], np.float64) + path_s
    return Replayed(ttft_s, e2e_s, replicas[0].stats.evictions, wall_s)


def read_runs(data_dir: Path, unknown: set[str]) -> Iterator[Run]:
    """Every `NAME_runs.csv` below the directory, with the `NAME_requests.csv.gz` beside it. Models whose shape isn't
    known are passed over and added to `unknown`.
    """
    for path in sorted(data_dir.rglob("*_runs.csv")):
        with gzip.open(path.with_name(path.name.replace("_runs.csv", "_requests.csv.gz")), "rt") as file:
            requests: dict[str, list[dict[str, str]]] = defaultdict(list)
            for row in csv.DictReader(file):
                requests[row["run"]].append(row)
        with path.open() as file:
            for row in csv.DictReader(file):
                if (model := shape_named(row["model"])) is None:
                    unknown.add(row["model"])
                else:
                    yield read_run(row, requests[row["run"]], model)


def read_run(facts: Mapping[str, str], rows: Sequence[Mapping[str, str]], model: ModelShape) -> Run:
    def column(name: str) -> Floats:
        return np.array([float(row[name] or "nan") for row in rows])

    failed = np.array([row["has_error"].lower() not in ("", "0", "0.0", "false") for row in rows])
    ttft_s, e2e_s = (np.where(failed, np.nan, column(name)) for name in ("ttft_s", "e2e_s"))
    prompts, counted = (np.nan_to_num(column(name)).astype(np.int64) for name in ("input_tokens", "output_tokens"))
    block_tokens = int(facts["block_size"])
    texts, notes = prompt_texts(prompts)
    lengths, lengths_note = true_lengths(counted, e2e_s - ttft_s)
    prompt_tokens = known_lengths(texts, prompts)
    group_tokens = int(float(facts.get("system_prompt_len") or 0))
    groups = {group: at for at, group in enumerate(sorted({row["prefix_group"] for row in rows} - {""}))}
    requests = [
        Request(
            str(at),
            float(row["arrival_s"]),
            (Stage(int(prompt_tokens[at]), int(lengths[at])),),
            prefix=_prefix(
                texts[at], int(prompt_tokens[at]), block_tokens, groups.get(row["prefix_group"]), group_tokens
            ),
        )
        for at, row in enumerate(rows)
    ]
    limits = Limits(*(int(facts[name]) for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")))
    timeout_s = float(np.floor(np.min(column("e2e_s")[failed]))) if failed.any() else float("inf")
    return Run(
        f"{facts['run']} {facts['experiment'].split('-', 2)[-1]}",
        model,
        gpu_named(facts["gpu"]),
        int(facts["tp"]),
        limits,
        int(facts["kv_blocks_total_gpu"]),
        block_tokens,
        requests,
        counted,
        ttft_s,
        e2e_s,
        timeout_s,
        (*notes, *lengths_note),
    )


def prompt_texts(prompts: NDArray[np.int64]) -> tuple[list[int | None], tuple[str, ...]]:
    """Which text of the client's list each prompt is, or None where lengths tell of no list. Unknown lengths are 0."""
    known = prompts > 0
    for period in range(2, min(MAX_PERIOD, len(prompts) // 3)):
        both = known[period:] & known[:-period]
        if both.sum() >= period and np.mean((prompts[period:] == prompts[:-period])[both]) >= SAME:
            break
    else:
        return [None] * len(prompts), ()
    usual = [_commonest(prompts[at::period]) for at in range(period)]
    texts: list[int | None] = []
    for at, tokens in enumerate(prompts.tolist()):
        around = (at % period, (at + 1) % period, (at - 1) % period)
        texts.append(next((text for text in around if tokens in (0, usual[text])), at % period))
    return texts, (f"{period} prompts in a cycle",)


def known_lengths(texts: Sequence[int | None], prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Prompt tokens; those of a failed request, which the client did not note, are its text's, or the commonest."""
    by_text: dict[int | None, list[int]] = defaultdict(list)
    for text, tokens in zip(texts, prompts.tolist(), strict=True):
        by_text[text].append(tokens)
    usual = {text: _commonest(np.array(tokens)) for text, tokens in by_text.items()}
    fallback = _commonest(prompts)
    return np.array([n or usual[text] or fallback for text, n in zip(texts, prompts.tolist(), strict=True)])


def true_lengths(counted: NDArray[np.int64], decode_s: Floats) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Tokens that were generated, which differ from those counted where decode times say so."""
    usual = _commonest(counted)
    seen = np.isfinite(decode_s) & (counted > 1)
    tokens, times_s = counted[seen], decode_s[seen]
    if seen.sum() > 1 and np.std(tokens) > 0 and abs(np.corrcoef(tokens, times_s)[0, 1]) < UNRELATED:
        return np.full(len(counted), usual), (f"{usual} output tokens each, whatever was counted",)
    return np.where(counted > 0, counted, usual), ()


def _commonest(values: NDArray[np.int64]) -> int:
    """Positive value; 0 where there is none."""
    counts = Counter(value for value in values.tolist() if value > 0)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else 0


def _prefix(text: int | None, tokens: int, block_tokens: int, group: int | None, group_tokens: int) -> Prefix | None:
    """The whole prompt where its text is known, else what its group shares. Ids of groups are negative."""
    shared = [] if group is None else [-(group + 1) * MAX_PERIOD - at for at in range(group_tokens // block_tokens)]
    own = [] if text is None else [text * MAX_PERIOD + at for at in range(len(shared), -(-tokens // block_tokens))]
    return Prefix((*shared, *own), block_tokens) if shared or own else None


def read_bench(path: Path, server: Mapping[str, Any]) -> Run:
    """A `sloguard bench --json` file. `server` holds what a client can't know: gpu, tp, kv_blocks, block_size,
    max_num_seqs, max_num_batched_tokens, max_model_len. Prompts of bench are random: nothing is shared.
    """
    missing = [name for name, value in server.items() if value is None]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise SpecError(str(path), "sloguard bench", "does not say how its server was started", f"Give {flags}.")
    data = json.loads(path.read_text())
    model = shape_named(data["settings"]["model"])
    if model is None:
        raise SpecError(
            "model", data["settings"]["model"], "its shape is not known", "Add it to src/sloguard/perf/models.py."
        )
    rows = data["requests"]

    def figure(name: str) -> Floats:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)

    done = np.array([row["end"] == "completed" for row in rows])
    tokens, prompts = (np.nan_to_num(figure(name)).astype(np.int64) for name in ("tokens", "prompt_tokens"))
    stages = [Stage(max(1, int(p)), max(1, int(n))) for p, n in zip(prompts, tokens, strict=True)]
    requests = [Request(str(at), row["due_s"], (stages[at],)) for at, row in enumerate(rows)]
    names = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")
    timed_out = any(row["end"] == "timed_out" for row in rows)
    return Run(
        path.stem,
        model,
        gpu_named(server["gpu"]),
        server["tp"],
        Limits(*(server[name] for name in names)),
        server["kv_blocks"],
        server["block_size"],
        requests,
        tokens,
        np.where(done, figure("ttft_s"), np.nan),
        np.where(done, figure("e2el_s"), np.nan),
        float(data["settings"]["timeout_s"]) if timed_out else float("inf"),
        (),
    )
