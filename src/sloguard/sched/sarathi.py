"""Sarathi-Serve (arXiv 2403.02310): decodes first, then prompts in chunks, never more than C tokens a batch.

    chunk = min(tokens the prompt has left, C - tokens placed)

running prompts before waiting ones, both first come, first served. C is 512 in `Sarathi`; in `SarathiSlo` the largest
batch that keeps the tightest TPOT promised to any job here: T(decodes and C - decodes prompt tokens) <= TPOT.

C bounds prompts only: decodes all run, and without chunked prefill a prompt is taken whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from sloguard.sched.job import Job
from sloguard.sched.placing import FOREVER_S, Placing, last_admitted, whole_tokens
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View

CHUNK_TOKENS = 512
LEAST_CHUNK_TOKENS = 128  # a tile of the GPU's matrix units (paper, 4.3): fewer take as long, and prompts must go on


class Sarathi:
    """C = `chunk_tokens`, or the TPOT's where that is None."""

    def __init__(self, chunk_tokens: int | None = CHUNK_TOKENS) -> None:
        self.chunk_tokens = whole_tokens("chunk_tokens", chunk_tokens)

    def plan(self, now_s: float, view: View) -> Plan:
        placing = Placing(view, self._victim)
        placing.decode(placing.decodes)
        holds_until_s = FOREVER_S
        if placing.prompts or (view.waiting and placing.seats > 0 and not placing.evicted):
            chunk = self.chunk_tokens or _tpot_chunk(placing)
            placing.limit(chunk - len(placing.tokens))
            if placing.budget > 0:
                placing.fill(self._order(placing))
            if self.chunk_tokens is None and not view.limits.scheduler_reserve_full_isl:
                holds_until_s = now_s  # C shrinks as the KV grows, and a smaller chunk may fit the memory that is left
        return placing.plan(holds_until_s=holds_until_s)

    def _order(self, placing: Placing) -> Iterable[Job]:
        """Of prompts, running and waiting."""
        return chain(placing.prompts, placing.view.waiting)

    def _victim(self, running: Sequence[Job]) -> int:
        """Whose memory goes to the others, by index."""
        return last_admitted(running)


class SarathiSlo(Sarathi):
    """C from the tightest TPOT; 512 where no job was promised any."""

    def __init__(self) -> None:
        super().__init__(chunk_tokens=None)


def _tpot_chunk(placing: Placing) -> int:
    view = placing.view
    paces_s = [job.tpot_s for job in chain(view.running, view.waiting) if job.tpot_s is not None]
    if not paces_s:
        return CHUNK_TOKENS
    decodes = placing.decodes
    kv_tokens = sum([job.computed_tokens for job in decodes]) + len(decodes)
    context = placing.prompts[0].computed_tokens if placing.prompts else 0
    beside = view.time.inverse(min(paces_s), decodes=len(decodes), kv_tokens=kv_tokens, context_tokens=context)
    return max(LEAST_CHUNK_TOKENS, len(decodes) + beside)
