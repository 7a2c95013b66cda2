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
PRIOR_TOKENS = 512  # the 90 % quantile of public chat answers lies between 400 and 600 (Azure 2023 conv, ShareGPT)


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


class _Group:
    """The latest answers of a group, sorted, and the guesses made from them since the last one came."""

    __slots__ = ("guesses", "latest", "tokens")

    def __init__(self) -> None:
        self.latest: deque[int] = deque()
        self.tokens: list[int] = []
        self.guesses: dict[int, int] = {}  # by the tokens that the answer is known to exceed

    def add(self, tokens: int) -> None:
        if len(self.latest) == KEPT:
            del self.tokens[bisect_right(self.tokens, self.latest.popleft()) - 1]
        self.latest.append(tokens)
        insort(self.tokens, tokens)
        self.guesses.clear()


class _Learnt:
    """What `Quantile` and `Mean` share; they differ in the statistic of sorted tokens."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group] = {}

    def output_tokens(self, job: Job) -> int:
        for key in _keys(job):
            group = self._groups.get(key)
            if group is not None and len(group.tokens) >= ENOUGH:
                break
        else:
            group = None
        guess = PRIOR_TOKENS if group is None else self._guess(group, 0)
        while guess <= job.generated_tokens:  # each turn at least doubles: O(log(answer))
            guess = max(2 * guess, self._guess(group, guess) if group else 0)
        return guess

    def finished(self, job: Job) -> None:
        for key in _keys(job):
            self._groups.setdefault(key, _Group()).add(job.generated_tokens)

    def _guess(self, group: _Group, beyond: int) -> int:
        """Of an answer longer than `beyond` tokens; 0 where none in the group was."""
        guess = group.guesses.get(beyond)
        if guess is None:
            longer = group.tokens[bisect_right(group.tokens, beyond) :]
            guess = group.guesses[beyond] = self._statistic(longer) if longer else 0
        return guess

    def _statistic(self, tokens: list[int]) -> int:
        raise NotImplementedError


class Quantile(_Learnt):
    """The answer is no longer than this with probability `q`."""

    def __init__(self, q: float = 0.9) -> None:
        super().__init__()
        if not 0 < q < 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        self.q = q

    def _statistic(self, tokens: list[int]) -> int:
        return tokens[min(int(self.q * len(tokens)), len(tokens) - 1)]


class Mean(_Learnt):
    """The mean, rounded up."""

    def _statistic(self, tokens: list[int]) -> int:
        return -(-sum(tokens) // len(tokens))


def _keys(job: Job) -> tuple[Hashable, Hashable, Hashable]:
    return (job.app, job.prompt_tokens.bit_length()), job.app, ()
