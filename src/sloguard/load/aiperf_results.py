"""Reads AIPerf's `profile_export_aiperf.json` and the `profile_export.jsonl` beside it (schema 1, against 0.13.0).

Its source: aiperf/metrics/types, metrics/derived_latency.py. Latencies count from when a worker sends; a request is due
when its rate limiter issues the credit for it. Its `inter_token_latency` is our TPOT and its `inter_chunk_latency` our
ITL. What was not measured is left out of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from sloguard.load.result_parts import Count, Outside, PositiveOrInf, Rate, checked, column, due_column, unreadable
from sloguard.load.run_figures import TOLD_GOODPUT, Figures, Requests, RunFigures, recomputed, run_figures
from sloguard.metrics import Dist
from sloguard.request import End
from sloguard.slo import StageSLO

TOOL = "aiperf"
RECORDS = "aiperf profile_export.jsonl"
SCHEMA = "1"
UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
LIMITS = {"time_to_first_token": "ttft_s", "inter_token_latency": "tpot_s", "request_latency": "e2el_s"}
RATED = ("constant", "poisson", "gamma")

NAMES = "its inter_token_latency is our TPOT, and its inter_chunk_latency our ITL"
DUE = "latencies count from when the rate limiter issued a request; AIPerf's own from when a worker sent it"
SENT = "latencies count from when a request was sent: the client's own lag is not in them"
AGGREGATES = "without the records beside it (profile_export.jsonl), so figures are the file's own, and its duration"
AGGREGATES += " begins before the first request"
MISMATCH = "the records beside it are of another run, and were left alone"
FAILED_ENDS = "when failed requests ended is not in the file, so the duration is the file's own"
INCOMPLETE = "AIPerf says that this run is not complete"
NO_CONFIG = "records alone: what was offered, and by which version, is not in them"


class Value(Outside):
    """A metric of a run (`avg` and percentiles), in `unit`."""

    unit: str
    avg: float | None = Field(default=None, ge=0, le=1e15)
    p50: float | None = Field(default=None, ge=0, le=1e15)
    p90: float | None = Field(default=None, ge=0, le=1e15)
    p95: float | None = Field(default=None, ge=0, le=1e15)
    p99: float | None = Field(default=None, ge=0, le=1e15)
    max: float | None = Field(default=None, ge=0, le=1e15)
    count: Count | None = None


class Phase(Outside):
    type: str
    kind: str | None = None
    name: str | None = None
    rate: Rate | None = None
    concurrency: Count | None = None
    smoothness: PositiveOrInf | None = None

    @property
    def measured(self) -> bool:
        return "warmup" not in (self.kind, self.name)


class Model(Outside):
    name: str


class Models(Outside):
    items: list[Model] = Field(default_factory=list[Model])


class InputConfig(Outside):
    models: Models = Models()
    phases: list[Phase] = Field(default_factory=list[Phase])
    slos: dict[str, float] | None = None


class Summary(Outside):
    aiperf_version: str | None = None
    input_config: InputConfig
    request_count: Value | None = None
    error_request_count: Value | None = None
    request_throughput: Value | None = None
    output_token_throughput: Value | None = None
    time_to_first_token: Value | None = None
    inter_token_latency: Value | None = None
    inter_chunk_latency: Value | None = None
    request_latency: Value | None = None
    credit_to_start_latency: Value | None = None
    benchmark_duration: Value | None = None
    total_isl: Value | None = None
    total_osl: Value | None = None
    good_request_count: Value | None = None
    was_cancelled: bool | None = None
    is_complete: bool | None = None


class Scalar(Outside):
    value: float | list[float]
    unit: str


class Metrics(Outside):
    time_to_first_token: Scalar | None = None
    request_latency: Scalar | None = None
    inter_chunk_latency: Scalar | None = None
    input_sequence_length: Scalar | None = None
    output_sequence_length: Scalar | None = None


class RecordMetadata(Outside):
    request_start_ns: int = Field(ge=0, le=10**20)
    credit_issued_ns: int | None = Field(default=None, ge=0, le=10**20)
    benchmark_phase: str | None = None
    was_cancelled: bool = False


class OneRecord(Outside):
    metadata: RecordMetadata
    metrics: Metrics
    error: dict[str, Any] | None = None

    @property
    def end(self) -> End:
        if self.error is not None:
            return End.FAILED
        return End.CANCELLED if self.metadata.was_cancelled else End.COMPLETED


def read_aiperf(path: str, documents: Sequence[Any], records: Sequence[Any] | None) -> list[RunFigures]:
    """`records`: the lines of the file beside it, None where there is none. Raises SpecError."""
    if len(documents) > 1:
        raise unreadable(path, f"holds {len(documents)} summaries of {TOOL} one after the other")
    schema = documents[0].get("schema_version")
    if not isinstance(schema, str) or schema.partition(".")[0] != SCHEMA:
        raise unreadable(path, f"is an {TOOL} summary of schema_version {schema!r}; 1.x is read")
    summary = checked(Summary, documents[0], path, TOOL)
    told = _told(path, summary)
    phase = next((phase for phase in summary.input_config.phases if phase.measured), None)
    rated = phase is not None and phase.type in RATED and phase.concurrency is None
    requests = None if records is None else _requests(path, _measured(path, records), due=rated)
    notes = [NAMES]
    if requests is not None and _counts(requests) != (told.completed, told.failed):
        requests, notes = None, [NAMES, MISMATCH]
    figures = told if requests is None else recomputed(requests, told)
    if requests is None:
        notes.append(AGGREGATES)
    elif figures.failed:
        notes.append(FAILED_ENDS)
    counts_from = "sent" if requests is None else requests.counts_from
    notes.append(DUE if counts_from == "due" else SENT)
    if summary.was_cancelled or summary.is_complete is False:
        notes.append(INCOMPLETE)
    good = _count(summary.good_request_count) if summary.input_config.slos else None
    if good is not None:
        notes.append(TOLD_GOODPUT)
    models = summary.input_config.models.items
    return [
        run_figures(
            figures,
            file=path,
            tool=TOOL,
            tool_version=summary.aiperf_version,
            model=", ".join(model.name for model in models) or None,
            strategy=None if phase is None else "concurrent" if phase.type == "concurrency" else phase.type,
            request_rate=None if phase is None else phase.rate,
            concurrency=None if phase is None else phase.concurrency,
            burstiness=None if phase is None else _burstiness(phase),
            counts_from=counts_from,
            slo=_slo(path, summary.input_config.slos),
            attainment=None if good is None or not told.offered else min(good / told.offered, 1.0),
            request_goodput=None if good is None or not figures.duration_s else good / figures.duration_s,
            told=told,
            requests=requests,
            notes=tuple(notes),
        )
    ]


def read_aiperf_records(path: str, documents: Sequence[Any]) -> list[RunFigures]:
    """The run that the records of `profile_export.jsonl` are of, without what was offered. Raises SpecError."""
    requests = _requests(path, _measured(path, documents), due=False)
    completed, failed = _counts(requests)
    none = Figures(completed=completed, failed=failed)
    about = {"file": path, "tool": TOOL, "tool_version": None, "model": None, "counts_from": "sent", "told": none}
    return [run_figures(recomputed(requests, none), **about, requests=requests, notes=(NO_CONFIG, NAMES, SENT))]


def _burstiness(phase: Phase) -> float | None:
    return {"constant": np.inf, "poisson": 1.0, "gamma": phase.smoothness}.get(phase.type)


def _slo(path: str, slos: dict[str, float] | None) -> StageSLO | None:
    """None where nothing was promised, or something that we have no name for."""
    if not slos or not slos.keys() <= LIMITS.keys():
        return None
    try:
        return StageSLO(**{LIMITS[name]: limit_ms / 1000 for name, limit_ms in slos.items()})
    except ValueError as error:
        raise unreadable(path, f"is of {TOOL}, but input_config.slos can't be kept: {error}") from error


def _told(path: str, summary: Summary) -> Figures:
    completed = _count(summary.request_count) or 0  # AIPerf leaves counts of nothing out
    nothing = completed == 0
    return Figures(
        completed=completed,
        failed=_count(summary.error_request_count) or 0,
        duration_s=_duration_s(path, summary, completed),
        input_tokens=0 if nothing else _count(summary.total_isl),
        output_tokens=0 if nothing else _count(summary.total_osl),
        request_throughput=0.0 if nothing else _average(summary.request_throughput),
        output_throughput=0.0 if nothing else _average(summary.output_token_throughput),
        ttft_s=Dist() if nothing else _dist(path, "time_to_first_token", summary.time_to_first_token),
        tpot_s=Dist() if nothing else _dist(path, "inter_token_latency", summary.inter_token_latency),
        itl_s=Dist() if nothing else _dist(path, "inter_chunk_latency", summary.inter_chunk_latency),
        e2el_s=Dist() if nothing else _dist(path, "request_latency", summary.request_latency),
        queue_delay_s=_dist(path, "credit_to_start_latency", summary.credit_to_start_latency),
    )


def _average(value: Value | None) -> float | None:
    return None if value is None else value.avg


def _count(value: Value | None) -> int | None:
    return None if value is None or value.avg is None else round(value.avg)


def _unit_s(path: str, name: str, unit: str) -> float:
    if unit not in UNITS_S:
        raise unreadable(path, f"is no {TOOL} file that can be read: {name} is in {unit!r}, which is no unit of time")
    return UNITS_S[unit]


def _duration_s(path: str, summary: Summary, completed: int) -> float | None:
    """What its rates are over: the whole phase in 0.13, which `benchmark_duration` is the part with answers of."""
    rate, whole = _average(summary.request_throughput), summary.benchmark_duration
    if completed and rate:
        return completed / rate
    return None if whole is None or not whole.avg else whole.avg * _unit_s(path, "benchmark_duration", whole.unit)


def _dist(path: str, name: str, value: Value | None) -> Dist | None:
    if value is None:
        return None
    unit_s = _unit_s(path, name, value.unit)
    figures = (value.avg, value.p50, value.p90, value.p95, value.p99, value.max)
    return Dist(value.count, *(None if figure is None else figure * unit_s for figure in figures))


def _measured(path: str, documents: Sequence[Any]) -> list[OneRecord]:
    """The records of the measured phase, checked."""
    numbered = enumerate(documents, start=1)
    records = [checked(OneRecord, document, path, RECORDS, f"line {number}") for number, document in numbered]
    measured = [record for record in records if record.metadata.benchmark_phase != "warmup"]
    if not measured:
        raise unreadable(path, f"has no records of {TOOL} beyond its warm-up")
    return measured


def _counts(requests: Requests) -> tuple[int, int]:
    return int(requests.ended(End.COMPLETED).sum()), int(requests.ended(End.FAILED).sum())


def _requests(path: str, records: Sequence[OneRecord], *, due: bool) -> Requests:
    """`due`: whether the instant of issue is when a request was due. The file has no end of a request that failed."""
    first_ns = min(record.metadata.request_start_ns for record in records)  # floats would lose a clock's last digits
    sent_s = np.array([(record.metadata.request_start_ns - first_ns) / 1e9 for record in records])
    issued_ns = [record.metadata.credit_issued_ns if due else None for record in records]
    due_s = due_column([None if issued is None else (issued - first_ns) / 1e9 for issued in issued_ns])
    begun_s = np.where(np.isnan(due_s), sent_s, due_s)
    done = np.array([record.end is End.COMPLETED for record in records])
    ttft_s = column([_scalar_s(path, record.metrics.time_to_first_token) for record in records])
    latency_s = column([_scalar_s(path, record.metrics.request_latency) for record in records])
    chunked = any(record.metrics.inter_chunk_latency is not None for record in records) or not done.any()
    return Requests(
        ends=tuple(record.end for record in records),
        due_s=due_s,
        sent_s=sent_s,
        ended_s=np.where(done, sent_s + latency_s, np.nan),
        ttft_s=ttft_s + (sent_s - begun_s),
        e2el_s=np.where(done, latency_s + (sent_s - begun_s), np.nan),
        input_tokens=column([_tokens(record.metrics.input_sequence_length) for record in records]),
        output_tokens=column([_tokens(record.metrics.output_sequence_length) for record in records]),
        itl_s=tuple(_gaps_s(path, record.metrics.inter_chunk_latency) for record in records) if chunked else None,
    )


def _tokens(scalar: Scalar | None) -> float | None:
    return None if scalar is None or isinstance(scalar.value, list) else scalar.value


def _scalar_s(path: str, scalar: Scalar | None) -> float | None:
    if scalar is None or isinstance(scalar.value, list):
        return None
    return scalar.value * _unit_s(path, "a latency", scalar.unit)


def _gaps_s(path: str, scalar: Scalar | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = scalar.value if scalar is not None and isinstance(scalar.value, list) else []
    unit_s = 1.0 if scalar is None else _unit_s(path, "inter_chunk_latency", scalar.unit)
    return np.array(values, dtype=np.float64) * unit_s
