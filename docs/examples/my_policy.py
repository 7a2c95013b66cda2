"""Shortest prompt first, in chunks: decodes go on, and what is left of each step goes to the shortest prompts."""

from sloguard.sched.plan import Plan
from sloguard.sched.policy import View


class Mine:
    def __init__(self, chunk_tokens: int = 512) -> None:
        self.chunk_tokens = chunk_tokens

    def plan(self, now_s: float, view: View) -> Plan:
        kv, left = view.kv, min(self.chunk_tokens, view.limits.max_num_batched_tokens)
        tokens: dict[str, int] = {}
        admit: dict[str, int] = {}
        evict: list[str] = []

        running = sorted(view.running, key=lambda job: job.remaining_tokens)  # decodes first: each has 1 token left
        while running and left:
            wanted = min(running[0].remaining_tokens, left)
            if kv.grow(running[0], wanted):
                tokens[running.pop(0).id] = wanted
                left -= wanted
            else:  # no KV memory: whoever has most to do makes room and starts again later
                victim = running.pop()
                kv.release(victim)
                evict.append(victim.id)
        if evict:
            return Plan(tokens, evict=tuple(evict))

        for job in sorted(view.waiting, key=lambda job: job.known_tokens):
            if not left or len(view.running) + len(admit) == view.limits.max_num_seqs:
                break
            cached = kv.cached_tokens(job)
            wanted = min(job.known_tokens - cached, left)
            if not kv.admit(job, cached, wanted):
                break
            admit[job.id], tokens[job.id] = cached, wanted
            left -= wanted
        return Plan(tokens, admit)
