"""A run in the field names of `vllm bench serve --save-result --save-detailed` (vLLM 0.32), for tools that read those.

Three fields differ in what they hold: latencies count from the instant a request was due, not sent; `start_times` count
from the start of the run; `generated_texts` are empty, for texts are not kept. `sloguard` (as `--metadata sloguard=...`
would write it) tells such a file from vLLM's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sloguard import __version__
from sloguard.contract import Metric, samples_s
from sloguard.metrics import Summary
from sloguard.request import End, Timeline
from sloguard.slo import NO_SLO

BACKENDS = {"completions": "openai", "chat": "openai-chat"}


def to_vllm_json(
    timelines: Sequence[Timeline],
    summary: Summary,
    *,
    api: str,
    model: str,
    request_rate: float | None,
    burstiness: float,
    started: datetime,
) -> dict[str, Any]:
    """One flat object. `request_rate` None (a trace as recorded) is written as the rate that was offered."""
    rate = summary.offered / summary.duration_s if request_rate is None else request_rate
    promised = any(stage.slo != NO_SLO for t in timelines for stage in t.request.stages)
    done = [t for t in timelines if t.end is End.COMPLETED]
    return {
        "date": started.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": BACKENDS[api],
        "backend": BACKENDS[api],
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": summary.offered,
        "sloguard": __version__,
        "request_rate": _finite(rate),
        "burstiness": _finite(burstiness),
        "max_concurrency": None,
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.offered - summary.completed,
        "total_input_tokens": summary.prompt_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.request_throughput,
        "request_goodput": summary.request_goodput if promised else None,
        "output_throughput": summary.output_throughput,
        "total_token_throughput": (summary.prompt_tokens + summary.output_tokens) / summary.duration_s,
        "input_lens": [t.request.prompt_tokens if t.prompt_tokens is None else t.prompt_tokens for t in timelines],
        "output_lens": [t.output_tokens if t.end is End.COMPLETED else 0 for t in timelines],
        "ttfts": [t.ttft_s or 0.0 for t in timelines],
        "itls": [t.itl_s.tolist() for t in timelines],
        "latencies": [t.e2el_s or 0.0 for t in timelines],
        "start_times": [t.due_s if t.sent_s is None else t.sent_s for t in timelines],
        "queue_times": [t.queue_delay_s or 0.0 for t in timelines],
        "generated_texts": ["" for _ in timelines],
        "errors": [t.error for t in timelines],
        **_peaks(done),
        "rtfx": 0.0,  # of speech models
        **{key: value for m in (Metric.TTFT, Metric.TPOT, Metric.ITL) for key, value in _figures(done, m).items()},
    }


def _finite(value: float) -> float | str:
    """JSON has no infinity: vLLM writes a rate without limit as text."""
    return value if value < float("inf") else "inf"


def _figures(done: Sequence[Timeline], metric: Metric) -> dict[str, float]:
    """In ms; 0 where nothing was measured, as vLLM writes it."""
    values_ms = samples_s(done, metric) * 1000
    values_ms = values_ms if len(values_ms) else np.zeros(1)
    return {
        f"mean_{metric}_ms": float(np.mean(values_ms)),
        f"median_{metric}_ms": float(np.median(values_ms)),
        f"std_{metric}_ms": float(np.std(values_ms)),
        f"p99_{metric}_ms": float(np.percentile(values_ms, 99)),
    }


def _peaks(done: Sequence[Timeline]) -> dict[str, float]:
    """Most tokens in, and most requests under way during, any one second since the first was sent."""
    if not done:
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    sent_s = np.array([t.due_s if t.sent_s is None else t.sent_s for t in done])
    first_s = float(sent_s.min())
    tokens = np.bincount(_seconds(np.concatenate([t.token_s for t in done]), first_s))
    begun = np.bincount(_seconds(sent_s, first_s), minlength=len(tokens))
    ended = np.bincount(_seconds(np.array([t.token_s[-1] for t in done]), first_s), minlength=len(tokens))
    under_way = np.cumsum(begun) - np.cumsum(ended) + ended  # a request counts in the second it ends in
    return {"max_output_tokens_per_s": float(tokens.max()), "max_concurrent_requests": int(under_way.max())}


def _seconds(instants_s: NDArray[np.float64], first_s: float) -> NDArray[np.intp]:
    return np.maximum(instants_s - first_s, 0).astype(np.intp)
