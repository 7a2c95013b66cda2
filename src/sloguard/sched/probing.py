"""The policy of a profile run: vLLM's order, with prompts cut into chunks of many sizes.

A scheduler with promises cuts prompts as it needs, so how long a small chunk deep in a long prompt takes must be
measured, not guessed from whole prompts. Every second prompt is left whole. The sizes are points of van der Corput's
sequence on a logarithmic scale, so that a few of them cover the range already.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from sloguard.sched.fcfs import Fcfs
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View

LEAST_CHUNK_TOKENS = 8


class Probing(Fcfs):
    def __init__(self) -> None:
        self._numbers = count()
        self._share = 1.0
        self._cutting = False

    def plan(self, now_s: float, view: View) -> Plan:
        limits = view.limits
        begun = any(not job.decoding for job in view.running)  # it is cut on as before
        if view.waiting and not begun:
            self._cutting = not self._cutting
            if self._cutting:
                self._share = van_der_corput(next(self._numbers))
        if not (self._cutting and limits.enable_chunked_prefill):
            return super().plan(now_s, view)
        most = limits.max_num_batched_tokens
        least = min(LEAST_CHUNK_TOKENS, most)
        chunk = round(least * (most / least) ** self._share)
        decodes = sum(job.decoding for job in view.running)
        budget = min(most, decodes + chunk)
        return super().plan(now_s, replace(view, limits=replace(limits, max_num_batched_tokens=budget)))


def van_der_corput(n: int) -> float:
    """The n-th of 0, 1/2, 1/4, 3/4, 1/8, ... in [0, 1)."""
    value, place = 0.0, 0.5
    while n:
        n, digit = divmod(n, 2)
        value += digit * place
        place /= 2
    return value
