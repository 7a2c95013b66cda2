"""Reads the JSON report of GuideLLM, report versions 1 (0.5 and 0.6, read against 0.6.1) and 2 (0.7 on, against 0.8.1).

Its source: guidellm/schemas/base/request_stats.py, benchmark/schemas/metrics.py. Latencies count from `request_start`,
when a worker sends; when a request was due is `targeted_start`, where a schedule says so. Its `inter_token_latency_ms`
is our TPOT, in the aggregate weighted by tokens; its `time_per_output_token_ms` has the first token in it and is not
read. Percentiles are the nearest rank. Where nothing was measured it writes 0 with a count of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from sloguard.load.result_parts import (
    Count,
    Instant,
    Milliseconds,
    Outside,
    Rate,
    Seconds,
    checked,
    column,
    due_column,
    unreadable,
)
from sloguard.load.run_figures import TOLD_GOODPUT, Figures, Requests, RunFigures, recomputed, run_figures
from sloguard.metrics import Dist
from sloguard.request import End
from sloguard.slo import StageSLO

TOOL = "guidellm"
VERSIONS = (1, 2)
SCHEDULED = ("constant", "poisson", "async", "trace", "replay")  # the others aim at "as soon as possible"

PACE = "its inter_token_latency_ms is our TPOT; time_per_output_token_ms has the first token in it, and is left out"
NO_GAPS = "gaps between chunks (ITL) are not in its file"
DUE = "latencies count from targeted_start; GuideLLM's own from when a worker sent the request"
SENT = "latencies count from when a request was sent: its load has no instants at which requests were due"
AGGREGATES = "the file holds {held} of {offered} requests, so figures are its own: latencies from when a request was"
AGGREGATES += " sent, percentiles the nearest rank, TPOT weighted by tokens"
LOST = "{n} of its requests are in no list of its file: what became of them is unknown"
CUT = "{n} of its requests were cut off by the end of the run: neither completed nor failed"


class Percentiles(Outside):
    p50: Milliseconds
    p90: Milliseconds
    p95: Milliseconds
    p99: Milliseconds


class Distribution(Outside):
    """In the unit of the metric: ms for most, s for `request_latency`."""

    count: Count
    mean: Milliseconds
    max: Milliseconds
    total_sum: float = Field(ge=0, le=1e15)
    percentiles: Percentiles

    def dist(self, unit_s: float) -> Dist:
        p = self.percentiles
        mean, p50, p90, p95, p99, largest = (v * unit_s for v in (self.mean, p.p50, p.p90, p.p95, p.p99, self.max))
        return Dist(self.count, mean, p50, p90, p95, p99, largest) if self.count else Dist()


class Successful(Outside):
    successful: Distribution


class Totals(Outside):
    successful: Count
    errored: Count
    incomplete: Count


class Metrics(Outside):
    request_totals: Totals
    request_latency: Successful
    time_to_first_token_ms: Successful
    inter_token_latency_ms: Successful
    prompt_token_count: Successful
    output_token_count: Successful
    slo_attainment: float | None = Field(default=None, ge=0, le=1)
    slo_determined_requests: Count = 0


class Slo(Outside):
    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    e2el_ms: float | None = Field(default=None, gt=0)

    def stage_slo(self) -> StageSLO:
        return StageSLO(*(None if ms is None else ms / 1000 for ms in (self.ttft_ms, self.tpot_ms, self.e2el_ms)))


class Strategy(Outside):
    type_: str
    rate: Rate | None = None
    streams: Count | None = None


class Backend(Outside):
    model: str | None = None


class Config(Outside):
    strategy: Strategy
    backend: Backend = Backend()
    slo: Slo | None = None


class Timings(Outside):
    targeted_start: Instant | None = None
    request_start: Instant | None = None
    first_token_iteration: Instant | None = None
    last_token_iteration: Instant | None = None
    request_end: Instant | None = None
    resolve_end: Instant | None = None

    @property
    def ended_s(self) -> float | None:
        return self.resolve_end if self.request_end is None else self.request_end


class Info(Outside):
    timings: Timings


class OneRequest(Outside):
    info: Info
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None


class State(Outside):
    """Requests that the scheduler had not seen end when the run was over."""

    queued_requests: Count = 0
    pending_requests: Count = 0
    processing_requests: Count = 0

    @property
    def lost(self) -> int:
        return self.queued_requests + self.pending_requests + self.processing_requests


class Sampled(Outside):
    successful: list[OneRequest] | None = None
    errored: list[OneRequest] | None = None
    incomplete: list[OneRequest] | None = None


class Benchmark(Outside):
    config: Config
    metrics: Metrics
    duration: Seconds
    requests: Sampled = Sampled()
    scheduler_state: State = State()


class Metadata(Outside):
    version: int
    guidellm_version: str | None = None


class Report(Outside):
    metadata: Metadata
    benchmarks: list[Benchmark] = Field(min_length=1)


def read_guidellm(path: str, documents: Sequence[Any]) -> list[RunFigures]:
    """A run for each benchmark. Raises SpecError."""
    if len(documents) > 1:
        raise unreadable(path, f"holds {len(documents)} reports of {TOOL} one after the other")
    metadata = documents[0].get("metadata")
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if version not in VERSIONS:
        raise unreadable(path, f"is a {TOOL} report of version {version!r}; 1 and 2 are read")
    report = checked(Report, documents[0], path, TOOL)
    return [_run(path, report.metadata.guidellm_version, benchmark) for benchmark in report.benchmarks]


def _run(path: str, version: str | None, benchmark: Benchmark) -> RunFigures:
    config, metrics = benchmark.config, benchmark.metrics
    scheduled = config.strategy.type_ in SCHEDULED
    told, requests = _told(benchmark), _requests(benchmark, scheduled=scheduled)
    figures = told if requests is None else replace(recomputed(requests, told), unfinished=told.unfinished)
    if requests is None:
        notes = [AGGREGATES.format(held=len(_rows(benchmark)), offered=told.offered), PACE, NO_GAPS]
    else:
        notes = [DUE if requests.counts_from == "due" else SENT, PACE, NO_GAPS]
    counted = ((CUT, metrics.request_totals.incomplete), (LOST, benchmark.scheduler_state.lost))
    notes += [note.format(n=n) for note, n in counted if n]
    goodput = None
    if metrics.slo_attainment is not None:
        good = metrics.slo_attainment * metrics.slo_determined_requests
        goodput = good / figures.duration_s if figures.duration_s else None
        notes.append(TOLD_GOODPUT)
    strategy = config.strategy
    burstiness = {"constant": np.inf, "poisson": 1.0}.get(strategy.type_)
    return run_figures(
        figures,
        file=path,
        tool=TOOL,
        tool_version=version,
        model=config.backend.model or None,
        strategy=strategy.type_,
        request_rate=strategy.rate,
        concurrency=strategy.streams,  # max_concurrency is a bound of its workers, not of the load
        burstiness=burstiness,
        counts_from="sent" if requests is None else requests.counts_from,
        slo=None if config.slo is None else config.slo.stage_slo(),
        attainment=metrics.slo_attainment,
        request_goodput=goodput,
        told=told,
        requests=requests,
        notes=tuple(notes),
    )


def _told(benchmark: Benchmark) -> Figures:
    metrics, totals, duration_s = benchmark.metrics, benchmark.metrics.request_totals, benchmark.duration or None
    output_tokens = round(metrics.output_token_count.successful.total_sum)
    return Figures(
        completed=totals.successful,
        failed=totals.errored,
        unfinished=totals.incomplete + benchmark.scheduler_state.lost,
        duration_s=duration_s,
        input_tokens=round(metrics.prompt_token_count.successful.total_sum),
        output_tokens=output_tokens,
        request_throughput=None if duration_s is None else totals.successful / duration_s,
        output_throughput=None if duration_s is None else output_tokens / duration_s,
        ttft_s=metrics.time_to_first_token_ms.successful.dist(1e-3),
        tpot_s=metrics.inter_token_latency_ms.successful.dist(1e-3),
        e2el_s=metrics.request_latency.successful.dist(1.0),
    )


def _rows(benchmark: Benchmark) -> list[tuple[End, OneRequest]]:
    held = benchmark.requests
    groups = ((End.COMPLETED, held.successful), (End.FAILED, held.errored), (End.CANCELLED, held.incomplete))
    return [(end, row) for end, rows in groups for row in rows or ()]


def _requests(benchmark: Benchmark, *, scheduled: bool) -> Requests | None:
    """None where the file holds a sample of them, or those of a warm-up too: then they are not who was measured."""
    rows, totals = _rows(benchmark), benchmark.metrics.request_totals
    ends = tuple(end for end, _ in rows)
    counts = tuple(map(ends.count, (End.COMPLETED, End.FAILED, End.CANCELLED)))
    if not rows or counts != (totals.successful, totals.errored, totals.incomplete):
        return None
    timings = [row.info.timings for _, row in rows]
    done = np.array([end is End.COMPLETED for end in ends])
    sent_s = column([t.request_start for t in timings])
    due_s = due_column([t.targeted_start if scheduled else None for t in timings])
    begun_s = np.where(np.isnan(due_s), sent_s, due_s)
    last_s = column([t.ended_s if t.last_token_iteration is None else t.last_token_iteration for t in timings])
    return Requests(
        ends=ends,
        due_s=due_s,
        sent_s=sent_s,
        ended_s=column([t.ended_s for t in timings]),
        ttft_s=column([t.first_token_iteration for t in timings]) - begun_s,
        e2el_s=np.where(done, last_s - begun_s, np.nan),
        input_tokens=column([row.prompt_tokens for _, row in rows]),
        output_tokens=column([row.output_tokens for _, row in rows]),
    )
