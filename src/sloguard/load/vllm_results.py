"""Reads what `vllm bench serve --save-result` and `--save-detailed` write, and `sloguard bench --save-vllm-json`.

Read against vLLM 0.32.0 (vllm/benchmarks/serve.py, lib/endpoint_request_func.py). Latencies count from the call that
sends; seconds in the arrays, milliseconds in the aggregates. Where nothing was measured vLLM writes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from sloguard.load.result_parts import Count, Outside, PositiveOrInf, Rate, Seconds, checked, column, unreadable
from sloguard.load.run_figures import TOLD_GOODPUT, Figures, Requests, RunFigures, recomputed, run_figures
from sloguard.metrics import Dist
from sloguard.request import End

TOOL = "vllm bench serve"
OURS = "sloguard bench"
EVEN_BURSTINESS = 1e4  # gaps of gamma arrivals this smooth differ by 1 %: evenly spaced

SENT = "latencies count from when a request was sent: the client's own lag is not in them"
QUEUED = "latencies count from when the rate was due, the wait for --max-concurrency included, which vLLM's leave out"
CHUNKS = "a chunk without text counts as one in ITL, and the last ends the latency"
AGGREGATES = "no data per request (--save-detailed), so figures are the file's own, and its duration begins before"
AGGREGATES += " the first request"
FAILED_ENDS = "when failed requests ended is not in the file, so the duration is the file's own"


class VllmRun(Outside):
    """Names as in the file. The figures of latency (`mean_ttft_ms`, `p99_itl_ms`) are read from the extras."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    model_id: str | None
    completed: Count
    duration: Seconds = Field(gt=0)
    total_input_tokens: Count
    total_output_tokens: Count
    request_throughput: Rate
    output_throughput: Rate
    failed: Count | None = None
    request_goodput: Rate | None = None
    request_rate: PositiveOrInf | Literal["inf"] | None = None
    burstiness: PositiveOrInf | Literal["inf"] | None = None
    max_concurrency: Count | None = None
    ramp_up_strategy: str | None = None
    sloguard: str | None = None
    input_lens: list[Count] | None = None
    output_lens: list[Count] | None = None
    ttfts: list[Seconds] | None = None
    itls: list[list[Seconds]] | None = None
    latencies: list[Seconds] | None = None
    start_times: list[Seconds] | None = None
    queue_times: list[Seconds] | None = None
    errors: list[str | None] | None = None

    @property
    def rate(self) -> float | None:
        return None if self.request_rate is None or self.ramp_up_strategy else float(self.request_rate)

    @property
    def detailed(self) -> bool:
        needed = (self.input_lens, self.output_lens, self.ttfts, self.itls, self.start_times, self.errors)
        return all(values is not None for values in needed) and bool(self.ttfts)


def read_vllm(path: str, documents: Sequence[Any]) -> list[RunFigures]:
    """A run for each object: --append-result writes several. Raises SpecError."""
    return [_run(path, checked(VllmRun, document, path, TOOL)) for document in documents]


def _run(path: str, run: VllmRun) -> RunFigures:
    told = _told(path, run)
    ours = run.sloguard is not None
    requests = _requests(path, run) if run.detailed else None
    figures = told if requests is None else recomputed(requests, told)
    queued = _queued(run) and requests is not None
    notes = [] if ours else [QUEUED if queued else SENT, CHUNKS]
    if requests is None:
        notes.append(AGGREGATES)
    elif figures.failed and not ours:
        notes.append(FAILED_ENDS)
    attainment = goodput = None
    if run.request_goodput is not None:
        good = run.request_goodput * run.duration
        attainment = None if not told.offered else min(good / told.offered, 1.0)
        goodput = good / (figures.duration_s or run.duration)
        notes.append(TOLD_GOODPUT)
    burstiness = _burstiness(run)
    return run_figures(
        figures,
        file=path,
        tool=OURS if ours else TOOL,
        tool_version=run.sloguard,
        model=run.model_id,
        strategy=_strategy(run, burstiness),
        request_rate=run.rate,
        concurrency=run.max_concurrency,
        burstiness=burstiness,
        counts_from="due" if ours or queued else "sent",
        attainment=attainment,
        request_goodput=goodput,
        told=told,
        requests=requests,
        notes=tuple(notes),
    )


def _burstiness(run: VllmRun) -> float | None:
    """None where it meant nothing. `sloguard bench` writes 1 for a workload's own arrivals, too."""
    if run.burstiness is None or run.rate is None or run.rate == np.inf or (run.sloguard and run.burstiness == 1):
        return None
    return float(run.burstiness)


def _strategy(run: VllmRun, burstiness: float | None) -> str | None:
    if run.ramp_up_strategy:
        return f"{run.ramp_up_strategy} ramp-up"
    if run.rate == np.inf:
        return "concurrent" if run.max_concurrency else "all at once"
    if burstiness is None:
        return None
    return "poisson" if burstiness == 1 else "constant" if burstiness >= EVEN_BURSTINESS else "gamma"


def _queued(run: VllmRun) -> bool:
    """Whether requests were due at a rate, and could wait for others to end: then the wait is theirs."""
    paced = run.max_concurrency is not None and (run.rate or np.inf) < np.inf
    return run.sloguard is None and paced and run.queue_times is not None


def _told(path: str, run: VllmRun) -> Figures:
    paceless = run.total_output_tokens <= run.completed  # no answer has a second token
    return Figures(
        completed=run.completed,
        failed=run.failed,
        duration_s=run.duration,
        input_tokens=run.total_input_tokens,
        output_tokens=run.total_output_tokens,
        request_throughput=run.request_throughput,
        output_throughput=run.output_throughput,
        ttft_s=_dist(path, run, "ttft", run.completed, nothing=run.completed == 0),
        tpot_s=_dist(path, run, "tpot", None, nothing=paceless),
        itl_s=_dist(path, run, "itl", None, nothing=paceless),
        e2el_s=_dist(path, run, "e2el", run.completed, nothing=run.completed == 0),
    )


def _dist(path: str, run: VllmRun, metric: str, n: int | None, *, nothing: bool) -> Dist | None:
    """None where --percentile-metrics left it out, empty where there was nothing to measure: vLLM writes 0 then."""
    extras = run.model_extra or {}
    if nothing or f"mean_{metric}_ms" not in extras:
        return Dist() if nothing else None
    names = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
    found: dict[str, float | None] = {}
    for figure, prefix in names.items():
        key = f"{prefix}_{metric}_ms"
        value = extras.get(key)
        wrong = isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12
        if key in extras and wrong:
            raise unreadable(path, f"is no {TOOL} file that can be read: {key} = {value!r} is no number")
        found[figure] = None if value is None else value / 1000
    return Dist(n=n, **found)


def _requests(path: str, run: VllmRun) -> Requests:
    ttft_s, output_tokens = column(run.ttfts or ()), column(run.output_lens or ())
    itl_s = tuple(np.array(gaps, dtype=np.float64) for gaps in run.itls or ())
    latencies = column(run.latencies) if run.latencies else ttft_s + [gaps.sum() for gaps in itl_s]
    queue_s = column(run.queue_times) if run.queue_times else np.full(len(ttft_s), np.nan)
    columns = (run.input_lens or (), output_tokens, itl_s, latencies, run.start_times or (), queue_s, run.errors or ())
    if {len(values) for values in columns} != {len(ttft_s)}:
        raise unreadable(path, f"is no {TOOL} file that can be read: its arrays differ in length")
    failed = _failed(path, run, output_tokens)
    sent_s = column(run.start_times or ())
    ours = run.sloguard is not None
    known = ours or _queued(run)
    waited_s = queue_s if _queued(run) else 0.0  # ours count from when they were due already
    e2el_s = np.where(failed, np.nan, latencies + waited_s)
    due_s = sent_s - queue_s if known else np.full(len(sent_s), np.nan)
    return Requests(
        ends=tuple(End.FAILED if lost else End.COMPLETED for lost in failed),
        due_s=due_s,
        sent_s=sent_s,
        ended_s=np.full(len(sent_s), np.nan) if ours else (due_s if known else sent_s) + e2el_s,
        ttft_s=np.where(failed, np.nan, ttft_s + waited_s),
        e2el_s=e2el_s,
        input_tokens=column(run.input_lens or ()),
        output_tokens=output_tokens,
        itl_s=itl_s,
    )


def _failed(path: str, run: VllmRun, output_tokens: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n] by the error, or, for a refusal without a status text has an empty one, by having no tokens: whichever agrees
    with the file's own totals.
    """
    errors = np.array([bool(error) for error in run.errors or ()])
    for failed in (errors, output_tokens == 0, errors | (output_tokens == 0)):
        totals = int((~failed).sum()), int(output_tokens[~failed].sum())
        if totals == (run.completed, run.total_output_tokens):
            return failed
    raise unreadable(path, f"is no {TOOL} file that can be read: its totals are not those of errors and output_lens")
