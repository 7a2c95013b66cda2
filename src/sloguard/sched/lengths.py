"""How long an answer will be, guessed before it ends: a policy needs it to reserve KV memory."""

from __future__ import annotations

from typing import Protocol

from sloguard.sched.job import Job


class Lengths(Protocol):
    def output_tokens(self, job: Job) -> int:
        """Expected output tokens in all, more than `job.generated_tokens`."""
        ...

    def finished(self, job: Job) -> None:
        """Learns from a job whose answer is complete."""
        ...


class Oracle:
    """Knows. For comparison only: no engine does."""

    def output_tokens(self, job: Job) -> int:
        return job.output_tokens

    def finished(self, job: Job) -> None:
        """Has nothing to learn."""
