"""First come, first served, as vLLM v1 schedules it (vllm/v1/core/sched/scheduler.py, 0.32; decisions, not code).

running    in order: each gets what it still has to compute, 1 token for a decode, up to the budget
no memory  a victim is evicted and computes everything again later: the last running job. Where the victim is the job
           that needed the memory, no other job runs in this step
waiting    only if nothing was evicted: in order up to max_num_seqs, until one does not fit
chunks     a prompt may be cut at the budget; with chunked prefill off it waits for a step with room for all of it
holds      a plan that decodes every running job and admits nobody: whoever is at the head of the queue stays blocked,
           by a bound that does not move or by free blocks, of which each step leaves fewer
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sloguard.sched.job import Job
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View

FOREVER_S = float("inf")


class Fcfs:
    """vLLM's default policy."""

    def plan(self, now_s: float, view: View) -> Plan:
        limits, kv = view.limits, view.kv
        budget = limits.max_num_batched_tokens
        # A long prompt is held back only where there is somebody else to serve.
        alone = len(view.running) + len(view.waiting) <= 1
        cap = budget if alone or not limits.long_prefill_token_threshold else limits.long_prefill_token_threshold
        running = list(view.running)
        tokens: dict[str, int] = {}
        evicted: list[str] = []
        prefills = False

        at = 0
        while at < len(running) and budget > 0:
            job = running[at]
            wanted = job.prompt_tokens + job.generated_tokens - job.computed_tokens
            if wanted > 1 or not job.generated_tokens:
                prefills = True
                wanted = min(wanted, cap, budget)
            while not kv.grow(job, wanted):
                index = self._victim(running)
                victim = running.pop(index)
                kv.release(victim)
                evicted.append(victim.id)
                if victim is job:
                    break
                if index < at:  # it had its tokens: others may have them
                    at -= 1
                    budget += tokens.pop(victim.id)
            else:
                tokens[job.id] = wanted
                budget -= wanted
                at += 1
                continue
            break
        if evicted:
            return Plan(tokens, evict=tuple(evicted))

        admitted: dict[str, int] = {}
        seats = limits.max_num_seqs - len(running)
        if budget > 0 and seats > 0 and view.waiting:
            for job in self._queue(view.waiting):
                if budget <= 0 or len(admitted) >= seats:
                    break
                cached = kv.cached_tokens(job)
                wanted = min(job.known_tokens - cached, cap)
                if wanted > budget and not limits.enable_chunked_prefill:
                    break
                wanted = min(wanted, budget)
                spare = limits.watermark_blocks if running or admitted else 0
                if not kv.admit(job, cached, wanted, whole=limits.scheduler_reserve_full_isl, spare_blocks=spare):
                    break
                admitted[job.id] = cached
                tokens[job.id] = wanted
                budget -= wanted
        if prefills or admitted or len(tokens) < len(running):
            return Plan(tokens, admitted)
        return Plan(tokens, holds_until_s=FOREVER_S)

    def _queue(self, waiting: Collection[Job]) -> Iterable[Job]:
        """The order of admission."""
        return waiting

    def _victim(self, running: Sequence[Job]) -> int:
        """Whose memory goes to the others, by index."""
        return len(running) - 1
