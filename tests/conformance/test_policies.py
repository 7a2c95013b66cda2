"""What every policy owes: one suite over the whole table, in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.online import OnlineTime
from sloguard.registry import load
from sloguard.request import End, Prefix, Request, Stage, Timeline
from sloguard.route.slo import Sequential
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Lengths
from sloguard.sched.plan import Plan
from sloguard.sched.policy import POLICIES, Limits, Policy, Speculation, View
from sloguard.sim.kernel import Kernel
from sloguard.sim.noise import jitter
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import simulate, too_long
from sloguard.slo import StageSLO

TIME = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0), Piece(5e-3, 100e-6, 100e-6, 100e-9, 0.0)))
BLOCK = 16

every = pytest.mark.parametrize("name", sorted(POLICIES))


def policy(name: str) -> Policy:
    return load(POLICIES, name, "policy")()


@dataclass
class Unheld:
    """Asks the policy at every step."""

    inner: Policy

    def plan(self, now_s: float, view: View) -> Plan:
        return replace(self.inner.plan(now_s, view), holds_until_s=float("-inf"))


class Watched:
    """Holds every plan against the engine's bounds and against what was promised, and keeps count of the work."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.covered: dict[str, int] = {}  # tokens computed or found in the cache, by job
        self.evicted: set[str] = set()

    def plan(self, now_s: float, view: View) -> Plan:
        running = {job.id: job for job in view.running}
        waiting = {job.id: job for job in view.waiting}
        tiers = {job.id: job.tier for job in (*running.values(), *waiting.values())}
        made = self.inner.plan(now_s, view)
        stay = {name: job for name, job in running.items() if name not in made.evict}
        back = {name: running[name] for name in made.evict}  # vllm-priority may admit whom it has just evicted
        admitted = {name: (back | waiting)[name] for name in made.admit}

        assert set(made.evict) <= running.keys()
        assert len(set(made.evict)) == len(made.evict)
        assert made.tokens.keys() <= stay.keys() | admitted.keys()
        assert admitted.keys() <= made.tokens.keys(), "admitted, and nothing to do"
        assert len(stay) + len(admitted) <= view.limits.max_num_seqs
        assert sum(made.tokens.values()) <= view.limits.max_num_batched_tokens
        drafts = view.speculation.max_draft_tokens if view.speculation else 0
        for name, tokens in made.tokens.items():
            job = stay.get(name) or admitted[name]
            left = job.known_tokens - (made.admit[name] if name in admitted else job.computed_tokens)
            assert 1 <= tokens <= left + (drafts if job.decoding else 0)
            assert tokens == left or view.limits.enable_chunked_prefill or job.decoding
            self.covered[name] = self.covered.get(name, 0) + tokens + made.admit.get(name, 0)
        for name in made.decline:
            assert waiting[name].hops_left > 0
            assert name not in made.admit
        self._holds_room(made, view, stay, admitted)
        if made.holds_until_s > now_s:
            assert made.tokens == dict.fromkeys(running, 1)
            assert all(job.decoding for job in running.values())
            assert not made.admit
        for job in (*running.values(), *waiting.values()):
            if tiers[job.id] is Tier.PROMISED:
                assert job.tier is Tier.PROMISED, "a promise was taken back"
                assert job.id not in made.decline
        self.evicted |= set(made.evict)
        return made

    @staticmethod
    def _holds_room(made: Plan, view: View, stay: dict[str, Job], admitted: dict[str, Job]) -> None:
        """Growing to what was planned takes no more blocks: they have been taken."""
        free = view.kv.free_blocks
        assert 0 <= free <= view.kv.blocks
        for name, tokens in made.tokens.items():
            if name in stay:
                assert view.kv.grow(stay[name], tokens)
            else:
                job = admitted[name]
                assert view.kv.grow(job, made.admit[name] + tokens - job.computed_tokens)
        assert view.kv.free_blocks == free


class Blind(Lengths):
    """Guesses without having seen anything."""

    def output_tokens(self, job: Job) -> int:
        return job.generated_tokens + 20

    def mean_tokens(self, job: Job) -> int:
        return job.generated_tokens + 10

    def finished(self, job: Job) -> None:
        """Learns nothing."""


@dataclass(frozen=True)
class Engine:
    limits: Limits
    blocks: int
    caching: bool = True
    speculation: Speculation | None = None
    lengths: Lengths | None = None
    misjudged: float | None = None  # what policies think a step takes, as a share of the truth, until they learn

    def replica(self, served_by: Policy, kv: KvCache, kernel: Kernel, tokens: OnTokens, decline: OnDecline) -> Replica:
        return Replica(
            kernel,
            served_by,
            self.limits,
            kv,
            TIME,
            tokens,
            decline,
            predicted=OnlineTime(TIME.scaled(self.misjudged)) if self.misjudged else None,
            step_scale=jitter(np.random.default_rng(2), 0.1) if self.misjudged else None,
            lengths=self.lengths,
            speculation=self.speculation,
            drafts_rng=np.random.default_rng(1),
        )

    def serve(
        self, requests: Sequence[Request], policies: Sequence[Policy], timeout_s: float = float("inf")
    ) -> list[Timeline]:
        """On one replica for each policy, each emptied in the end."""
        caches = [KvCache(self.blocks, BLOCK, self.caching) for _ in policies]
        unused = iter(zip(policies, caches, strict=True))
        lines = simulate(
            requests,
            lambda kernel, tokens, decline: self.replica(*next(unused), kernel, tokens, decline),
            replicas=len(policies),
            router=Sequential(),
            request_timeout_s=timeout_s,
        )
        assert all(kv.free_blocks == kv.blocks for kv in caches)
        return lines


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    """Bounds that vLLM takes: without chunked prefill a step holds the longest prompt."""
    blocks = draw(st.one_of(st.just(18), st.integers(17, 60)))
    seqs = draw(st.one_of(st.just(6), st.integers(1, 8)))
    longest = draw(st.integers(blocks * BLOCK - 40, blocks * BLOCK))
    chunked = draw(st.booleans())
    limits = Limits(
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 600)) if chunked else longest + draw(st.integers(0, 100)),
        max_model_len=longest,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 24])) if chunked else 0,
        watermark_blocks=draw(st.sampled_from([0, 0, 2])),
        scheduler_reserve_full_isl=draw(st.booleans()),
    )
    speculation = draw(st.sampled_from([None, None, Speculation(3, 0.6)]))
    return Engine(limits, blocks, draw(st.booleans()), speculation)


# Lumps, because sizes drawn evenly shrink to cases in which nothing competes for memory.
slos = st.builds(StageSLO, st.sampled_from([None, 0.03, 0.3, 3.0]), st.sampled_from([None, 0.012, 0.03, 0.1]))
prompt_tokens = st.one_of(st.sampled_from([1, 16, 40, 60, 90, 130, 250]), st.integers(1, 250))
output_tokens = st.one_of(st.sampled_from([1, 2, 30, 60, 90, 120]), st.integers(1, 120))
stages = st.builds(Stage, prompt_tokens, output_tokens, slos)
arrivals_s = st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.5]), st.floats(0, 2))
prefixes = st.sampled_from([None, None, Prefix((1, 2, 3), 32), Prefix((1, 4), 40)])


@st.composite
def workloads(draw: st.DrawFn, most_stages: int = 2) -> list[Request]:
    parts = st.one_of(st.tuples(stages), st.lists(stages, min_size=1, max_size=most_stages))
    rows = draw(st.lists(st.tuples(arrivals_s, parts, prefixes), min_size=1, max_size=14))
    return [Request(str(at), due_s, tuple(parts), prefix=prefix) for at, (due_s, parts, prefix) in enumerate(rows)]


def told(lines: Sequence[Timeline]) -> list[tuple[object, ...]]:
    """What happened, as values that compare."""
    return [(line.end, line.ended_s, line.stage_due_s, tuple(line.token_s.tolist())) for line in lines]


def refused(request: Request, longest: int) -> bool:
    """Whether a stage, with the conversation so far, is too long to be served."""
    known = np.cumsum([stage.prompt_tokens + stage.output_tokens for stage in request.stages])
    return bool(too_long(int(known[-1]), 0, longest))


@every
@settings(max_examples=30, deadline=None)
@given(engine=engines(), requests=workloads())
def test_every_request_gets_its_tokens_and_no_plan_breaks_a_bound(
    name: str, engine: Engine, requests: list[Request]
) -> None:
    watched = Watched(Unheld(policy(name)))
    lines = engine.serve(requests, [watched])
    for request, line in zip(requests, lines, strict=True):
        if refused(request, engine.limits.max_model_len):
            assert line.end is End.REFUSED
            continue
        assert line.end is End.COMPLETED
        assert line.output_tokens == request.output_tokens
        known = 0
        for number, stage in enumerate(request.stages):
            job_id = f"{request.id}/{number}"
            known += stage.prompt_tokens + stage.output_tokens
            computed = watched.covered[job_id]
            if engine.speculation is None and job_id not in watched.evicted:
                assert computed == known - 1  # the last token is never read
            else:
                assert computed >= known - 1


@every
@settings(max_examples=40, deadline=None)
@given(engine=engines(), requests=workloads())
def test_equal_inputs_give_equal_runs_and_a_plan_that_holds_is_the_one_that_asking_would_give(
    name: str, engine: Engine, requests: list[Request]
) -> None:
    # Which drafts are accepted is drawn step by step, so it tells nothing to compare runs with drafts.
    plain = replace(engine, speculation=None)
    held = told(plain.serve(requests, [policy(name)]))
    assert held == told(plain.serve(requests, [policy(name)]))
    assert held == told(plain.serve(requests, [Unheld(policy(name))]))


@every
@settings(max_examples=20, deadline=None)
@given(engine=engines(), requests=workloads(), misjudged=st.sampled_from([0.5, 1.0, 2.0]))
def test_what_policies_learn_of_a_noisy_machine_does_not_depend_on_whether_plans_hold(
    name: str, engine: Engine, requests: list[Request], misjudged: float
) -> None:
    noisy = replace(engine, speculation=None, misjudged=misjudged)
    assert told(noisy.serve(requests, [policy(name)])) == told(noisy.serve(requests, [Unheld(policy(name))]))


@every
@settings(max_examples=15, deadline=None)
@given(engine=engines(), requests=workloads(), timeout_s=st.floats(0.02, 1.5))
def test_who_hangs_up_leaves_nothing_behind(
    name: str, engine: Engine, requests: list[Request], timeout_s: float
) -> None:
    lines = engine.serve(requests, [Watched(policy(name))], timeout_s)
    for request, line in zip(requests, lines, strict=True):
        assert line.end in (End.COMPLETED, End.TIMED_OUT, End.REFUSED)
        if line.end is End.COMPLETED:
            assert line.output_tokens == request.output_tokens
        assert line.last_s <= request.arrival_s + timeout_s + 1e-9


@every
@settings(max_examples=30, deadline=None)
@given(engine=engines(), requests=workloads(most_stages=1))
def test_a_policy_does_not_look_into_the_future(name: str, engine: Engine, requests: list[Request]) -> None:
    """Two worlds that differ in how long answers will be: plans are equal until the first answer ends in either."""
    engine = replace(engine, lengths=Blind(), speculation=None)
    worlds: tuple[list[Request], list[Request]] = ([], [])
    for request, other in zip(requests, reversed(requests), strict=True):
        lengths = request.stages[0].output_tokens, other.stages[0].output_tokens
        either = [replace(request, stages=(replace(request.stages[0], output_tokens=tokens),)) for tokens in lengths]
        if not any(refused(one, engine.limits.max_model_len) for one in either):
            for world, one in zip(worlds, either, strict=True):
                world.append(one)
    seen: list[list[tuple[object, ...]]] = []
    ends_s = [float("inf")]
    for world in worlds:
        recorded = Recorded(Unheld(policy(name)))
        ends_s += [line.last_s for line in engine.serve(world, [recorded])]
        seen.append(recorded.plans)
    before = [[plan for plan in plans if plan[0] < min(ends_s)] for plans in seen]  # type: ignore[operator]
    assert before[0] == before[1]


class Recorded:
    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.plans: list[tuple[object, ...]] = []

    def plan(self, now_s: float, view: View) -> Plan:
        made = self.inner.plan(now_s, view)
        order = (list(made.tokens.items()), list(made.admit.items()), made.evict, made.decline)
        self.plans.append((now_s, *order))
        return made


@every
@settings(max_examples=15, deadline=None)
@given(engine=engines(), requests=workloads())
def test_who_is_declined_is_served_by_the_next_replica(name: str, engine: Engine, requests: list[Request]) -> None:
    lines = engine.serve(requests, [Watched(policy(name)) for _ in range(3)])
    for request, line in zip(requests, lines, strict=True):
        if not refused(request, engine.limits.max_model_len):
            assert line.output_tokens == request.output_tokens


@every
def test_what_was_promised_is_kept_here_however_late_it_is(name: str) -> None:
    """Later stages come promised: no deadline that has passed, and no other replica, is a way out."""
    engine = Engine(Limits(4, 256, 512), 40)
    kernel, finished = Kernel(), []

    def tokens(jobs: list[Job], _: list[float]) -> None:
        finished.extend(job.id for job in jobs if job.generated_tokens >= job.output_tokens)

    def decline(job: Job) -> None:
        raise AssertionError(f"{job.id} was promised and is declined")

    replica = engine.replica(Watched(policy(name)), KvCache(engine.blocks, BLOCK), kernel, tokens, decline)
    for number in range(12):
        job = Job(str(number), 0.0, 300, 30, ttft_s=1e-3, tpot_s=1e-3, hops_left=2, tier=Tier.PROMISED)
        kernel.at(0.0, lambda job=job: replica.submit(job))
    kernel.run()
    assert sorted(finished, key=int) == [str(number) for number in range(12)]


@every
@pytest.mark.parametrize("seqs", [1, 3])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_longest_and_the_shortest_are_served_together(name: str, seqs: int, chunked: bool) -> None:
    longest = 40 * BLOCK
    limits = Limits(seqs, 64 if chunked else longest, longest, enable_chunked_prefill=chunked)
    sizes = [(longest - 1, 1), (1, 1), (1, longest - 1), (longest // 2, longest // 2), (longest - 1, 1), (1, 1)]
    slo = StageSLO(0.1, 0.02)
    requests = [Request(str(at), 0.0, (Stage(p, o, slo),)) for at, (p, o) in enumerate(sizes)]
    lines = Engine(limits, 40).serve(requests, [Watched(policy(name))])
    assert [line.output_tokens for line in lines] == [output for _, output in sizes]
