"""Reads what `sloguard bench --json` writes (report/bench.py). Its figures are ours already: taken as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sloguard.load.result_parts import (
    Count,
    Instant,
    Outside,
    PositiveOrInf,
    Rate,
    Seconds,
    checked,
    column,
    unreadable,
)
from sloguard.load.run_figures import CLIENT_LIMITED, Figures, Requests, RunFigures, run_figures
from sloguard.metrics import Dist
from sloguard.request import End
from sloguard.slo import StageSLO

TOOL = "sloguard bench"
SCHEMAS = (1,)


class OwnDist(Outside):
    n: Count
    mean: Seconds | None
    p50: Seconds | None
    p90: Seconds | None
    p95: Seconds | None
    p99: Seconds | None
    max: Seconds | None

    def dist(self) -> Dist:
        return Dist(**self.model_dump())


class OwnSettings(Outside):
    sloguard: str
    model: str
    workload: str | None = None
    request_rate: PositiveOrInf | Literal["inf"] | None = None
    burstiness: PositiveOrInf | Literal["inf"] | None = None
    slo: list[str] = Field(default_factory=list[str])
    slo_class: list[str] = Field(default_factory=list[str])
    promised: bool | None = None  # whether any request was; not in files of the first versions


class OwnSummary(Outside):
    offered: Count = Field(ge=1)
    completed: Count
    duration_s: Seconds = Field(gt=0)
    prompt_tokens: Count
    output_tokens: Count
    ttft_s: OwnDist
    tpot_s: OwnDist
    itl_s: OwnDist
    e2el_s: OwnDist
    queue_delay_s: OwnDist
    request_throughput: Rate
    output_throughput: Rate
    request_goodput: Rate
    attainment: float = Field(ge=0, le=1)
    tpot_rule: str
    client_limited: bool


class OwnRequest(Outside):
    due_s: Instant
    sent_s: Instant | None
    ttft_s: float | None = Field(ge=-1e9, le=1e9)
    e2el_s: float | None = Field(ge=-1e9, le=1e9)
    prompt_tokens: Count | None
    tokens: Count
    ended_s: Instant | None
    end: str


class OwnRun(Outside):
    settings: OwnSettings
    summary: OwnSummary
    requests: list[OwnRequest] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list[str])


def read_own(path: str, documents: Sequence[Any]) -> list[RunFigures]:
    """Raises SpecError."""
    return [_run(path, document) for document in documents]


def _run(path: str, document: dict[str, Any]) -> RunFigures:
    if document.get("schema") not in SCHEMAS:
        raise unreadable(path, f"is of {TOOL}, but of schema {document.get('schema')!r}, not 1")
    run = checked(OwnRun, document, path, TOOL)
    settings, summary = run.settings, run.summary
    rate = None if settings.request_rate is None else float(settings.request_rate)
    burstiness = None if settings.burstiness is None else float(settings.burstiness)
    notes = [CLIENT_LIMITED] if summary.client_limited else []
    if summary.tpot_rule != "mean":
        notes.append(f"a token pace is judged by the rule {summary.tpot_rule}")
    notes += run.notes
    told = Figures(
        completed=summary.completed,
        failed=summary.offered - summary.completed,
        duration_s=summary.duration_s,
        input_tokens=summary.prompt_tokens,
        output_tokens=summary.output_tokens,
        request_throughput=summary.request_throughput,
        output_throughput=summary.output_throughput,
        ttft_s=summary.ttft_s.dist(),
        tpot_s=summary.tpot_s.dist(),
        itl_s=summary.itl_s.dist(),
        e2el_s=summary.e2el_s.dist(),
        queue_delay_s=summary.queue_delay_s.dist(),
    )
    slos = bool(settings.slo or settings.slo_class)
    promised = slos if settings.promised is None else settings.promised
    return run_figures(
        told,
        file=path,
        tool=TOOL,
        tool_version=settings.sloguard,
        model=settings.model,
        strategy=_strategy(settings, rate, burstiness),
        request_rate=rate,
        burstiness=burstiness,
        counts_from="due",
        slo=_slo(path, settings),
        attainment=summary.attainment if promised else None,
        request_goodput=summary.request_goodput if promised else None,
        tpot_rule=summary.tpot_rule,
        told=told,
        requests=_requests(run.requests),
        notes=tuple(notes),
    )


def _strategy(settings: OwnSettings, rate: float | None, burstiness: float | None) -> str | None:
    if rate == np.inf:
        return "all at once"
    if burstiness is None:
        return None if settings.workload is None else PurePath(settings.workload).name
    return "constant" if burstiness == np.inf else "poisson" if burstiness == 1 else "gamma"


def _slo(path: str, settings: OwnSettings) -> StageSLO | None:
    """What every request was promised; None where that is nothing, or differs between classes."""
    if not settings.slo or settings.slo_class:
        return None
    limits: dict[str, float] = {}
    for limit in ",".join(settings.slo).split(","):
        metric, _, milliseconds = limit.partition("=")
        try:
            limits[f"{metric.strip()}_s"] = float(milliseconds) / 1000
        except ValueError:
            raise unreadable(path, f"is of {TOOL}, but settings.slo has {limit!r}") from None
    try:
        return StageSLO(**limits)
    except (TypeError, ValueError) as error:
        raise unreadable(path, f"is of {TOOL}, but settings.slo can't be kept: {error}") from error


def _requests(rows: Sequence[OwnRequest]) -> Requests:
    due_s = column([row.due_s for row in rows])
    ended_s = column([row.ended_s for row in rows])
    e2el_s = column([row.e2el_s for row in rows])
    return Requests(
        ends=tuple(End.COMPLETED if row.end == End.COMPLETED else End.FAILED for row in rows),
        due_s=due_s,
        sent_s=column([row.sent_s for row in rows]),
        ended_s=np.where(np.isnan(ended_s), due_s + np.nan_to_num(e2el_s), ended_s),
        ttft_s=column([row.ttft_s for row in rows]),
        e2el_s=e2el_s,
        input_tokens=column([row.prompt_tokens for row in rows]),
        output_tokens=column([row.tokens for row in rows]),
    )
