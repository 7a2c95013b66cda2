"""Virtual time: a queue of things to do, done in order of their instant, and of their asking where instants tie."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Kernel:
    """`now_s` moves only when `run` takes the next action."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._order = count()

    def at(self, time_s: float, action: Action) -> None:
        """Does `action` at `time_s`. Raises ValueError for an instant that has passed."""
        if time_s < self.now_s:
            raise ValueError(f"{time_s} s has passed: it is {self.now_s} s")
        heapq.heappush(self._queue, (time_s, next(self._order), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self, until_s: float = float("inf")) -> None:
        """Until nothing is left to do, or nothing up to `until_s`, which `now_s` then is if it is finite."""
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()
        if until_s != float("inf"):
            self.now_s = until_s
