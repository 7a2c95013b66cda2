"""How long an answer will be, guessed before it ends: a policy needs it to reserve KV memory.

What was seen is kept by application and prompt size (powers of two), the latest `KEPT` answers of each. A guess comes
from the narrowest group with `ENOUGH` answers: the job's own, else its application, else everything; before that it is
`PRIOR_TOKENS`. An answer that outgrows its guess is guessed again among the longer ones at every doubling of it, so a
guess changes a few times in a job's life, not at every token.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Hashable
from typing import Protocol

from sloguard.sched.job import Job

KEPT = 512
ENOUGH = 8  # fewer tell nothing about a 90 % quantile
PRIOR_MEAN_TOKENS = 256  # 150 to 400 in the same data
PRIOR_TOKENS = 512  # the 90 % quantile of public chat answers lies between 400 and 600 (Azure 2023 conv, ShareGPT)


class Lengths(Protocol):
    def output_tokens(self, job: Job) -> int:
        """Output tokens in all, as far as one should be prepared for; more than `job.generated_tokens`."""
        ...

    def mean_tokens(self, job: Job) -> int:
        """Output tokens in all, on average: what many jobs add up to. More than `job.generated_tokens`."""
        ...

    def finished(self, job: Job) -> None:
        """Learns from a job whose answer is complete."""
        ...


class Oracle:
    """Knows. For comparison only: no engine does."""

    def output_tokens(self, job: Job) -> int:
        return job.output_tokens

    def mean_tokens(self, job: Job) -> int:
        return job.output_tokens

    def finished(self, job: Job) -> None:
        """Has nothing to learn."""


class _Group:
    """The latest answers of a group, sorted, and the guesses made from them since the last one came."""

    __slots__ = ("guesses", "latest", "tokens")

    def __init__(self) -> None:
        self.latest: deque[int] = deque()
        self.tokens: list[int] = []
        self.guesses: dict[tuple[float | None, int], int] = {}

    def add(self, tokens: int) -> None:
        if len(self.latest) == KEPT:
            del self.tokens[bisect_right(self.tokens, self.latest.popleft()) - 1]
        self.latest.append(tokens)
        insort(self.tokens, tokens)
        self.guesses.clear()

    def guess(self, q: float | None, beyond: int) -> int:
        """The quantile `q`, or the mean for None, of answers longer than `beyond` tokens; 0 where there was none."""
        known = self.guesses.get((q, beyond))
        if known is None:
            longer = self.tokens[bisect_right(self.tokens, beyond) :]
            if not longer:
                known = 0
            elif q is None:
                known = -(-sum(longer) // len(longer))
            else:
                known = longer[min(int(q * len(longer)), len(longer) - 1)]
            self.guesses[q, beyond] = known
        return known


class Quantile:
    """Learnt from what ended: an answer is no longer than `output_tokens` with probability `q`."""

    def __init__(self, q: float = 0.9) -> None:
        if not 0 < q < 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        self.q = q
        self._groups: dict[Hashable, _Group] = {}

    def output_tokens(self, job: Job) -> int:
        return self._guess(job, self.q, PRIOR_TOKENS)

    def mean_tokens(self, job: Job) -> int:
        return self._guess(job, None, PRIOR_MEAN_TOKENS)

    def finished(self, job: Job) -> None:
        for key in _keys(job):
            self._groups.setdefault(key, _Group()).add(job.generated_tokens)

    def _guess(self, job: Job, q: float | None, prior_tokens: int) -> int:
        for key in _keys(job):
            group = self._groups.get(key)
            if group is not None and len(group.tokens) >= ENOUGH:
                break
        else:
            group = None
        guess = prior_tokens if group is None else group.guess(q, 0)
        while guess <= job.generated_tokens:  # each turn at least doubles: O(log(answer))
            guess = max(2 * guess, group.guess(q, guess) if group else 0)
        return guess


class Mean(Quantile):
    """Prepared for the mean only."""

    def output_tokens(self, job: Job) -> int:
        return self.mean_tokens(job)


class AtMost:
    """`guess`, but no answer is guessed to be longer than the job may be: `output_tokens` is its limit here
    (`max_tokens` of a request), not its length.
    """

    def __init__(self, guess: Lengths) -> None:
        self._guess = guess

    def output_tokens(self, job: Job) -> int:
        return min(self._guess.output_tokens(job), max(job.output_tokens, job.generated_tokens + 1))

    def mean_tokens(self, job: Job) -> int:
        return min(self._guess.mean_tokens(job), max(job.output_tokens, job.generated_tokens + 1))

    def finished(self, job: Job) -> None:
        self._guess.finished(job)


def _keys(job: Job) -> tuple[Hashable, Hashable, Hashable]:
    return (job.app, job.prompt_tokens.bit_length()), job.app, ()
