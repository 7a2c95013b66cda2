"""Earliest deadline first and shortest remaining prompt first, on Sarathi-Serve's batches, without rejection.

    edf    prompts by the instant their first token is due, then by arrival; victim: the latest due
    srpf   prompts by the tokens they still have to compute; victim: the prompt with most of them, else the decode that
           was admitted last. Long prompts starve for as long as shorter ones keep coming, as in every SRPF

A waiting prompt overtakes a running one, which then keeps its memory and pauses. What was not promised is due last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sloguard.sched.job import Job
from sloguard.sched.placing import Placing, PromptWork, Ranked, ranked
from sloguard.sched.sarathi import CHUNK_TOKENS, Sarathi


class Edf(Sarathi):
    """Earliest deadline first."""

    def _order(self, placing: Placing) -> Iterable[Job]:
        jobs = [(job.ttft_due_s, job.arrival_s, job.id, job) for job in placing.view.waiting]
        jobs += [(job.ttft_due_s, job.arrival_s, job.id, job) for job in placing.prompts]
        return ranked(jobs)

    def _victim(self, running: Sequence[Job]) -> int:
        return max(range(len(running)), key=lambda i: (running[i].ttft_due_s, running[i].arrival_s, i))


class Srpf(Sarathi):
    """Shortest remaining prompt first."""

    def __init__(self, chunk_tokens: int | None = CHUNK_TOKENS) -> None:
        super().__init__(chunk_tokens)
        self._work = PromptWork()

    def _order(self, placing: Placing) -> Iterable[Job]:
        view = placing.view
        work = self._work.of(view.waiting, view.kv)
        jobs: list[Ranked] = [(work[job.id], job.arrival_s, job.id, job) for job in view.waiting]
        jobs += [(job.remaining_tokens, job.arrival_s, job.id, job) for job in placing.prompts]
        return ranked(jobs)

    def _victim(self, running: Sequence[Job]) -> int:
        return max(range(len(running)), key=lambda i: (running[i].remaining_tokens, i))
