"""What a trial is asked, and how its answer is measured.

FixedLoad        how does the engine do under the load that was given?  one load
CapacitySearch   what is the largest rate that keeps the contract?      a search within one start

    race      the first rate is about the one that the best config so far keeps: whoever fails there is dropped
    again     the first rate is the one that was found before; from there in strides, small ones first
    else      from the workload's own rate it doubles, or halves, until one passes and its neighbour does not
    narrow    the gap is halved (in ratio) until it is narrower than the tolerance
    stop      a load ends as soon as so many promises are broken that the rate has failed

The same arrivals (`Ask.turn`) are brought to every rate, so that configs differ by what they do and not by luck; the
prompts of each load are its own, so that no prefix cache has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Protocol

from sloguard.contract import Attained, Contract, Metric, Verdict, allowed_misses, judge_request
from sloguard.engine.base import Load, LoadPlan, Run, Served, once
from sloguard.metrics import Summary, summarise
from sloguard.request import End, Request, Stage, Timeline
from sloguard.sim.capacity import GROWTH, MOST_GROWTHS, Bracket, drained, narrow, widen
from sloguard.slo import Judgement
from sloguard.study.spec import LOAD_S
from sloguard.trial import Ask, Capacity, Leg

TOLERANCE = 0.05  # of a capacity: finer is below the noise of a run
TURNOVERS = 2.0  # a load outlasts so many promised answers: only then are as many under way as there will be
MOST_LEG = 8  # times the requests that were asked for
STRIDE = 1.1  # from a rate that is about right; the stride is squared each time
MOST_SHRINKS = 8  # below, no user would call it serving
UNDRAINED = 0.05  # the excess of a rate that missed nothing but left a backlog
HELD_OUT = 1_000_003  # what a turn adds to the seed of arrivals
ANOTHER_START = 500_009  # what measuring once more adds to the seed of a start, where arrivals are the same
LOADS = 64  # more than any search has, so that no two loads of a study share prompts


class Question(Protocol):
    """`plan` for each start anew; `measured` from what became of it."""

    def plan(self, ask: Ask) -> LoadPlan: ...

    def measured(self, ask: Ask, run: Run) -> tuple[Summary, Verdict, Capacity | None]: ...


@dataclass(frozen=True, slots=True)
class FixedLoad:
    """`requests` gives those of a seed."""

    requests: Callable[[int], Sequence[Request]]
    contract: Contract
    seed: int

    def plan(self, ask: Ask) -> LoadPlan:
        seed = arrivals_seed(self.seed, ask.turn)
        return once(self.requests(seed), seed + ask.again * ANOTHER_START)

    def measured(self, ask: Ask, run: Run) -> tuple[Summary, Verdict, Capacity | None]:
        return *_judged(run.timelines, self.contract), None


@dataclass(frozen=True, slots=True)
class CapacitySearch:
    """`requests` gives those of a rate [requests/s], a number and a seed. `near` is where a search begins that is given
    no rate; `count` the requests of a load, more where it would last less than `leg_s` or `turnovers` promises.
    """

    requests: Callable[[float, int, int], Sequence[Request]]
    contract: Contract
    seed: int
    near: float
    count: int
    tolerance: float = TOLERANCE
    leg_s: float = LOAD_S
    turnovers: float = TURNOVERS

    def plan(self, ask: Ask) -> LoadPlan:
        seed = arrivals_seed(self.seed, ask.turn)
        return LoadPlan(self._loads(ask, seed), seed + ask.again * ANOTHER_START)

    def _loads(self, ask: Ask, seed: int) -> Generator[Load, Sequence[Timeline], None]:
        asking = search_rates(ask, self.near, self.tolerance)
        rate, number = next(asking, None), 0
        promised_s = mean_promise_s(self.requests(self.near, self.count, seed), self.contract)
        leg_s = max(self.leg_s, self.turnovers * promised_s)
        while rate is not None:
            requests = self.requests(rate, leg_requests(rate, self.count, leg_s), seed)
            watch = _Watch(self.contract, len(requests))
            timelines = yield Load(requests, seed * LOADS + number, rate, watch.hopeless)
            number += 1
            try:
                rate = asking.send(self._leg(rate, timelines).passed)
            except StopIteration:
                rate = None

    def measured(self, ask: Ask, run: Run) -> tuple[Summary, Verdict, Capacity | None]:
        legs = [self._leg(_rate(one), one.timelines) for one in run.served]
        capacity = Capacity(tuple(legs), self.tolerance, ask.to_beat)
        told = capacity.low or capacity.high
        at = next(one for one in run.served if one.load.rate == told)
        return *_judged(at.timelines, self.contract), capacity

    def _leg(self, rate: float, timelines: Sequence[Timeline]) -> Leg:
        whole = not any(t.end is End.CANCELLED for t in timelines)
        steady = whole and drained(timelines)
        passed = steady and self.contract.judge(timelines).met
        ended = [t for t in timelines if t.end is not End.CANCELLED]
        attained = Attained(sum(_kept(t, self.contract) for t in ended), len(ended), target_of(self.contract))
        excess = attained.excess if steady or not whole else max(attained.excess, UNDRAINED)
        return Leg(rate, passed, attained.met, attained.offered, steady, excess)


def search_rates(ask: Ask, near: float, tolerance: float = TOLERANCE) -> Generator[float, bool, None]:
    """The rates of one search, in order; is sent whether each passed. Ends at once where the rate to beat fails."""
    known = ask.near if ask.to_beat is None else ask.to_beat
    if known is None:
        bracket = yield from widen(near, MOST_SHRINKS)
    elif (yield known):
        bracket = yield from _beyond(known)
    elif ask.to_beat is None:
        bracket = yield from _below(known)
    else:
        return
    yield from narrow(bracket, tolerance)


def _beyond(rate: float) -> Generator[float, bool, Bracket]:
    stride = STRIDE
    for _ in range(MOST_GROWTHS):
        if not (yield rate * stride):
            return Bracket(rate, rate * stride)
        rate, stride = rate * stride, min(stride * stride, GROWTH)
    return Bracket(rate, inf)


def _below(rate: float) -> Generator[float, bool, Bracket]:
    stride = STRIDE
    for _ in range(MOST_SHRINKS):
        if (yield rate / stride):
            return Bracket(rate / stride, rate)
        rate, stride = rate / stride, min(stride * stride, GROWTH)
    return Bracket(0.0, rate)


def leg_requests(rate: float, count: int, leg_s: float = LOAD_S) -> int:
    return min(max(count, ceil(rate * leg_s)), MOST_LEG * count)


def mean_promise_s(requests: Sequence[Request], contract: Contract) -> float:
    """How long an answer takes that is as late as it may be, on average; 0 where nothing bounds its pace."""

    def limit_s(own_s: float | None, *metrics: Metric) -> float:
        limits_s = [own_s, *(contract.tightest_s(metric) for metric in metrics)]
        return min((s for s in limits_s if s is not None), default=inf)

    def promised_s(stage: Stage) -> float:
        pace_s = limit_s(stage.slo.tpot_s, Metric.TPOT, Metric.ITL)
        first_s = limit_s(stage.slo.ttft_s, Metric.TTFT)
        paced_s = (first_s if first_s < inf else 0.0) + stage.output_tokens * pace_s
        return min(paced_s, limit_s(stage.slo.e2el_s, Metric.E2EL))

    total_s = sum(promised_s(stage) for request in requests for stage in request.stages)
    return total_s / len(requests) if total_s < inf else 0.0


def arrivals_seed(seed: int, turn: int) -> int:
    return seed + turn * HELD_OUT


def turn_of(arrivals: int, seed: int) -> int:
    """The turn whose `arrivals_seed` that is."""
    return (arrivals - seed) // HELD_OUT


def target_of(contract: Contract) -> float:
    """The share of requests that the contract wants kept, of population limits by their quantile."""
    shares = [limit.quantile / 100 for limit in contract.limits]
    return contract.attainment if contract.attainment is not None else max(shares, default=0.0)


def _rate(one: Served) -> float:
    assert one.load.rate is not None
    return one.load.rate


def _judged(timelines: Sequence[Timeline], contract: Contract) -> tuple[Summary, Verdict]:
    """Of the requests that ended by themselves: those of a load that was ended early are no loss of the engine's."""
    ended = [t for t in timelines if t.end is not End.CANCELLED] or timelines
    return summarise(ended, ttft_limit_s=contract.tightest_s(Metric.TTFT)), contract.judge(ended)


def _kept(timeline: Timeline, contract: Contract) -> bool:
    """Whether one request kept its own SLOs and, as far as one can break them, the limits on the population."""
    if judge_request(timeline) is not Judgement.MET:
        return False
    singly = (limit for limit in contract.limits if limit.metric is not Metric.ITL)
    return all((getattr(timeline, f"{limit.metric}_s") or 0.0) <= limit.limit_s for limit in singly)


@dataclass(slots=True)
class _Watch:
    """Counts, as requests end, what can't be made good any more."""

    contract: Contract
    offered: int
    missed: int = 0
    over: dict[int, int] = field(default_factory=dict[int, int])  # by the limit's position

    def hopeless(self, timeline: Timeline) -> bool:
        if self.contract.attainment is not None:
            self.missed += judge_request(timeline) is not Judgement.MET
            if self.missed > allowed_misses(self.offered, self.contract.attainment):
                return True
        for at, limit in enumerate(self.contract.limits):
            if limit.metric is not Metric.ITL and self._breaks(timeline, limit.metric, limit.limit_s):
                self.over[at] = self.over.get(at, 0) + 1
                # One more than the percentile leaves out: it interpolates to the next one inside.
                if self.over[at] > allowed_misses(self.offered, limit.quantile / 100) + 1:
                    return True
        return False

    @staticmethod
    def _breaks(timeline: Timeline, metric: Metric, limit_s: float) -> bool:
        value_s = getattr(timeline, f"{metric}_s") if timeline.end is End.COMPLETED else inf
        return value_s is not None and value_s > limit_s
