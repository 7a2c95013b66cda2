from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import LINEAR, ONE_SECOND, ask, maker
from sloguard.perf.batch_time import BatchTime
from sloguard.request import End, Prefix, Request, Stage, Timeline
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, View
from sloguard.sched.priority import Priority
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import shared_keys, simulate, simulate_cluster
from sloguard.slo import StageSLO


class Watched:
    """FCFS with its plans held against the engine's bounds."""

    def __init__(self) -> None:
        self.computed = 0
        self.evictions = 0

    def plan(self, now_s: float, view: View) -> Plan:
        made = Fcfs().plan(now_s, view)
        assert sum(made.tokens.values()) <= view.limits.max_num_batched_tokens
        assert len(view.running) - len(made.evict) + len(made.admit) <= view.limits.max_num_seqs
        assert 0 <= view.kv.free_blocks <= view.kv.blocks
        self.computed += sum(made.tokens.values())
        self.evictions += len(made.evict)
        return replace(made, holds_until_s=float("-inf"))  # to be asked at every step


def serve(
    requests: Sequence[Request],
    *,
    seqs: int = 8,
    tokens: int = 64,
    blocks: int = 64,
    caching: bool = False,
    time: BatchTime = LINEAR,
    policy: Fcfs | Watched | None = None,
    timeout_s: float = float("inf"),
) -> tuple[list[Timeline], KvCache]:
    kv = KvCache(blocks, 16, caching)

    def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        return Replica(kernel, policy or Fcfs(), Limits(seqs, tokens, blocks * 16), kv, time, on_tokens, on_decline)

    return simulate(requests, replica, request_timeout_s=timeout_s), kv


def test_one_request_by_hand():
    """A prompt of 100 in chunks of 64 and 36, then 2 decodes: 4 steps of a second."""
    [line], _ = serve([ask(0, 5.0, 100, 3)], time=ONE_SECOND)
    assert line.token_s.tolist() == [7.0, 8.0, 9.0]
    assert (line.end, line.ttft_s, line.e2el_s) == (End.COMPLETED, 2.0, 4.0)
    assert line.ended_s == 9.0


def test_who_arrives_during_a_step_joins_the_next():
    lines, _ = serve([ask(0, 0.0, 10, 3), ask(1, 0.5, 10, 1)], time=ONE_SECOND)
    assert lines[0].token_s.tolist() == [1.0, 2.0, 3.0]
    assert lines[1].token_s.tolist() == [2.0]


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_is_that_of_an_m_d_1_queue(load: float):
    """One at a time, one second each, Poisson arrivals: mean wait = load / (2*(1 - load)) seconds."""
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / load, 25_000))
    lines, _ = serve([ask(i, float(t), 1, 1) for i, t in enumerate(arrivals)], seqs=1, time=ONE_SECOND)
    waits = np.array([line.token_s[0] - line.due_s - 1.0 for line in lines])
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.08)


requests_lists = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 200), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=20
).map(
    lambda rows: [
        ask(i, t, p, o, prefix=Prefix(tuple(range(family, family + 4)), 32) if family else None)
        for i, (t, p, o, family) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(requests_lists, st.integers(1, 8), st.integers(8, 128), st.integers(17, 60), st.booleans())
def test_every_token_is_served_once_in_order_within_memory(
    requests: list[Request], seqs: int, tokens: int, blocks: int, caching: bool
):
    watched = Watched()
    lines, kv = serve(requests, seqs=seqs, tokens=tokens, blocks=blocks, caching=caching, policy=watched)
    for request, line in zip(requests, lines, strict=True):
        assert line.end is End.COMPLETED
        assert line.output_tokens == request.output_tokens
        assert np.all(np.diff(line.token_s) > 0)
        assert line.token_s[0] > request.arrival_s
    assert kv.free_blocks == kv.blocks
    asked = sum(r.prompt_tokens + r.output_tokens - 1 for r in requests)
    if not caching and not watched.evictions:
        assert watched.computed == asked
    elif not caching:
        assert watched.computed > asked  # evicted work is done again
    again, _ = serve(requests, seqs=seqs, tokens=tokens, blocks=blocks, caching=caching)
    assert all(np.array_equal(a.token_s, b.token_s) for a, b in zip(lines, again, strict=True))


def test_eviction_delays_but_loses_nothing():
    watched = Watched()
    lines, _ = serve([ask(i, 0.0, 100, 200) for i in range(6)], blocks=40, tokens=512, policy=watched)
    assert watched.evictions > 0
    assert all(line.output_tokens == 200 for line in lines)


def test_too_long_a_request_is_refused_as_vllm_words_it():
    lines, _ = serve([ask(0, 0.0, 1000, 25), ask(1, 0.0, 10, 10)])
    assert lines[0].end is End.REFUSED
    assert lines[0].error.startswith("This model's maximum context length is 1024 tokens. However, you requested 25")
    assert lines[0].ended_s == 0.0
    assert lines[1].end is End.COMPLETED


def test_a_request_that_takes_too_long_is_given_up_and_frees_its_memory():
    lines, kv = serve([ask(0, 0.0, 10, 100), ask(1, 0.0, 10, 2)], seqs=1, time=ONE_SECOND, timeout_s=5.5)
    assert [line.end for line in lines] == [End.TIMED_OUT, End.TIMED_OUT]
    assert lines[0].output_tokens == 5
    assert lines[1].output_tokens == 0
    assert [line.ended_s for line in lines] == [5.5, 5.5]
    assert kv.free_blocks == kv.blocks


def test_stages_follow_one_another_and_the_next_prompt_holds_the_conversation():
    request = Request("r", 1.0, (Stage(64, 2), Stage(32, 2)))
    [line], _ = serve([request], time=ONE_SECOND)
    # 64 tokens: 1 step, 1 decode; then 64+2+32 = 98 tokens: 2 steps, 1 decode.
    assert line.token_s.tolist() == [2.0, 3.0, 5.0, 6.0]
    assert line.stage_due_s == (1.0, 3.0)
    [cached], _ = serve([request], time=ONE_SECOND, caching=True)
    assert cached.token_s.tolist() == [2.0, 3.0, 4.0, 5.0]  # 64 of the 98 are in the cache


def test_shared_prefixes_save_time_only_with_the_cache_on():
    prefix = Prefix((7, 8), 256)
    requests = [ask(i, float(i), 600, 1, prefix=prefix) for i in range(3)]
    cold, _ = serve(requests, tokens=4096, blocks=200)
    warm, _ = serve(requests, tokens=4096, blocks=200, caching=True)
    assert warm[0].ttft_s == cold[0].ttft_s
    assert warm[1].ttft_s < cold[1].ttft_s  # type: ignore[operator]


def test_keys_are_equal_exactly_where_the_text_is():
    def keys(ids: tuple[int, ...], prompt: int, width: int = 24) -> tuple[int, ...]:
        return shared_keys(ask(0, 0.0, prompt, 1, prefix=Prefix(ids, width)), prompt, 16)

    assert keys((1, 2), 100) == keys((1, 2), 60)
    assert len(keys((1, 2), 100)) == 3
    assert len(keys((1, 2), 40)) == 2  # blocks end with the prompt
    assert keys((1, 2), 100)[0] == keys((1, 3), 100)[0]
    assert keys((1, 2), 100)[1] != keys((1, 3), 100)[1]  # tokens 16-31 reach into the second id
    assert keys((2, 1), 100)[2] != keys((1, 1), 100)[2]  # equal id after another beginning


def test_memory_must_hold_the_longest_sequence():
    with pytest.raises(ValueError, match="can't hold one sequence"):
        Replica(Kernel(), Fcfs(), Limits(1, 64, 1024), KvCache(10), LINEAR, lambda jobs, times_s: None)


def test_urgency_is_the_first_tokens_promise_and_nothing_promised_comes_last():
    seen: dict[str, tuple[int, str, int]] = {}

    class Noting(Watched):
        def plan(self, now_s: float, view: View) -> Plan:
            seen.update({job.id: (job.priority, job.app, job.stages_left) for job in view.waiting})
            return super().plan(now_s, view)

    stages = (Stage(10, 2, StageSLO(ttft_s=0.25), "thinking"), Stage(10, 2))
    serve([Request("r", 0.0, stages, "tight")], policy=Noting())
    assert seen == {"r/0": (250, "tight/thinking", 1), "r/1": (10**9, "tight/answer", 0)}


def test_timelines_can_be_handed_out_one_by_one():
    requests = [ask(i, 0.1 * i, 50, 20) for i in range(30)]
    handed: list[Timeline] = []
    streamed = simulate_cluster(
        (request for request in requests), [maker()], on_done=lambda line, tier: handed.append(line)
    )
    kept = simulate_cluster(requests, [maker()])
    assert (streamed.timelines, len(kept.timelines), len(kept.tiers)) == ([], 30, 30)
    by_id = {line.request.id: line.token_s.tolist() for line in handed}
    assert by_id == {line.request.id: line.token_s.tolist() for line in kept.timelines}
    assert streamed.end_s == kept.end_s == max(line.last_s for line in handed)


def test_a_run_ends_when_enough_has_been_seen_and_the_rest_is_cancelled():
    requests = [ask(i, float(i), 10, 4) for i in range(20)]
    ended: list[str] = []

    def enough(line: Timeline) -> bool:
        ended.append(line.request.id)
        return len(ended) == 5

    done = simulate_cluster(requests, [maker(time=ONE_SECOND)], stop_when=enough)
    assert done.stopped
    assert ended == ["0", "1", "2", "3", "4"]
    assert [line.end for line in done.timelines] == [End.COMPLETED] * 5 + [End.CANCELLED] * 15
    assert done.timelines[7].output_tokens == 1  # under way: what came counts
    assert (done.timelines[19].sent_s, done.timelines[19].output_tokens) == (None, 0)


def test_requests_out_of_order_are_refused_and_sorted_where_a_list_is_simulated():
    requests = [ask(1, 3.0, 10, 2), ask(0, 1.0, 10, 2)]
    with pytest.raises(ValueError, match="has passed"):
        simulate_cluster(requests, [maker()])
    assert [line.request.id for line in simulate(requests, maker())] == ["1", "0"]


def test_two_that_come_at_once_end_under_vllms_priorities():
    """Of equal priority and arrival they would be evicted for each other, for ever."""

    def small(limits: Limits) -> Limits:
        return replace(limits, long_prefill_token_threshold=24, scheduler_reserve_full_isl=False)

    requests = [ask(i, 0.0, 90, 90) for i in range(2)]
    lines = simulate(requests, maker(Priority, tokens=300, blocks=17, limits=small), request_timeout_s=1e4)
    assert [line.end for line in lines] == [End.COMPLETED] * 2


def test_a_client_may_hang_up_at_the_instant_that_a_run_of_steps_ends():
    requests = [ask(0, 0.0, 10, 5), ask(1, 0.0, 10, 9)]
    lines = simulate(requests, maker(time=ONE_SECOND), request_timeout_s=5.0)
    assert [line.end for line in lines] == [End.TIMED_OUT] * 2
    assert [line.token_s.tolist() for line in lines] == [[1.0, 2.0, 3.0, 4.0]] * 2
