"""Capacity: the largest request rate at which enough requests keep their promises and no backlog builds up.

A rate passes when, over all seeds,

    attainment   the mean share of requests that met every one of their SLOs is at least the target, and
    drained      every run's backlog drains: the last first token comes less than 20 s after the last arrival.

First tokens, not last ones: a long answer takes longer than 20 s to write on an idle engine, so the end of the last
answer says nothing about a backlog; work that queues shows in when it starts.

The search multiplies the rate until one passes and the next does not, then halves the gap (in ratio) until it is
narrower than the tolerance. It asks, and is told, as a generator does, so it needs no clock, no processes and no disk:
whoever drives it may answer from a record.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import inf, sqrt

from sloguard.contract import judge_request
from sloguard.request import Timeline
from sloguard.slo import Judgement, TpotRule

DRAIN_S = 20.0
TARGET = 0.9
TOLERANCE = 0.03
GROWTH = 2.0  # of the rate from one probe to the next, until one passes and its neighbour does not
MOST_GROWTHS = 12  # a factor of 4096 on either side of the first guess: beyond it there is no such rate


@dataclass(frozen=True, slots=True)
class Bracket:
    """`low` passed (0: no rate that was tried did), `high` did not (inf: every rate that was tried passed)."""

    low: float
    high: float

    @property
    def found(self) -> bool:
        return self.low > 0 and self.high < inf


def search(
    guess: float, *, rates: tuple[float, float] | None = None, tolerance: float = TOLERANCE
) -> Generator[float, bool, Bracket]:
    """Yields rates to try and is sent whether each passed; returns the bracket it ended on.

    `rates` are the least and the greatest rate to look at; without them the search widens from `guess`.
    """
    bracket = yield from (widen(guess) if rates is None else _within(*rates))
    return (yield from narrow(bracket, tolerance))


def narrow(bracket: Bracket, tolerance: float) -> Generator[float, bool, Bracket]:
    """Halves the gap (in ratio) until `high <= low * (1 + tolerance)`."""
    while bracket.found and bracket.high > bracket.low * (1 + tolerance):
        middle = sqrt(bracket.low * bracket.high)
        bracket = Bracket(middle, bracket.high) if (yield middle) else Bracket(bracket.low, middle)
    return bracket


def widen(guess: float, shrinks: int = MOST_GROWTHS) -> Generator[float, bool, Bracket]:
    """Doubles the rate, or halves it at most `shrinks` times, until one passes and its neighbour does not."""
    rate = guess
    if (yield rate):
        for _ in range(MOST_GROWTHS):
            rate *= GROWTH
            if not (yield rate):
                return Bracket(rate / GROWTH, rate)
        return Bracket(rate, inf)
    for _ in range(shrinks):
        rate /= GROWTH
        if (yield rate):
            return Bracket(rate, rate * GROWTH)
    return Bracket(0.0, rate)


def _within(least: float, greatest: float) -> Generator[float, bool, Bracket]:
    if not (yield least):
        return Bracket(0.0, least)
    return Bracket(greatest, inf) if (yield greatest) else Bracket(least, greatest)


def drained(timelines: Sequence[Timeline]) -> bool:
    """Whether every request's first token came less than `DRAIN_S` after the last arrival."""
    last_s = max(t.due_s for t in timelines)
    return all(len(t.token_s) and float(t.token_s[0]) < last_s + DRAIN_S for t in timelines)


class Misses:
    """Counts requests that missed a promise, and says when there are too many for the target to be reached.

    `allowed` is what is left of (1 - target) of all requests of all seeds, so that stopping loses nothing: whatever the
    requests still out may do, the rate has failed.
    """

    def __init__(self, allowed: int, rule: TpotRule) -> None:
        self.allowed, self.rule = allowed, rule
        self.missed = 0

    def stop(self, timeline: Timeline) -> bool:
        """Told of each request as it ends; True once the run can be ended."""
        self.missed += judge_request(timeline, self.rule) is not Judgement.MET
        return self.missed > self.allowed
