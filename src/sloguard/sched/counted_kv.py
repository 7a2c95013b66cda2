"""KV memory by counts alone: what a policy plans in where an engine keeps the blocks itself.

It lives for one plan. The engine allocates what was planned by its own rules and may, at the edge of a full memory, do
otherwise; the next plan starts from what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sloguard.sched.job import Job


@dataclass(frozen=True, slots=True)
class Hits:
    """What the prefix cache has of a job: `tokens`, and how many of their blocks nobody else is using."""

    tokens: int = 0
    idle_blocks: int = 0


NO_HITS = Hits()


class CountedKv:
    """`held` are the blocks of each running job, by id. `look_up` asks the engine's prefix cache, once a job; `owned`
    says how many of a running job's blocks nobody else uses (None: all).
    """

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        free_blocks: int,
        held: Mapping[str, int],
        look_up: Callable[[Job], Hits] = lambda job: NO_HITS,
        owned: Callable[[Job], int] | None = None,
    ) -> None:
        self.blocks, self.block_tokens, self.free_blocks = blocks, block_tokens, free_blocks
        self._held = dict(held)
        self._look_up, self._owned = look_up, owned
        self._hits: dict[str, Hits] = {}

    @property
    def capacity_tokens(self) -> int:
        return self.blocks * self.block_tokens

    def held_blocks(self, job: Job) -> int:
        return self._held[job.id]

    def cached_tokens(self, job: Job) -> int:
        return self._found(job).tokens

    def admit(self, job: Job, cached_tokens: int, tokens: int, *, whole: bool = True, spare_blocks: int = 0) -> bool:
        size = job.known_tokens if whole else cached_tokens + tokens
        if not self._fits(job, cached_tokens, size, spare_blocks):
            return False
        taken = self._blocks_for(cached_tokens + tokens)
        self._held[job.id] = taken
        self.free_blocks -= taken - self._shared(job, cached_tokens)
        return True

    def fits_without(
        self,
        job: Job,
        cached_tokens: int,
        tokens: int,
        gone: Iterable[Job],
        *,
        whole: bool = True,
        spare_blocks: int = 0,
    ) -> bool:
        size = job.known_tokens if whole else cached_tokens + tokens
        return self._fits(job, cached_tokens, size, spare_blocks - sum(map(self._freed_by, gone)))

    def grow(self, job: Job, tokens: int) -> bool:
        missing = self._blocks_for(job.computed_tokens + tokens) - self._held[job.id]
        if missing > self.free_blocks:
            return False
        if missing > 0:
            self._held[job.id] += missing
            self.free_blocks -= missing
        return True

    def release(self, job: Job) -> None:
        self.free_blocks += self._freed_by(job)
        del self._held[job.id]

    def _freed_by(self, job: Job) -> int:
        held = self._held[job.id]
        return held if self._owned is None else min(held, self._owned(job))

    def _fits(self, job: Job, cached_tokens: int, size: int, spare_blocks: int) -> bool:
        return self._blocks_for(size) - self._shared(job, cached_tokens) + spare_blocks <= self.free_blocks

    def _shared(self, job: Job, cached_tokens: int) -> int:
        """Blocks that it needs and others hold: they cost nothing."""
        blocks = cached_tokens // self.block_tokens
        return blocks - min(self._found(job).idle_blocks, blocks)

    def _found(self, job: Job) -> Hits:
        found = self._hits.get(job.id)
        if found is None:
            found = self._hits[job.id] = self._look_up(job)
        return found

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)
