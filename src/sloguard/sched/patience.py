"""How long a batch may keep whoever comes during it waiting.

A job that comes when a batch has just begun waits for all of it, and then needs a batch of its own. So no batch takes
longer than a part of the TTFT that is usually asked for; nor is it so short that it holds little but its decodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from statistics import median_high

from sloguard.perf.batch_time import Batch, StepTime
from sloguard.sched.job import Job

SHARE = 0.3  # of the median TTFT asked for: it raised capacity where prompts are short, and cost none elsewhere
LATEST = 63
LEAST_STEPS = 2.0
LEAST_CHUNK_TOKENS = 16  # a smaller piece of a prompt is not worth its place in a batch


class Patience:
    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._ttfts_s: deque[float] = deque(maxlen=LATEST)

    def see(self, new: Iterable[Job]) -> None:
        """Jobs that have come since the last batch."""
        self._ttfts_s.extend(job.ttft_s for job in new if job.ttft_s)

    def longest_s(self, time: StepTime, decodes: int, kv_tokens: int) -> float:
        """Of a batch beside these decodes."""
        if not self._ttfts_s:
            return inf
        step_s = time.seconds(Batch(((LEAST_CHUNK_TOKENS, 0),), decodes, kv_tokens))
        return max(self._share * median_high(self._ttfts_s), LEAST_STEPS * step_s)
