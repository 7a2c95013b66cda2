"""A load test in figures, whoever measured it: by the definitions of docs/measuring.md as far as its file goes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sloguard.metrics import CLIENT_LAG_LIMIT_S, Dist
from sloguard.request import End
from sloguard.slo import NO_SLO, Judgement, StageSLO, TpotRule

CLIENT_LIMITED = "CLIENT-LIMITED: the client lagged, so the figures measure the client as much as the server"
EMULATES = "the server emulates"  # a GPU: what a note that says so begins with
TOLD_GOODPUT = "goodput and attainment are as the tool told them, by its own latencies"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """The requests of a run; arrays are [n >= 1], nan where the file doesn't tell.

    Instants are seconds from any common origin. Latencies count from `due_s`, or from `sent_s` where that is nan,
    which it is for all requests of a run or for none.
    `CANCELLED` is what the end of the run cut off. `itl_s` [n] holds the gaps between chunks of each, None where the
    file has none.
    """

    ends: tuple[End, ...]
    due_s: Floats
    sent_s: Floats
    ended_s: Floats
    ttft_s: Floats
    e2el_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    itl_s: tuple[Floats, ...] | None = None

    def ended(self, end: End) -> NDArray[np.bool_]:
        """[n] whether each ended so."""
        return np.array([one is end for one in self.ends])

    @property
    def counts_from(self) -> Literal["due", "sent"]:
        return "sent" if np.isnan(self.due_s).any() else "due"

    @property
    def begun_s(self) -> Floats:
        """[n] the instant that latencies count from."""
        return self.due_s if self.counts_from == "due" else self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """[n] mean time per output token after the first; nan below 2 tokens."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1, np.nan)
        return (self.e2el_s - self.ttft_s) / gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts, rates a second of `duration_s` and distributions over completed requests. None where unknown."""

    completed: int
    failed: int | None = None
    unfinished: int = 0  # cut off by the end of the run, or lost sight of: neither completed nor failed
    duration_s: float | None = None
    input_tokens: int | None = None  # of completed requests
    output_tokens: int | None = None
    request_throughput: float | None = None
    output_throughput: float | None = None
    ttft_s: Dist | None = None
    tpot_s: Dist | None = None
    itl_s: Dist | None = None
    e2el_s: Dist | None = None
    queue_delay_s: Dist | None = None

    @property
    def offered(self) -> int | None:
        return None if self.failed is None else self.completed + self.failed + self.unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures(Figures):
    """One load test: what was offered, and what came of it.

    `told` holds the figures as the tool itself says them. The others are computed again from `requests` where the file
    has them, and are `told` where it has not. `attainment` (met / judged) and `request_goodput` hold for `slo`; where
    `slo` is None and they are not, the file doesn't say what was promised.
    """

    file: str
    tool: str
    tool_version: str | None
    model: str | None
    strategy: str | None = None  # constant | poisson | gamma | concurrent | all at once | as the tool calls it
    request_rate: float | None = None  # a second; inf: all at once
    concurrency: int | None = None  # at most so many under way
    burstiness: float | None = None  # of gamma arrivals: 1 is Poisson, inf evenly spaced
    counts_from: Literal["due", "sent"]
    slo: StageSLO | None = None
    attainment: float | None = None
    request_goodput: float | None = None
    tpot_rule: str = TpotRule.MEAN  # by which `attainment` and `request_goodput` judge a pace
    told: Figures
    requests: Requests | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What was offered, in words, e.g. `Llama-3.1-8B, 4 req/s constant, at most 8 at once`."""
        rate = self.request_rate
        paced = [f"{rate:g} req/s"] if rate is not None and rate < np.inf else []
        if self.strategy is not None:
            paced.append(self.strategy)
        parts = [self.model.rstrip("/").rpartition("/")[2] if self.model else "", " ".join(paced)]
        parts.append("" if self.concurrency is None else f"at most {self.concurrency} at once")
        return ", ".join(part for part in parts if part)


def run_figures(figures: Figures, **about: Any) -> RunFigures:
    """`figures` with the fields that `RunFigures` adds, and a note where the client is known to have lagged."""
    run = RunFigures(**{f.name: getattr(figures, f.name) for f in fields(Figures)}, **about)
    lag_s = None if run.queue_delay_s is None else run.queue_delay_s.p99
    if (lag_s or 0.0) <= CLIENT_LAG_LIMIT_S or CLIENT_LIMITED in run.notes:
        return run
    return replace(run, notes=(CLIENT_LIMITED, *run.notes))


def recomputed(requests: Requests, told: Figures) -> Figures:
    """The figures of `requests` by our definitions; those of `told` where they don't tell.

    The duration is from the first request due to the last one over. It is the told one where an end is not known, for
    that request may have hung.
    """
    done = requests.ended(End.COMPLETED)
    duration_s = float(np.max(requests.ended_s) - np.min(requests.begun_s))  # nan where an instant is
    known_s = duration_s if duration_s > 0 else told.duration_s
    output_tokens = _total(requests.output_tokens[done], told.output_tokens)
    gaps = None if requests.itl_s is None else [gaps for gaps, ok in zip(requests.itl_s, done, strict=True) if ok]
    paceless = bool(np.all(requests.output_tokens[done] <= 1))
    return Figures(
        completed=int(done.sum()),
        failed=int(requests.ended(End.FAILED).sum()),
        unfinished=int(requests.ended(End.CANCELLED).sum()),
        duration_s=known_s,
        input_tokens=_total(requests.input_tokens[done], told.input_tokens),
        output_tokens=output_tokens,
        request_throughput=per_second(int(done.sum()), known_s),
        output_throughput=per_second(output_tokens, known_s),
        ttft_s=_dist(requests.ttft_s[done], told.ttft_s),
        tpot_s=Dist() if paceless else _dist(requests.tpot_s[done], told.tpot_s),
        itl_s=told.itl_s if gaps is None else Dist.of(np.concatenate([*gaps, np.empty(0)])),
        e2el_s=_dist(requests.e2el_s[done], told.e2el_s),
        queue_delay_s=_dist(requests.sent_s - requests.due_s, told.queue_delay_s),
    )


def per_second(count: float | None, duration_s: float | None) -> float | None:
    return None if count is None or not duration_s else count / duration_s


def _total(values: Floats, told: int | None) -> int | None:
    total = values.sum()
    return told if np.isnan(total) else int(total)


def _dist(values: Floats, told: Dist | None) -> Dist | None:
    """Of the values that are known; `told` where none of them is."""
    known = values[~np.isnan(values)]
    return told if len(values) and not len(known) else Dist.of(known)


def held_against(run: RunFigures, slo: StageSLO) -> RunFigures:
    """`run` with the share and rate of requests that kept `slo`, of each its mean TPOT; None where it can't be known.

    A failed request has missed. One that the end of the run cut off has missed what it had already broken; else it is
    left out of the share, for nobody knows. With nothing promised the run is as it was.
    """
    if slo == NO_SLO:
        return run
    met, judged = _kept(run, slo)
    attainment = None if met is None or not judged else met / judged
    goodput = None if attainment is None else per_second(met, run.duration_s)
    notes = tuple(note for note in run.notes if note != TOLD_GOODPUT)
    return replace(run, slo=slo, attainment=attainment, request_goodput=goodput, tpot_rule=TpotRule.MEAN, notes=notes)


def _kept(run: RunFigures, slo: StageSLO) -> tuple[int | None, int]:
    """Requests that kept `slo`, and those known to have kept or missed it. None where one that is over is unknown."""
    if run.requests is None:
        lost = run.completed == 0 and run.unfinished == 0
        return (0, run.failed or 0) if lost else (None, 0)
    if slo.ttft_slowdown is not None:
        return None, 0
    told = judgements(run.requests, slo)
    if any(one is Judgement.UNKNOWN and end is End.COMPLETED for one, end in zip(told, run.requests.ends, strict=True)):
        return None, 0
    met = told.count(Judgement.MET)
    return met, met + told.count(Judgement.MISSED)


def judgements(requests: Requests, slo: StageSLO) -> list[Judgement]:
    """Of each request [n], by its mean TPOT. What failed has missed, too; what the end of the run cut off is unknown,
    unless it had broken a limit already; so is what was completed where a figure is missing.
    """
    done, cut = requests.ended(End.COMPLETED), requests.ended(End.CANCELLED)
    pace_s = np.where(done & (requests.output_tokens <= 1), 0.0, requests.tpot_s)
    limits = ((requests.ttft_s, slo.ttft_s), (pace_s, slo.tpot_s), (requests.e2el_s, slo.e2el_s))
    held = [(values, limit) for values, limit in limits if limit is not None]
    none = np.zeros(len(done), dtype=np.bool_)
    broken = np.any([none, *(values > limit for values, limit in held)], axis=0)
    unseen = np.any([none, *(np.isnan(values) for values, _ in held)], axis=0)
    waited_s = requests.ended_s - requests.begun_s
    late = np.isnan(requests.ttft_s) & (waited_s > (slo.ttft_s or np.inf)) | (waited_s > (slo.e2el_s or np.inf))
    missed = np.where(cut, broken | late, broken | ~done)
    unknown = ~missed & (cut | unseen)
    return [
        Judgement.MISSED if bad else Judgement.UNKNOWN if unclear else Judgement.MET
        for bad, unclear in zip(missed.tolist(), unknown.tolist(), strict=True)
    ]
