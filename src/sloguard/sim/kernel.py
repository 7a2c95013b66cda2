"""Virtual time: a queue of things to do, done in order of their instant, and of their asking where instants tie."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]
FIRST = -(1 << 62)


class Kernel:
    """`now_s` moves only when `run` takes the next action."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._order, self._first_order = count(), count(FIRST)
        self._stopped = False

    @property
    def next_s(self) -> float:
        """When the next action is due; infinite where there is none."""
        return self._queue[0][0] if self._queue else float("inf")

    def at(self, time_s: float, action: Action, *, first: bool = False) -> None:
        """Does `action` at `time_s`, with `first` before all that is not. Raises ValueError for an instant that has
        passed.

        `first` is for what comes from outside, such as arrivals: they can be asked for one by one, as time goes on, and
        yet come before what the engines do at that instant, as if all had been asked for at the start.
        """
        if time_s < self.now_s:
            raise ValueError(f"{time_s} s has passed: it is {self.now_s} s")
        heapq.heappush(self._queue, (time_s, next(self._first_order if first else self._order), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self, until_s: float = float("inf")) -> None:
        """Until nothing is left to do, or nothing up to `until_s`, which `now_s` then is if it is finite; or until an
        action asks for a stop.
        """
        self._stopped = False
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()
            if self._stopped:
                return
        if until_s != float("inf"):
            self.now_s = until_s

    def stop(self) -> None:
        """Ends `run` after the action in progress. What was asked for stays in the queue."""
        self._stopped = True
