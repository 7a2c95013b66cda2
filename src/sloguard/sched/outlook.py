"""How long requests will be in the end: the answer, and what later stages add to the conversation.

A guess of an answer stands until the answer outgrows it: it errs less than one that is made anew with each token, and
asking is dear.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from sloguard.sched.job import Job
from sloguard.sched.policy import View

STAGE_WEIGHT = 0.1
KEPT_GUESSES = 10_000


class Outlook:
    """`cautious` takes `Lengths.output_tokens`, else `Lengths.mean_tokens`."""

    def __init__(self, *, cautious: bool) -> None:
        self._cautious = cautious
        self._answers: dict[str, int] = {}
        self._stage_tokens = 0.0  # what a later stage adds, learnt

    def learn(self, view: View, promised: Iterable[Job]) -> None:
        """From promised jobs that wait: where they were not promised here, they are later stages of what was."""
        for job in promised:
            if not job.generated_tokens and job.id not in self._answers:
                added = job.prompt_tokens - view.kv.cached_tokens(job) + self.answer(view, job)
                self._stage_tokens += STAGE_WEIGHT * (added - self._stage_tokens)

    def answer(self, view: View, job: Job) -> int:
        """Tokens of this stage's."""
        expected = self._answers.get(job.id, 0)
        if expected <= job.generated_tokens:
            if len(self._answers) >= KEPT_GUESSES:
                self._answers.clear()
            guess = view.lengths.output_tokens if self._cautious else view.lengths.mean_tokens
            expected = self._answers[job.id] = guess(job)
        return expected

    def to_come(self, view: View, job: Job) -> int:
        """Tokens that follow the `job.known_tokens` of now, to the end of the last stage."""
        return self.answer(view, job) - job.generated_tokens + ceil(job.stages_left * self._stage_tokens)
