"""Paged KV memory with a prefix cache, block for block as vLLM v1 keeps it (vllm/v1/core, 0.32).

allocate   blocks are reserved when a step is scheduled, before it runs; a block is cached once it is full
look up    only full blocks hit, from the first on without a gap; the last known token is always recomputed
free       a cached block whose last user leaves stays in memory, least recently used first to be overwritten,
           a request's last block before its first; blocks that were never cached are reused before those
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Iterable

from sloguard.sched.job import Job


class KvCache:
    """`blocks` blocks of `block_tokens` tokens. Every method is O(blocks touched)."""

    def __init__(self, blocks: int, block_tokens: int = 16, prefix_caching: bool = True) -> None:
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"a KV cache needs at least one block of one token, not {blocks} of {block_tokens}")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self._blank = list(range(blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and unused, oldest first
        self._sharers: dict[int, int] = {}  # of a block with several users, how many there are beside one
        self._key_of: list[Hashable] = [None] * blocks  # meant only while a block is cached
        self._cached: dict[Hashable, int] = {}
        self._copies: dict[Hashable, list[int]] = {}  # later blocks with the text of a cached one, oldest first
        self._held: dict[str, list[int]] = {}
        self._keyed: dict[str, int] = {}  # how many of a job's blocks, from the first, are cached under their keys

    @property
    def free_blocks(self) -> int:
        return len(self._blank) + len(self._idle)

    def held_blocks(self, job: Job) -> int:
        """Blocks of a running job; some may be shared with others."""
        return len(self._held[job.id])

    @property
    def capacity_tokens(self) -> int:
        return self.blocks * self.block_tokens

    def cached_tokens(self, job: Job) -> int:
        """Tokens of `job` that needn't be computed, never its last known one: whole blocks that are cached here, or
        what another replica sent, which takes memory like any other once the job is admitted.
        """
        found = len(self._hits(job)) * self.block_tokens
        return max(found, min(job.transferred_tokens, job.known_tokens - 1)) if job.transferred_tokens else found

    def admit(self, job: Job, cached_tokens: int, tokens: int, *, whole: bool = True, spare_blocks: int = 0) -> bool:
        """Takes `cached_tokens` (as `cached_tokens(job)` said) from the cache and room for `tokens` more.

        With `whole`, only if all known tokens of the job would fit (vLLM's `scheduler_reserve_full_isl`), and only if
        `spare_blocks` then stay free. False, and nothing has changed, where memory does not suffice.
        """
        hits = self._hits(job)[: cached_tokens // self.block_tokens]
        size = job.known_tokens if whole else cached_tokens + tokens
        if self._blocks_for(size) + spare_blocks > self._room(hits):
            return False
        for block in hits:
            if block in self._idle:
                del self._idle[block]
            else:
                self._sharers[block] = self._sharers.get(block, 0) + 1
        self._held[job.id] = hits
        self._keyed[job.id] = len(hits)
        self._extend(job, cached_tokens + tokens)
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
        """Whether `admit` would succeed after the release of `gone`. Nothing changes."""
        users = Counter(block for other in gone for block in self._held[other.id])
        freed = {block for block, count in users.items() if count > self._sharers.get(block, 0)}
        size = job.known_tokens if whole else cached_tokens + tokens
        return self._blocks_for(size) + spare_blocks <= self._room(
            self._hits(job)[: cached_tokens // self.block_tokens], freed
        )

    def _room(self, hits: Iterable[int], freed: Collection[int] = ()) -> int:
        """Blocks for a job that finds `hits` cached, once `freed` are unused: the free ones, some of which may be hits,
        and hits in use, which it shares.
        """
        shared = sum(block not in self._idle and block not in freed for block in hits)
        return self.free_blocks + len(freed) + shared

    def grow(self, job: Job, tokens: int) -> bool:
        """Room for `tokens` beyond the computed ones of a running job. False, and nothing has changed, without it."""
        size = job.computed_tokens + tokens
        missing = -(-size // self.block_tokens) - len(self._held[job.id])
        if not missing and size % self.block_tokens:  # most decodes: no block is needed and none is filled
            return True
        if missing > len(self._blank) + len(self._idle):
            return False
        self._extend(job, size)
        return True

    def release(self, job: Job) -> None:
        """The job leaves memory; what it cached stays until it is overwritten."""
        held, keyed = self._held.pop(job.id), self._keyed.pop(job.id)
        self._blank += reversed(held[keyed:])
        for block in reversed(held[:keyed]):
            others = self._sharers.pop(block, 0)
            if not others:
                self._idle[block] = None
            elif others > 1:
                self._sharers[block] = others - 1

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _extend(self, job: Job, size: int) -> None:
        held = self._held[job.id]
        missing = self._blocks_for(size) - len(held)
        if missing > 0:
            held += self._take(missing)
        if self.prefix_caching:
            full = min(size, job.known_tokens) // self.block_tokens
            if full > self._keyed[job.id]:
                self._cache(job, held, full)

    def _cache(self, job: Job, held: list[int], full: int) -> None:
        for index in range(self._keyed[job.id], full):
            block, key = held[index], _key(job, index)
            self._key_of[block] = key
            if self._cached.setdefault(key, block) != block:
                self._copies.setdefault(key, []).append(block)
        self._keyed[job.id] = full

    def _take(self, count: int) -> list[int]:
        """So many blocks to be written: blank ones, then the idle, which lose what they hold."""
        blocks = self._blank[-count:]
        blocks.reverse()
        del self._blank[-count:]
        idle, key_of, cached, copies = self._idle, self._key_of, self._cached, self._copies  # read once: a hot loop
        for _ in range(count - len(blocks)):
            block, _ = idle.popitem(last=False)
            key = key_of[block]
            if copies and key in copies:
                self._drop_copy(key, block)
            else:
                del cached[key]
            blocks.append(block)
        return blocks

    def _drop_copy(self, key: Hashable, block: int) -> None:
        copies = self._copies[key]
        if self._cached[key] == block:
            self._cached[key] = copies.pop(0)
        else:
            copies.remove(block)
        if not copies:
            del self._copies[key]

    def _hits(self, job: Job) -> list[int]:
        hits: list[int] = []
        if self.prefix_caching:
            for index in range((job.known_tokens - 1) // self.block_tokens):
                block = self._cached.get(_key(job, index))
                if block is None:
                    break
                hits.append(block)
        return hits


def _key(job: Job, index: int) -> Hashable:
    """What block `index` of the job's text holds; beyond the shared prefix a text equals only itself."""
    return job.prefix_keys[index] if index < len(job.prefix_keys) else (job.stream, index)
