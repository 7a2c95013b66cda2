from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache


def job(name: str, prompt: int, shared: int = 0, family: int = 0) -> Job:
    """`shared` leading blocks of 16 tokens are equal for all jobs of a family."""
    return Job(name, 0.0, prompt, 100, prefix_keys=tuple(hash((family, i)) for i in range(shared)))


def run(kv: KvCache, j: Job) -> int:
    """Admits a whole prompt and computes it; returns what the cache held of it."""
    cached = kv.cached_tokens(j)
    assert kv.admit(j, cached, j.known_tokens - cached)
    j.computed_tokens = j.known_tokens
    return cached


def test_only_full_blocks_hit_and_the_last_token_is_always_recomputed():
    kv = KvCache(10)
    run(kv, job("a", 40, shared=2))
    assert kv.cached_tokens(job("b", 40, shared=2)) == 32
    assert kv.cached_tokens(job("c", 33, shared=2)) == 32
    assert kv.cached_tokens(job("d", 32, shared=2)) == 16  # the whole prompt is cached: its last block is done again
    assert kv.cached_tokens(job("e", 40, shared=2, family=1)) == 0


@given(st.integers(8, 14), st.lists(st.integers(0, 5), max_size=6), st.integers(0, 3), st.booleans(), st.integers(0, 2))
def test_what_fits_without_some_jobs_is_what_is_admitted_once_they_are_gone(
    blocks: int, shared: list[int], hits: int, whole: bool, spare: int
):
    kv = KvCache(blocks)
    inside = [job(str(at), 40, head % 3, family=head // 3) for at, head in enumerate(shared)]
    inside = [j for j in inside if kv.admit(j, kv.cached_tokens(j), 40 - kv.cached_tokens(j))]
    gone, new = inside[::2], job("new", 100, hits)
    cached = kv.cached_tokens(new)
    before = kv.free_blocks
    fits = kv.fits_without(new, cached, 20, gone, whole=whole, spare_blocks=spare)
    assert kv.free_blocks == before
    for other in gone:
        kv.release(other)
    assert fits == kv.admit(new, cached, 20, whole=whole, spare_blocks=spare)


def test_shared_blocks_are_held_once():
    kv = KvCache(10)
    a, b = job("a", 48, shared=2), job("b", 48, shared=2)
    run(kv, a)
    assert kv.free_blocks == 7
    assert run(kv, b) == 32
    assert kv.free_blocks == 6
    kv.release(a)
    assert kv.free_blocks == 7
    kv.release(b)
    assert kv.free_blocks == 10


def test_least_recently_used_is_overwritten_first_and_tails_before_heads():
    kv = KvCache(4)
    old, new = job("old", 33), job("new", 17)
    run(kv, old)
    kv.release(old)
    run(kv, new)
    kv.release(new)
    run(kv, job("filler", 17))  # 2 blocks: the one that was never cached, then the tail of "old"
    assert kv.cached_tokens(Job("again", 0.0, 33, 1, stream="old")) == 16
    assert kv.cached_tokens(Job("again", 0.0, 17, 1, stream="new")) == 16


def test_admission_counts_idle_hits_as_taken():
    kv = KvCache(3)
    a = job("a", 33, shared=2)
    run(kv, a)
    kv.release(a)
    b = job("b", 49, shared=2)
    assert kv.cached_tokens(b) == 32
    assert not kv.admit(b, 32, 17)  # needs 2 new blocks beside the 2 that would leave the idle ones
    assert kv.free_blocks == 3


def test_whole_prompt_must_fit_although_its_first_chunk_would():
    kv = KvCache(4)
    long = job("long", 80)
    assert not kv.admit(long, 0, 16)
    assert kv.admit(long, 0, 16, whole=False)
    assert not kv.admit(job("next", 16), 0, 16, spare_blocks=3)
    assert kv.admit(job("next", 16), 0, 16, spare_blocks=2)


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one block"):
        KvCache(0)


@given(st.integers(1, 200), st.booleans())
def test_a_released_job_finds_its_full_blocks_again_only_with_the_cache_on(prompt: int, caching: bool):
    kv = KvCache(20, prefix_caching=caching)
    j = job("j", prompt)
    run(kv, j)
    kv.release(j)
    assert kv.cached_tokens(j) == ((prompt - 1) // 16 * 16 if caching else 0)


class KvMachine(RuleBasedStateMachine):
    """Whatever is admitted, grown and released: capacity holds, and free blocks are what nobody holds."""

    live = Bundle("live")

    @initialize(blocks=st.integers(1, 24), block_tokens=st.sampled_from([1, 4, 16]), caching=st.booleans())
    def start(self, blocks: int, block_tokens: int, caching: bool) -> None:
        self.kv = KvCache(blocks, block_tokens, caching)
        self.jobs: dict[str, Job] = {}
        self.count = 0

    @rule(target=live, prompt=st.integers(1, 90), shared=st.integers(0, 4), family=st.integers(0, 1))
    def admit(self, prompt: int, shared: int, family: int) -> str:
        self.count += 1
        j = job(str(self.count), prompt, min(shared, prompt // self.kv.block_tokens), family)
        cached = self.kv.cached_tokens(j)
        assert cached < prompt
        assert cached % self.kv.block_tokens == 0
        if self.kv.admit(j, cached, prompt - cached):
            j.computed_tokens = prompt
            self.jobs[j.id] = j
        return j.id

    @rule(name=live)
    def grow(self, name: str) -> None:
        if j := self.jobs.get(name):
            j.generated_tokens += 1
            if self.kv.grow(j, 1):
                j.computed_tokens += 1
            else:
                assert self.kv.free_blocks == 0
                j.generated_tokens -= 1

    @rule(name=consumes(live))
    def release(self, name: str) -> None:
        if j := self.jobs.pop(name, None):
            self.kv.release(j)

    @invariant()
    def every_block_is_free_or_held(self) -> None:
        held = {block for name in self.jobs for block in self.kv._held[name]}
        assert len(held) + self.kv.free_blocks == self.kv.blocks
        for j in self.jobs.values():
            assert len(self.kv._held[j.id]) * self.kv.block_tokens >= j.computed_tokens


TestKv = KvMachine.TestCase
