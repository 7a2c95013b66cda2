"""Scorpio (arXiv 2505.23022): turn away who can't make it, and let slow promises decode less often.

    order     waiting jobs by the instant their first token is due
    guard     turned away: now + (prefill time of it and of all before it) + 50 ms > due
    credits   each step, a running decode with promised pace TPOT_r earns (least TPOT running)/TPOT_r; it decodes when
              it has 1, and pays it. So it gets a share of the steps, in proportion to its pace

Prefill times are predicted at a full chunk a step. Who passed the guard once and was admitted is promised; so is what
had been promised before it came here (the later stages of a request).

The paper refuses who is turned away. Here it is declined while another replica may be asked, and otherwise becomes best
effort, as are jobs that were promised nothing: served first come, first served while nobody else is here, paused when
somebody comes, and evicted, the last admitted first, when somebody needs its seat or memory. So the others see none of
them, as if they had been refused. A job without a TPOT decodes in every step.

Batches are Sarathi-Serve's: decodes, then running prompts, then waiting ones, C tokens at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from sloguard.perf.batch_time import Batch
from sloguard.sched.job import Job, Tier
from sloguard.sched.placing import FOREVER_S, NEVER_S, Placing, PromptWork, last_admitted, whole_tokens
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sched.sarathi import CHUNK_TOKENS

MARGIN_S = 50e-3
WHOLE_CREDIT = 1 - 1e-9  # thirds add up to a little less than one


class Scorpio:
    """C = `chunk_tokens`."""

    def __init__(self, chunk_tokens: int = CHUNK_TOKENS) -> None:
        whole_tokens("chunk_tokens", chunk_tokens)
        self.chunk_tokens = chunk_tokens
        self._work = PromptWork()
        self._credits: dict[str, float] = {}

    def plan(self, now_s: float, view: View) -> Plan:
        queue, declined = self._guard(now_s, view) if view.waiting else ([], [])
        unguarded = any(job.tier is Tier.NEW for job in queue)  # the guard's bound moves as predictions learn
        placing = Placing(view, _victim)
        decodes = [job for job in placing.decodes if job.tier is not Tier.BEST_EFFORT]
        prompts = [job for job in placing.prompts if job.tier is not Tier.BEST_EFFORT]
        if not (decodes or prompts or queue):
            placing.decode(placing.decodes)
            placing.limit(self.chunk_tokens - len(placing.tokens))
            best_effort = (job for job in view.waiting if job.tier is Tier.BEST_EFFORT)
            placing.fill(chain(placing.prompts, best_effort))
            return placing.plan(declined)
        chosen = self._earned(decodes)
        placing.decode(chosen)
        placing.limit(self.chunk_tokens - len(placing.tokens))
        placing.fill(prompts)
        if not placing.evicted:
            _admit(placing, queue)
        if not placing.tokens:
            placing.decode(decodes)  # who had earned it was evicted
        return placing.plan(declined, FOREVER_S if chosen is decodes and not unguarded else NEVER_S)

    def _guard(self, now_s: float, view: View) -> tuple[list[Job], list[str]]:
        """Who waits and may be promised, in order; and who is declined."""
        work = self._work.of(view.waiting, view.kv)
        chunk = min(self.chunk_tokens, view.limits.max_num_batched_tokens)
        token_s = view.time.seconds(Batch(((chunk, 0),))) / chunk
        queue: list[Job] = []
        declined: list[str] = []
        ahead_s = MARGIN_S
        for due_s, _, _, job in sorted((job.ttft_due_s, job.arrival_s, job.id, job) for job in view.waiting):
            if job.tier is Tier.BEST_EFFORT:
                continue
            prefill_s = token_s * work[job.id]
            if job.tier is Tier.NEW:
                begin_s = due_s - ahead_s - prefill_s
                if begin_s < now_s and job.hops_left:
                    declined.append(job.id)
                    continue
                if begin_s < now_s or (job.ttft_s is None and job.tpot_s is None):
                    job.tier = Tier.BEST_EFFORT
                    continue
            ahead_s += prefill_s
            queue.append(job)
        return queue, declined

    def _earned(self, decodes: list[Job]) -> list[Job]:
        """Who decodes in this step; `decodes` itself where all have the same pace and so always do."""
        paces_s = {job.tpot_s for job in decodes if job.tpot_s is not None}
        if len(paces_s) <= 1:
            self._credits = {}
            return decodes
        least_s, old = min(paces_s), self._credits
        credits: dict[str, float] = {}
        chosen: list[Job] = []
        for job in decodes:
            credit = old.get(job.id, 0.0) + least_s / (job.tpot_s or least_s)
            if credit >= WHOLE_CREDIT:
                credit -= 1.0
                chosen.append(job)
            credits[job.id] = credit
        self._credits = credits
        return chosen


def _admit(placing: Placing, queue: Iterable[Job]) -> None:
    """Starts waiting jobs in order, at the cost of best-effort ones where that is enough."""
    best_effort = [job for job in placing.running if job.tier is Tier.BEST_EFFORT]
    for job in queue:
        if not placing.admit(job):
            if not best_effort or not placing.admits_without(job, best_effort):
                return
            placing.evict(best_effort.pop())
            while not placing.admit(job):
                placing.evict(best_effort.pop())
        job.tier = Tier.PROMISED


def _victim(running: Sequence[Job]) -> int:
    """The last admitted of best effort, else the last admitted."""
    for i in reversed(range(len(running))):
        if running[i].tier is Tier.BEST_EFFORT:
            return i
    return last_admitted(running)
