"""SLOs-Serve's router (arXiv 2504.08784, soft admission): ask one replica after another.

The i-th request starts at replica i mod N. A replica that can't promise its deadline declines, and the next is asked
with the deadline unchanged, up to N in all; the last one may serve it as best effort. Replicas whose policy never
declines are served in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from sloguard.route.base import ReplicaState, Route
from sloguard.sched.job import Job


class Sequential:
    """`tries` bounds how many replicas are asked; None: all."""

    def __init__(self, tries: int | None = None) -> None:
        if tries is not None and tries < 1:
            raise ValueError(f"at least one replica has to be tried, not {tries}")
        self._tries = tries
        self._next = 0

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        tries = min(self._tries or len(replicas), len(replicas))
        if tried:
            return Route((tried[0] + len(tried)) % len(replicas), max(0, tries - 1 - len(tried)))
        self._next += 1
        return Route((self._next - 1) % len(replicas), tries - 1)
