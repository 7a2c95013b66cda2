"""Policies that fail, for `test_vllm_scheduler.py`."""

from __future__ import annotations

import time
from dataclasses import replace

from sloguard.sched.fcfs import Fcfs
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View


class Raises(Fcfs):
    """Every third time."""

    def __init__(self) -> None:
        self.asked = 0

    def plan(self, now_s: float, view: View) -> Plan:
        self.asked += 1
        if self.asked % 3 == 0:
            raise RuntimeError("a bug of the policy")
        return super().plan(now_s, view)


class EvictsWhoWaits(Fcfs):
    def plan(self, now_s: float, view: View) -> Plan:
        plan = super().plan(now_s, view)
        return replace(plan, evict=(*plan.evict, *(job.id for job in view.waiting if job.id not in plan.admit)))


class GivesHalfTokens(Fcfs):
    def plan(self, now_s: float, view: View) -> Plan:
        plan = super().plan(now_s, view)
        return replace(plan, tokens={name: tokens / 2 for name, tokens in plan.tokens.items()})


class Slow(Fcfs):
    def plan(self, now_s: float, view: View) -> Plan:
        time.sleep(0.002)
        return super().plan(now_s, view)
