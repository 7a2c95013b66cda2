"""What a run measured, by the definitions of docs/measuring.md (those of `vllm bench serve` where it has one)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sloguard.contract import Metric, judge_request, percentile, samples_s
from sloguard.request import End, Timeline
from sloguard.slo import Judgement, TpotRule

CLIENT_LAG_LIMIT_S = 0.005  # a p99 lag of sending beyond 5 ms ...
CLIENT_LAG_SHARE = 0.05  # ... or 5 % of the tightest TTFT SLO marks the run as client-limited
DISTS = ("ttft_s", "tpot_s", "itl_s", "e2el_s", "queue_delay_s")  # the fields of a summary that are distributions


@dataclass(frozen=True, slots=True)
class Dist:
    """Figures of a sample, in seconds. All None where nothing was measured; each where another tool's file lacks it."""

    n: int | None = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @staticmethod
    def of(values: NDArray[np.float64]) -> Dist:
        if not len(values):
            return Dist()
        v = np.sort(values)
        p50, p90, p95, p99 = (percentile(v, q) for q in (50, 90, 95, 99))
        return Dist(len(v), float(v.mean()), p50, p90, p95, p99, float(v[-1]))


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in figures. Rates are per second of `duration_s`; distributions are over completed requests."""

    offered: int
    completed: int
    met: int
    ends: dict[str, int]
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: Dist
    tpot_s: Dist
    itl_s: Dist
    e2el_s: Dist
    queue_delay_s: Dist
    request_throughput: float  # completed requests / s
    output_throughput: float  # output tokens of completed requests / s
    request_goodput: float  # requests that met every one of their SLOs / s
    token_goodput: float  # output tokens of those requests / s
    attainment: float  # met / offered
    attainment_admitted: float | None  # met / (offered - refused)
    tpot_rule: str
    client_limited: bool
    by_class: dict[str, ClassSummary] = field(default_factory=dict[str, "ClassSummary"])
    errors: dict[str, int] = field(default_factory=dict[str, int])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Summary:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where `data` is not such a record."""
        by_class: dict[str, dict[str, Any]] = dict(data["by_class"])
        read: dict[str, Any] = {name: Dist(**data[name]) for name in DISTS}
        read["by_class"] = {name: ClassSummary.from_json(dict(one)) for name, one in by_class.items()}
        return Summary(**{**data, **read})


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """The same for the requests of one SLO class."""

    offered: int
    completed: int
    met: int
    attainment: float
    ttft_s: Dist
    tpot_s: Dist

    @staticmethod
    def from_json(data: dict[str, Any]) -> ClassSummary:
        read: dict[str, Any] = {name: Dist(**data[name]) for name in ("ttft_s", "tpot_s")}
        return ClassSummary(**{**data, **read})


def summarise(
    timelines: Sequence[Timeline], rule: TpotRule = TpotRule.MEAN, ttft_limit_s: float | None = None
) -> Summary:
    """Figures of a run with at least one offered request. Raises ValueError for an empty run.

    `ttft_limit_s` is the tightest TTFT that the whole run was promised (a contract's): like the requests' own SLOs it
    says how much lag of the client is too much.
    """
    if not timelines:
        raise ValueError("nothing was offered, so there is nothing to summarise")
    done = [t for t in timelines if t.end is End.COMPLETED]
    good = [t for t in done if judge_request(t, rule) is Judgement.MET]
    ends = Counter(t.end.value for t in timelines)
    duration_s = _duration_s(timelines)
    output_tokens = sum(t.output_tokens for t in done)
    admitted = len(timelines) - ends[End.REFUSED]
    lags = np.array([t.queue_delay_s for t in timelines if t.queue_delay_s is not None], dtype=np.float64)
    queue_delay = Dist.of(lags)
    return Summary(
        offered=len(timelines),
        completed=len(done),
        met=len(good),
        ends=dict(ends),
        duration_s=duration_s,
        prompt_tokens=sum(t.request.prompt_tokens if t.prompt_tokens is None else t.prompt_tokens for t in done),
        output_tokens=output_tokens,
        **{f"{m}_s": Dist.of(samples_s(timelines, m)) for m in Metric},
        queue_delay_s=queue_delay,
        request_throughput=len(done) / duration_s,
        output_throughput=output_tokens / duration_s,
        request_goodput=len(good) / duration_s,
        token_goodput=sum(t.output_tokens for t in good) / duration_s,
        attainment=len(good) / len(timelines),
        attainment_admitted=len(good) / admitted if admitted else None,
        tpot_rule=rule.value,
        client_limited=(queue_delay.p99 or 0.0) > _lag_limit_s(timelines, ttft_limit_s),
        by_class={c: _of_class([t for t in timelines if t.request.slo_class == c], rule) for c in _classes(timelines)},
        errors=dict(Counter(t.error for t in timelines if t.error)),
    )


def _of_class(timelines: Sequence[Timeline], rule: TpotRule) -> ClassSummary:
    met = sum(judge_request(t, rule) is Judgement.MET for t in timelines)
    return ClassSummary(
        offered=len(timelines),
        completed=sum(t.end is End.COMPLETED for t in timelines),
        met=met,
        attainment=met / len(timelines),
        ttft_s=Dist.of(samples_s(timelines, Metric.TTFT)),
        tpot_s=Dist.of(samples_s(timelines, Metric.TPOT)),
    )


def _classes(timelines: Sequence[Timeline]) -> list[str]:
    return sorted({t.request.slo_class for t in timelines})


def _duration_s(timelines: Sequence[Timeline]) -> float:
    """From the first due instant to the end of the last request; never zero.

    The time that lost requests hung is part of it, and so are the due instants of requests that were never sent: a
    rate is not raised by losing work.
    """
    return max(max(t.last_s, t.due_s) for t in timelines) - min(t.due_s for t in timelines) or 1e-9


def _lag_limit_s(timelines: Sequence[Timeline], ttft_limit_s: float | None) -> float:
    """The lag beyond which the client, not the server, is what was measured."""
    promises = [ttft_limit_s, *(stage.slo.ttft_s for t in timelines for stage in t.request.stages)]
    return min([CLIENT_LAG_LIMIT_S, *(CLIENT_LAG_SHARE * ttft_s for ttft_s in promises if ttft_s is not None)])
