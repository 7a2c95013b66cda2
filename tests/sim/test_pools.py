from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import ONE_SECOND, ask, maker
from sloguard.request import End, Request, Stage
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sim.kernel import Kernel
from sloguard.sim.pools import Link, Pools, whole_prompts
from sloguard.sim.replica import OnTokens, Planner
from sloguard.sim.serve import Run, serve

FAST = Link(kv_token_bytes=1.0, bytes_s=1e6)
SLOW = Link(kv_token_bytes=1.0, bytes_s=100.0, latency_s=0.5)


class Watched:
    """FCFS; `kinds` are the prompt and decode tokens of each step."""

    def __init__(self) -> None:
        self.kinds: list[tuple[int, int]] = []

    def plan(self, now_s: float, view: View) -> Plan:
        made = Fcfs().plan(now_s, view)
        waiting = {job.id: job for job in [*view.running, *view.waiting]}
        jobs = [(waiting[job_id], tokens) for job_id, tokens in made.tokens.items()]
        self.kinds.append(
            (
                sum(tokens for job, tokens in jobs if not job.generated_tokens),
                sum(tokens for job, tokens in jobs if job.generated_tokens),
            )
        )
        assert 0 <= view.kv.free_blocks <= view.kv.blocks
        return made


def pools(
    requests: Sequence[Request], link: Link, prefill: int = 1, decode: int = 1, timeout_s: float = 1e9, **bounds: object
) -> tuple[Run, list[Watched]]:
    watched = [Watched() for _ in range(prefill + decode)]
    makers = [
        maker(lambda policy=policy: policy, limits=whole_prompts if at < prefill else (lambda same: same), **bounds)  # type: ignore[arg-type]
        for at, policy in enumerate(watched)
    ]

    def split(kernel: Kernel, on_tokens: OnTokens) -> Pools:
        return Pools(kernel, makers[:prefill], makers[prefill:], link, on_tokens)

    return serve(requests, split, request_timeout_s=timeout_s), watched


def test_one_request_by_hand():
    """A second for the prompt, however long; 0.5 s + 300 tokens at 100 tokens/s across; then a second a token."""
    done, [prefill, decode] = pools([ask(0, 1.0, 300, 3)], SLOW, time=ONE_SECOND)
    assert done.timelines[0].token_s.tolist() == [2.0, 6.5, 7.5]
    assert (prefill.kinds[0], decode.kinds[0]) == ((300, 0), (0, 1))


def test_a_link_carries_one_prompt_after_the_other():
    done, _ = pools([ask(i, 0.0, 100, 2) for i in range(3)], SLOW, time=ONE_SECOND)
    assert [line.token_s[1] for line in done.timelines] == [3.5, 5.0, 6.5]  # 1.5 s each, then a step
    two, _ = pools([ask(i, 0.0, 100, 2) for i in range(4)], SLOW, prefill=2, time=ONE_SECOND)
    assert [line.token_s[1] for line in two.timelines] == [3.5, 3.5, 5.0, 5.0]


loads = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 300), st.integers(1, 60), st.booleans()), min_size=1, max_size=20
).map(
    lambda rows: [
        ask(i, at_s, prompt, output, more=[Stage(30, 4)] if more else ())
        for i, (at_s, prompt, output, more) in enumerate(sorted(rows))
    ]
)


@settings(max_examples=50, deadline=None)
@given(loads, st.integers(1, 2), st.integers(1, 2), st.booleans(), st.sampled_from([FAST, SLOW]), st.integers(27, 60))
def test_every_token_is_served_once_and_memory_is_given_back(
    requests: list[Request], prefill: int, decode: int, caching: bool, link: Link, blocks: int
):
    done, watched = pools(requests, link, prefill, decode, caching=caching, blocks=blocks, seqs=6)
    for request, line in zip(requests, done.timelines, strict=True):
        assert line.end is End.COMPLETED
        assert line.output_tokens == request.output_tokens
        assert np.all(np.diff(line.token_s) > 0)
    assert all(replica.kv.free_blocks == replica.kv.blocks for replica in done.replicas)
    assert not any(tokens for policy in watched[:prefill] for _, tokens in policy.kinds)
    if not any(len(request.stages) > 1 for request in requests):
        assert not any(tokens for policy in watched[prefill:] for tokens, _ in policy.kinds)
    stages = [stage for request in requests for stage in request.stages]
    history = sum(r.stages[0].prompt_tokens + r.stages[0].output_tokens for r in requests if len(r.stages) > 1)
    asked = sum(stage.prompt_tokens for stage in stages) + history
    if not sum(replica.stats.evictions for replica in done.replicas):
        prompts = [sum(tokens for tokens, _ in policy.kinds) for policy in watched]
        assert sum(prompts) <= asked if caching else sum(prompts) == asked
        decoded = sum(replica.stats.step_tokens for replica in done.replicas[prefill:]) - sum(prompts[prefill:])
        assert decoded == sum(stage.output_tokens - 1 for stage in stages)
    again, _ = pools(requests, link, prefill, decode, caching=caching, blocks=blocks, seqs=6)
    assert [line.token_s.tolist() for line in again.timelines] == [line.token_s.tolist() for line in done.timelines]


def test_prompts_wait_where_they_were_computed_until_a_decode_replica_has_room():
    """600-token prompts and 64 blocks: one at a time decodes, one more is held, and the third is not begun."""
    done, _ = pools([ask(i, 0.0, 600, 11) for i in range(3)], FAST, time=ONE_SECOND)
    first = [line.token_s[0] for line in done.timelines]
    second = [line.token_s[1] for line in done.timelines]
    # Crossing takes 0.6 ms; the next crossing begins when the ten decodes before it end.
    assert first == pytest.approx([1.0, 2.0, 12.0], abs=0.01)
    assert second == pytest.approx([2.0, 12.0, 22.0], abs=0.01)


@pytest.mark.parametrize("timeout_s", [0.5, 1.5, 2.0, 3.0, 4.2, 7.0])
def test_a_client_may_hang_up_at_any_point(timeout_s: float):
    requests = [ask(i, 0.0, 500, 40) for i in range(4)] + [ask(9, 200.0, 500, 3)]
    done, _ = pools(requests, SLOW, timeout_s=timeout_s, time=ONE_SECOND)
    last = done.timelines[-1]
    assert {line.end for line in done.timelines[:-1]} == {End.TIMED_OUT}
    assert last.output_tokens == sum(instant <= timeout_s for instant in (1.0, 7.5, 8.5))
    assert all(replica.kv.free_blocks == replica.kv.blocks for replica in done.replicas)


def test_transferred_tokens_need_memory_but_no_work_until_they_are_lost():
    kv = KvCache(10)
    job = Job("j", 0.0, 100, 20, generated_tokens=1, transferred_tokens=100)
    assert kv.cached_tokens(job) == 100
    assert kv.admit(job, 100, 1)
    assert kv.free_blocks == 3
    kv.release(job)
    assert kv.free_blocks == 10
    again = Job("k", 0.0, 33, 20, stream="j", transferred_tokens=5)
    assert kv.cached_tokens(again) == 32  # what came is cached, and may be more than what comes
    lost = Job("l", 0.0, 100, 20, generated_tokens=1)
    assert kv.cached_tokens(lost) == 0


def test_a_later_stage_finds_its_conversation_where_it_was_decoded():
    request = ask(0, 0.0, 160, 16, more=[Stage(1, 4)])
    done, (prefill, decode) = pools([request], FAST, caching=True, blocks=60)
    assert sum(tokens for tokens, _ in prefill.kinds) == 160
    assert sum(tokens for tokens, _ in decode.kinds) <= 17  # what no full block holds
    assert done.timelines[0].end is End.COMPLETED


def test_no_more_comes_to_a_decode_replica_than_it_has_room_for_though_a_step_is_decided_ahead():
    """21 blocks for each conversation, 64 in all: with what arrived after a step was decided, three fit."""
    seen: list[int] = []

    class Counting:
        def plan(self, now_s: float, view: View) -> Plan:
            seen.append(sum(-(-job.known_tokens // 16) for job in [*view.running, *view.waiting]))
            return Fcfs().plan(now_s, view)

    ahead = Planner(async_lag=True)

    def split(kernel: Kernel, on_tokens: OnTokens) -> Pools:
        prefill = maker(limits=whole_prompts, time=ONE_SECOND)
        return Pools(kernel, [prefill], [maker(Counting, time=ONE_SECOND, planner=ahead)], FAST, on_tokens)

    serve([ask(i, 0.0, 320, 10) for i in range(6)], split)
    assert max(seen) == 63


def test_both_pools_need_a_replica():
    with pytest.raises(ValueError, match="at least one"):
        Pools(Kernel(), [], [maker()], FAST, lambda jobs, times_s: None)
