"""Priorities, as vLLM v1 schedules with `--scheduling-policy priority` (scheduler.py and request_queue.py, 0.32).

Everything is as in `fcfs`, but for two orders. A smaller `Job.priority` comes first.

waiting    by (priority, arrival, id); an evicted job takes its own place among them, not the front
victim     the running job with the greatest (priority, arrival), of equals the one that was admitted first. It may
           have got its tokens in this step already: they go back to the budget
empty      where the first job in line is itself the victim, vLLM's step computes nothing and the next follows at
           once: one plan here, in which the victim may be admitted again

Running jobs keep the order of their admission, and nobody is evicted to admit someone who matters more.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View


class Priority(Fcfs):
    """vLLM's priority policy."""

    def plan(self, now_s: float, view: View) -> Plan:
        made = super().plan(now_s, view)
        if made.tokens or not made.evict:
            return made
        evicted = [job for job in view.running if job.id in made.evict]
        running = [job for job in view.running if job.id not in made.evict]
        after = self.plan(now_s, replace(view, running=running, waiting=[*view.waiting, *evicted]))
        return replace(after, evict=made.evict + after.evict, holds_until_s=now_s)

    def _queue(self, waiting: Collection[Job]) -> Iterable[Job]:
        # Few of many are admitted in a step: a heap orders no more of them than are looked at.
        heap = [(job.priority, job.arrival_s, job.id, job) for job in waiting]
        heapq.heapify(heap)
        while heap:
            yield heapq.heappop(heap)[3]

    def _victim(self, running: Sequence[Job]) -> int:
        return max(range(len(running)), key=lambda i: (running[i].priority, running[i].arrival_s))
