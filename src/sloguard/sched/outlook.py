"""How long requests will be in the end: the answer, and what later stages add to the conversation.

A guess of an answer stands until the answer outgrows it: it errs less than one that is made anew with each token, and
asking is dear. What a stage adds is learnt from promised conversations, from one prompt to the next: the answer between
them, and what came back.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from sloguard.sched.job import Job
from sloguard.sched.policy import View

STAGE_WEIGHT = 0.1
KEPT = 10_000


class Outlook:
    """`cautious` takes `Lengths.output_tokens`, else `Lengths.mean_tokens`."""

    def __init__(self, *, cautious: bool) -> None:
        self._cautious = cautious
        self._answers: dict[str, int] = {}
        self._prompts: dict[str, int] = {}  # of each conversation that goes on, by its stream
        self._added_tokens = 0.0  # by a later stage, learnt

    def learn(self, promised: Iterable[Job]) -> None:
        """From promised jobs that wait: one whose conversation was shorter when last seen is its next stage."""
        for job in promised:
            before = self._prompts.get(job.stream, job.prompt_tokens)
            if before < job.prompt_tokens:
                self._added_tokens += STAGE_WEIGHT * (job.prompt_tokens - before - self._added_tokens)
                self._keep(job)

    def answer(self, view: View, job: Job) -> int:
        """Tokens of this stage's."""
        expected = self._answers.get(job.id, 0)
        if expected <= job.generated_tokens:
            if len(self._answers) >= KEPT:
                self._answers.clear()
            guess = view.lengths.output_tokens if self._cautious else view.lengths.mean_tokens
            expected = self._answers[job.id] = guess(job)
            self._keep(job)
        return expected

    def to_come(self, view: View, job: Job) -> int:
        """Tokens that follow the `job.known_tokens` of now, to the end of the last stage."""
        return self.answer(view, job) - job.generated_tokens + ceil(job.stages_left * self._added_tokens)

    def _keep(self, job: Job) -> None:
        if not job.stages_left:
            self._prompts.pop(job.stream, None)
            return
        if len(self._prompts) >= KEPT:
            self._prompts.clear()
        self._prompts[job.stream] = job.prompt_tokens
