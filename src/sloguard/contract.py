"""One contract judges the simulator's timelines and the wire's alike.

Two kinds of promise, never mixed: a per-request SLO (`StageSLO`) is held against one request (`judge_request`);
a population limit such as p99(TTFT) <= 500 ms is held against a whole run (`Contract.judge`). A contract may ask for
both: a share of requests that keep every SLO of their own, and limits on the population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sloguard.request import End, Timeline, mean_tpot_s
from sloguard.slo import Judgement, StageSLO, TpotRule, worst

DEADLINE_CHECK_TOKENS = 10  # SLOs-Serve checks the cumulative deadline every 10 tokens ...
DEADLINE_TOLERANCE = 1.05  # ... and allows 5 % beyond it


class Metric(StrEnum):
    TTFT = "ttft"
    TPOT = "tpot"
    ITL = "itl"
    E2EL = "e2el"


PACES = (Metric.TPOT, Metric.ITL)  # of tokens after the first


def samples_s(timelines: Sequence[Timeline], metric: Metric) -> NDArray[np.float64]:
    """[n] the metric over completed requests (over all gaps of all of them for ITL), in seconds."""
    done = [t for t in timelines if t.end is End.COMPLETED]
    if metric is Metric.ITL:
        return np.concatenate([t.itl_s for t in done]) if done else np.empty(0)
    values = [getattr(t, f"{metric}_s") for t in done]
    return np.array([v for v in values if v is not None], dtype=np.float64)


def percentile(sorted_values: NDArray[np.float64], q: float) -> float:
    """Linear-interpolated percentile (0 <= q <= 100) of sorted values [n >= 1]; infinite values are allowed."""
    return _at(sorted_values, (len(sorted_values) - 1) * q / 100)


def _at(sorted_values: NDArray[np.float64], position: float) -> float:
    low = int(position)
    weight = position - low
    below, above = float(sorted_values[low]), float(sorted_values[min(low + 1, len(sorted_values) - 1)])
    return below if weight == 0 or below == above else below + weight * (above - below)  # inf - inf would be nan


@dataclass(frozen=True, slots=True)
class Limit:
    """A population limit: the `quantile`-th percentile of `metric` over the run stays at or below `limit_s`."""

    metric: Metric
    quantile: float
    limit_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.quantile <= 100 and 0 < self.limit_s < np.inf):
            raise ValueError(f"a limit needs a quantile of 0 to 100 and a positive number of seconds, not {self}")

    def __str__(self) -> str:
        return f"p{self.quantile:g}({self.metric.upper()}) <= {self.limit_s * 1000:g} ms"

    def measure(self, timelines: Sequence[Timeline]) -> float | None:
        """The percentile in seconds; None where nothing could be measured.

        A request that did not complete counts as infinitely late, so that a server can't pass by dropping work. For
        ITL it counts once for each gap it should have had, or lost requests would vanish among thousands of gaps.

        An answer of one token has no pace, and meets TPOT and ITL limits by definition. It tells nothing of the pace
        of others, so it leaves the measured values as they are; but it was served, so it counts against the share
        that was lost. Where no answer is longer the pace is 0.
        """
        done = [t for t in timelines if t.end is End.COMPLETED]
        lost = sum(self._samples_of(t) for t in timelines if t.end is not End.COMPLETED)
        values = np.sort(samples_s(done, self.metric))
        paceless = sum(t.output_tokens == 1 for t in done) if self.metric in PACES else 0
        if not len(values) and paceless == len(done):
            values, paceless = np.zeros(paceless), 0
        if not len(values):
            return float("inf") if lost else None
        served = len(values) + paceless
        position = (served + lost - 1) * self.quantile / 100
        if position > served - 1:
            return float("inf")
        return _at(values, position * ((len(values) - 1) / max(served - 1, 1)))

    def _samples_of(self, timeline: Timeline) -> int:
        """How many samples a request gives when it completes."""
        return max(1, timeline.request.output_tokens - 1) if self.metric is Metric.ITL else 1


@dataclass(frozen=True, slots=True)
class Check:
    """One limit held against one run. `measured_s` is None where nothing was measured, inf where requests were lost."""

    limit: Limit
    measured_s: float | None
    judgement: Judgement

    @property
    def excess(self) -> float:
        """log(measured / limit): dimensionless, <= 0 when met, inf when unknown or lost."""
        if self.measured_s is None or self.measured_s == np.inf:
            return float("inf")
        return float(np.log(max(self.measured_s, 1e-9) / self.limit.limit_s))


@dataclass(frozen=True, slots=True)
class Attained:
    """How many requests of a run kept every promise of their own, and the share of them (`target`) that has to."""

    met: int
    offered: int
    target: float

    @property
    def share(self) -> float:
        return self.met / self.offered if self.offered else 0.0

    @property
    def judgement(self) -> Judgement:
        return (
            Judgement.MET if self.offered - self.met <= allowed_misses(self.offered, self.target) else Judgement.MISSED
        )

    @property
    def excess(self) -> float:
        """log(share that missed / share that may miss): dimensionless. Half a request stands for none."""
        least = 0.5 / max(self.offered, 1)
        return float(np.log(max(1 - self.share, least) / max(1 - self.target, least)))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence (Wilson 1927): requests of one run are not independent, so it is
        narrower than the truth under bursts.
        """
        n, z = max(self.offered, 1), 1.96
        centre = (self.share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * float(np.sqrt(self.share * (1 - self.share) / n + z * z / (4 * n * n)))
        return max(0.0, centre - half), min(1.0, centre + half)


def allowed_misses(requests: int, target: float) -> int:
    """How many of `requests` may miss at most. The slack keeps 0.1 * 300 from being 29 in binary."""
    return int((1 - target) * requests + 1e-9)


@dataclass(frozen=True, slots=True)
class Verdict:
    checks: tuple[Check, ...]
    completed: int
    attained: Attained | None = None

    @property
    def judgement(self) -> Judgement:
        served = Judgement.MET if self.completed else Judgement.UNKNOWN
        kept = [self.attained.judgement] if self.attained else []
        return worst([served, *kept, *(check.judgement for check in self.checks)])

    @property
    def met(self) -> bool:
        return self.judgement is Judgement.MET

    @property
    def binding(self) -> Check | None:
        """The check with the least room."""
        return max(self.checks, key=lambda check: check.excess, default=None)


@dataclass(frozen=True, slots=True)
class Contract:
    """What a whole run must keep: the limits, and, where `attainment` is given, so large a share of requests keeps all
    SLOs of its own. Without either it is met by any run in which at least one request completed.
    """

    limits: tuple[Limit, ...] = ()
    attainment: float | None = None

    def tightest_s(self, metric: Metric) -> float | None:
        """The smallest limit on `metric`, None where there is none."""
        return min((limit.limit_s for limit in self.limits if limit.metric is metric), default=None)

    def judge(self, timelines: Sequence[Timeline]) -> Verdict:
        checks = tuple(self._check(limit, timelines) for limit in self.limits)
        completed = sum(t.end is End.COMPLETED for t in timelines)
        if self.attainment is None:
            return Verdict(checks, completed)
        met = sum(judge_request(t) is Judgement.MET for t in timelines)
        return Verdict(checks, completed, Attained(met, len(timelines), self.attainment))

    @staticmethod
    def _check(limit: Limit, timelines: Sequence[Timeline]) -> Check:
        measured_s = limit.measure(timelines)
        if measured_s is None:
            return Check(limit, None, Judgement.UNKNOWN)
        return Check(limit, measured_s, Judgement.MET if measured_s <= limit.limit_s else Judgement.MISSED)


def judge_request(timeline: Timeline, rule: TpotRule = TpotRule.MEAN) -> Judgement:
    """Holds every stage of one request against its own SLO.

    A request that did not complete has missed. One whose tokens are fewer than its stages is unknown.
    """
    if timeline.end is not End.COMPLETED:
        return Judgement.MISSED
    stages = timeline.request.stages
    dues = timeline.stage_due_s or (timeline.due_s,)
    if len(dues) != len(stages) or not timeline.output_tokens:
        return Judgement.UNKNOWN
    found: list[Judgement] = []
    start = 0
    for index, (stage, due_s) in enumerate(zip(stages, dues, strict=True)):
        last = index == len(stages) - 1
        end = timeline.output_tokens if last else start + stage.output_tokens
        found.append(_judge_stage(stage.slo, due_s, timeline.token_s[start:end], rule))
        start = end
    return worst(found)


def _judge_stage(slo: StageSLO, due_s: float, token_s: NDArray[np.float64], rule: TpotRule) -> Judgement:
    if not len(token_s) or slo.ttft_slowdown is not None:
        return Judgement.UNKNOWN
    if slo.ttft_s is not None and token_s[0] - due_s > slo.ttft_s:
        return Judgement.MISSED
    if slo.e2el_s is not None and token_s[-1] - due_s > slo.e2el_s:
        return Judgement.MISSED
    if slo.tpot_s is not None and not _keeps_pace(token_s, due_s, slo, rule):
        return Judgement.MISSED
    return Judgement.MET


def _keeps_pace(token_s: NDArray[np.float64], due_s: float, slo: StageSLO, rule: TpotRule) -> bool:
    """Whether tokens [n] kept the stage's TPOT; a single token has no pace to miss."""
    assert slo.tpot_s is not None
    if len(token_s) < 2:
        return True
    if rule is TpotRule.MEAN:
        return (mean_tpot_s(token_s) or 0.0) <= slo.tpot_s
    if rule is TpotRule.MAX_GAP:
        return float(np.max(np.diff(token_s))) <= slo.tpot_s
    start_s = max(due_s + (slo.ttft_s or 0.0), float(token_s[0]))
    k = np.arange(DEADLINE_CHECK_TOKENS, len(token_s), DEADLINE_CHECK_TOKENS)
    k = np.append(k, len(token_s) - 1)
    return bool(np.all(token_s[k] - start_s <= k * slo.tpot_s * DEADLINE_TOLERANCE))
