"""Placing the tokens of one step: what policies on Sarathi-Serve's chunking (arXiv 2403.02310) share.

decodes   one token each
prompts   in the policy's order, running and waiting ones; cut at what is left of the budget where chunked prefill is
          on, else only whole
memory    a running job that needs a block gets it from a victim, which computes everything again later, as in
          vLLM v1; tokens the victim had in this step go back to the budget. The policy names the victim
waiting   admitted only where nobody had to go, up to max_num_seqs, until one does not fit

Nobody is evicted for a job that the policy's victim rule ranks behind it, so whatever the order, work ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from sloguard.errors import SpecError
from sloguard.sched.job import Job
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Kv, View

NEVER_S, FOREVER_S = float("-inf"), float("inf")

Victim = Callable[[Sequence[Job]], int]
Ranked = tuple[float, float, str, Job]  # two keys, the smaller first, and the id so that ties are settled


def last_admitted(running: Sequence[Job]) -> int:
    return len(running) - 1


def ranked(jobs: list[Ranked]) -> Iterator[Job]:
    """In order. A heap orders no more of them than are looked at: few of many are served in a step."""
    heapq.heapify(jobs)
    while jobs:
        yield heapq.heappop(jobs)[3]


def whole_tokens(field: str, tokens: int | None) -> int | None:
    """A number of tokens that a user gave. Raises SpecError for one below 1."""
    if tokens is not None and tokens < 1:
        raise SpecError(field, tokens, "not a number of tokens", "Give a whole number from 1")
    return tokens


class Placing:
    """One step in the making. `decodes` and `prompts` are the running jobs of either kind; `budget` is what is left of
    max_num_batched_tokens.
    """

    __slots__ = (
        "_cap",
        "_kv",
        "_victim",
        "admitted",
        "budget",
        "decodes",
        "evicted",
        "prompts",
        "running",
        "tokens",
        "view",
    )

    def __init__(self, view: View, victim: Victim = last_admitted) -> None:
        limits = view.limits
        self.view, self._kv, self._victim = view, view.kv, victim
        self.budget = limits.max_num_batched_tokens
        chunked = limits.enable_chunked_prefill
        self._cap = (
            limits.long_prefill_token_threshold if chunked and limits.long_prefill_token_threshold else self.budget
        )
        self.tokens: dict[str, int] = {}
        self.admitted: dict[str, int] = {}
        self.evicted: list[str] = []
        self.running = list(view.running)
        self.decodes: list[Job] = []
        self.prompts: list[Job] = []
        for job in self.running:  # `Job.decoding`, without the call
            if job.generated_tokens and job.computed_tokens + 1 == job.prompt_tokens + job.generated_tokens:
                self.decodes.append(job)
            else:
                self.prompts.append(job)

    @property
    def seats(self) -> int:
        return self.view.limits.max_num_seqs - len(self.running) - len(self.admitted)

    def decode(self, jobs: Iterable[Job]) -> None:
        """A token for each of these decodes."""
        grow, tokens, evicted = self._kv.grow, self.tokens, self.evicted
        for job in jobs:
            if self.budget <= 0:
                break
            if evicted and job.id in evicted:
                continue
            if grow(job, 1) or self._make_room(job, 1):
                tokens[job.id] = 1
                self.budget -= 1

    def limit(self, prompt_tokens: int) -> None:
        """No more than these are left to prompts, where prompts can be cut."""
        if self.view.limits.enable_chunked_prefill:
            self.budget = min(self.budget, prompt_tokens)

    def fill(self, jobs: Iterable[Job]) -> None:
        """Running and waiting prompts, in this order, until the budget ends."""
        cut_short = {job.id for job in self.prompts}
        admitting = True
        for job in jobs:
            if self.budget <= 0:
                break
            if job.id in cut_short:
                self._continue(job)
            elif admitting:
                admitting = not self.evicted and self.admit(job)

    def admit(self, job: Job, *, cut: bool | None = None) -> bool:
        """Starts a waiting job, if there is a seat, memory and, where it may not be `cut`, budget for all of it."""
        limits = self.view.limits
        if self.seats <= 0 or self.budget <= 0:
            return False
        cached = self._kv.cached_tokens(job)
        wanted = self._wanted(job, cached, cut)
        spare = limits.watermark_blocks if self.running or self.admitted else 0
        if not wanted or not self._kv.admit(
            job, cached, wanted, whole=limits.scheduler_reserve_full_isl, spare_blocks=spare
        ):
            return False
        self.admitted[job.id] = cached
        self.tokens[job.id] = wanted
        self.budget -= wanted
        return True

    def admits_without(self, job: Job, gone: Sequence[Job]) -> bool:
        """Whether `admit` would start it, had these running jobs been evicted, which have no tokens in this step."""
        limits = self.view.limits
        cached = self._kv.cached_tokens(job)
        wanted = self._wanted(job, cached)
        spare = limits.watermark_blocks if len(gone) < len(self.running) or self.admitted else 0
        return (
            wanted > 0
            and self.seats + len(gone) > 0
            and self._kv.fits_without(
                job, cached, wanted, gone, whole=limits.scheduler_reserve_full_isl, spare_blocks=spare
            )
        )

    def _wanted(self, job: Job, cached: int, cut: bool | None = None) -> int:
        """Tokens that a waiting job would begin with; 0 where it may not be cut and the budget is less."""
        wanted = min(job.known_tokens - cached, self._cap)
        if wanted > self.budget and not (self.view.limits.enable_chunked_prefill if cut is None else cut):
            return 0
        return min(wanted, self.budget)

    def evict(self, job: Job) -> None:
        self.running.remove(job)
        self._kv.release(job)
        self.evicted.append(job.id)
        self.budget += self.tokens.pop(job.id, 0)

    def plan(self, decline: Sequence[str] = (), holds_until_s: float = FOREVER_S) -> Plan:
        """`holds_until_s` is for a plan that decodes all that runs and admits nobody. Forever is right where who waits
        is held back by bounds that don't move, or by memory: each step leaves less of it.
        """
        changes = self.prompts or self.admitted or self.evicted or len(self.tokens) < len(self.running)
        return Plan(
            self.tokens, self.admitted, tuple(self.evicted), tuple(decline), NEVER_S if changes else holds_until_s
        )

    def _continue(self, job: Job) -> None:
        if job.id not in self.evicted:
            wanted = min(job.remaining_tokens, self.budget, self._cap)
            if self._make_room(job, wanted):
                self.tokens[job.id] = wanted
                self.budget -= wanted

    def _make_room(self, job: Job, tokens: int) -> bool:
        while not self._kv.grow(job, tokens):
            victim = self.running[self._victim(self.running)]
            self.evict(victim)
            if victim is job:
                return False
        return True


class PromptWork:
    """Prompt tokens that waiting jobs have to compute beyond the prefix cache, looked up once each time a job waits."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], int] = {}

    def of(self, waiting: Collection[Job], kv: Kv) -> dict[str, int]:
        """By id. What was known of jobs that wait no longer is forgotten."""
        old = self._known
        self._known = {
            (key := (job.id, job.evictions)): old.get(key) or job.known_tokens - kv.cached_tokens(job)
            for job in waiting
        }
        return {job_id: tokens for (job_id, _), tokens in self._known.items()}
