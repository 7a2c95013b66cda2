"""First come, first served, as vLLM v1 schedules it (vllm/v1/core/sched/scheduler.py, 0.32; decisions, not code).

running    in order: each gets what it still has to compute, 1 token for a decode, up to the budget
no memory  the last running job is evicted and computes everything again later; the job itself, if it is the last
waiting    only if nothing was evicted: in order up to max_num_seqs, until one does not fit
chunks     a prompt may be cut at the budget; with chunked prefill off it waits for a step with room for all of it
"""

from __future__ import annotations

from sloguard.sched.job import Job
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View


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
        evicted: list[Job] = []

        at = 0
        while at < len(running) and budget > 0:
            job = running[at]
            wanted = job.remaining_tokens
            if wanted > 1:
                wanted = min(wanted, cap, budget)
            while not kv.grow(job, wanted):
                victim = running.pop()
                kv.release(victim)
                evicted.append(victim)
                if victim is job:
                    break
            else:
                tokens[job.id] = wanted
                budget -= wanted
                at += 1
        if evicted:
            return Plan(tokens, evict=tuple(job.id for job in evicted))

        admitted: dict[str, int] = {}
        for job in view.waiting:
            if budget <= 0 or len(running) + len(admitted) >= limits.max_num_seqs:
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
        return Plan(tokens, admitted)
