"""Counts alone say what the blocks themselves would, where nothing is shared."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sloguard.sched.counted_kv import CountedKv, Hits
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache

TOKENS, SPARE, WHOLE = st.integers(1, 60), st.integers(0, 4), st.booleans()


class SameAsBlocks(RuleBasedStateMachine):
    """Whatever is asked, a plan in counts and a cache without prefixes agree."""

    @initialize(
        blocks=st.integers(1, 24), block_tokens=st.sampled_from([1, 4, 16]), before=st.lists(TOKENS, max_size=4)
    )
    def start(self, blocks: int, block_tokens: int, before: list[int]) -> None:
        self.real = KvCache(blocks, block_tokens, prefix_caching=False)
        self.inside: list[Job] = []
        self.made = 0
        for prompt in before:
            job = self.job(prompt)
            if self.real.admit(job, 0, prompt):
                job.computed_tokens = prompt
                self.inside.append(job)
        held = {job.id: self.real.held_blocks(job) for job in self.inside}
        self.counted = CountedKv(blocks, block_tokens, self.real.free_blocks, held)
        assert self.counted.capacity_tokens == self.real.capacity_tokens

    def job(self, prompt: int) -> Job:
        self.made += 1
        return Job(str(self.made), 0.0, prompt, 100)

    @rule(prompt=TOKENS, share=st.floats(0, 1), whole=WHOLE, spare=SPARE)
    def admit(self, prompt: int, share: float, whole: bool, spare: int) -> None:
        job, tokens = self.job(prompt), max(1, int(prompt * share))
        assert self.counted.cached_tokens(job) == self.real.cached_tokens(job) == 0
        done = self.real.admit(job, 0, tokens, whole=whole, spare_blocks=spare)
        assert self.counted.admit(job, 0, tokens, whole=whole, spare_blocks=spare) == done
        if done:
            job.computed_tokens = tokens
            self.inside.append(job)

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), tokens=TOKENS)
    def grow(self, data: st.DataObject, tokens: int) -> None:
        job = data.draw(st.sampled_from(self.inside))
        job.generated_tokens = max(job.generated_tokens, job.computed_tokens + tokens - job.prompt_tokens)
        done = self.real.grow(job, tokens)
        assert self.counted.grow(job, tokens) == done
        if done:
            job.computed_tokens += tokens

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        self.real.release(job)
        self.counted.release(job)

    @rule(data=st.data(), prompt=TOKENS, share=st.floats(0, 1), whole=WHOLE, spare=SPARE)
    def fits_without(self, data: st.DataObject, prompt: int, share: float, whole: bool, spare: int) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.inside), unique_by=id)) if self.inside else []
        job, tokens = self.job(prompt), max(1, int(prompt * share))
        assert self.counted.fits_without(
            job, 0, tokens, gone, whole=whole, spare_blocks=spare
        ) == self.real.fits_without(job, 0, tokens, gone, whole=whole, spare_blocks=spare)

    @invariant()
    def counts_agree(self) -> None:
        assert self.counted.free_blocks == self.real.free_blocks
        for job in self.inside:
            assert self.counted.held_blocks(job) == self.real.held_blocks(job)


TestSameAsBlocks = SameAsBlocks.TestCase


def found(hits: Hits, free: int = 10) -> tuple[CountedKv, Job]:
    """A job of 64 tokens, 4 blocks, of which the engine's cache has `hits`."""
    return CountedKv(20, 16, free, {}, lambda _: hits), Job("a", 0.0, 64, 10)


@pytest.mark.parametrize(
    ("hits", "needed"),
    [(Hits(), 4), (Hits(48, 0), 1), (Hits(48, 3), 4), (Hits(48, 1), 2)],
    ids=["nothing cached", "others use it", "nobody uses it", "one block is idle"],
)
def test_blocks_that_others_use_cost_nothing_and_idle_ones_are_taken(hits: Hits, needed: int):
    for free in (needed - 1, needed):
        kv, job = found(hits, free)
        cached = kv.cached_tokens(job)
        assert cached == hits.tokens
        assert kv.fits_without(job, cached, 64 - cached, []) == (free == needed)
        assert kv.admit(job, cached, 64 - cached) == (free == needed)
        assert kv.free_blocks == (0 if free == needed else free)
        if free == needed:
            assert kv.held_blocks(job) == 4


def test_what_a_plan_does_not_take_of_the_cache_it_computes():
    kv, job = found(Hits(48, 0))
    assert kv.admit(job, 16, 48)
    assert kv.free_blocks == 10 - 3


def test_hits_agree_with_the_blocks_themselves():
    real = KvCache(12, 16)
    user, idle = (Job(name, 0.0, 64, 10, prefix_keys=keys) for name, keys in (("u", (1, 2, 3, 4)), ("i", (5, 6, 7, 8))))
    for job in (user, idle):
        assert real.admit(job, 0, 64)
    real.release(idle)
    for keys, free_hits in (((1, 2, 3), 0), ((5, 6, 7), 3)):
        new = Job("new", 0.0, 64 + 16 * 5, 10, prefix_keys=keys)
        hits = Hits(real.cached_tokens(new), free_hits)
        assert hits.tokens == 48
        kv = CountedKv(12, 16, real.free_blocks, {"u": 4}, lambda _, hits=hits: hits)
        for tokens in (16, 96):
            for spare in range(4):
                assert kv.fits_without(new, 48, tokens, [], spare_blocks=spare) == real.fits_without(
                    new, 48, tokens, [], spare_blocks=spare
                )


def test_the_engine_is_asked_once_a_job():
    asked: list[str] = []

    def look_up(job: Job) -> Hits:
        asked.append(job.id)
        return Hits()

    kv, jobs = CountedKv(20, 16, 20, {}, look_up), [Job(name, 0.0, 64, 10) for name in "ab"]
    for job in jobs * 3:
        kv.fits_without(job, kv.cached_tokens(job), 64, [])
    assert asked == ["a", "b"]
