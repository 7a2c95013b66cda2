"""How long requests will be in the end: the answer, and what later stages add to the conversation.

A guess of an answer stands until the answer outgrows it: it errs less than one that is made anew with each token, and
asking is dear. What a later stage adds is learnt from promised conversations that go on: what the prompt has beyond the
stage before, and the answer expected then.
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
        self._latest: dict[str, Job] = {}  # of each conversation that goes on, by its name
        self._added_tokens = 0.0  # by a later stage, learnt

    def learn(self, view: View, promised: Iterable[Job]) -> None:
        """From promised jobs that wait: one whose conversation was another job's before is its next stage."""
        for job in promised:
            before = self._latest.get(job.conversation, job)
            if before is not job:
                added = job.prompt_tokens - before.known_tokens + self.answer(view, job)
                self._added_tokens += STAGE_WEIGHT * (added - self._added_tokens)

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
            self._latest.pop(job.conversation, None)
            return
        if len(self._latest) >= KEPT:
            self._latest.clear()
        self._latest[job.conversation] = job
