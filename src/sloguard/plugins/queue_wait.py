"""How long whoever joins the queue would wait, by what the queue has been doing (Little's law).

Requests start as fast as the engine can only while some wait: before there was a queue they started as they came.
So a queue is measured from where it began, over WINDOW_S at most.
"""

from __future__ import annotations

from collections import deque
from math import inf

from sloguard.plugins.board import Notice

WINDOW_S = 30.0
LOOK_EVERY_S = 0.5
FEWEST_WAITING = 16  # a shorter queue is no queue: a burst that has just come


class QueueWait:
    """Fed with notices as time goes by. Waits in seconds; inf where nothing has started for a whole window."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # when, and how many had started by then
        self._waiting = self._started = 0

    def see(self, now_s: float, notice: Notice) -> None:
        self._waiting, self._started = notice.waiting_slo + notice.waiting_best_effort, notice.started
        if self._waiting < FEWEST_WAITING:
            self._seen.clear()
        if not self._seen or now_s - self._seen[-1][0] >= LOOK_EVERY_S:
            self._seen.append((now_s, notice.started))
        while now_s - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    def wait_s(self, now_s: float) -> float:
        """Of the last in the queue. 0 while too little is known."""
        if not self._seen:
            return 0.0
        first_s, before = self._seen[0]
        took_s, started = now_s - first_s, self._started - before
        if self._waiting < FEWEST_WAITING or took_s < 2 * LOOK_EVERY_S:
            return 0.0
        if started <= 0:
            return inf if took_s > 0.9 * WINDOW_S else 0.0
        return self._waiting * took_s / started
