"""Real time changes when tokens are seen, never what happens: that is the simulator's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from sloguard.engine.real_time import Call, RealTime
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.request import Request, Stage
from sloguard.rng import stream
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, Speculation, View
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnTokens, Replica
from sloguard.sim.serve import simulate

TIME = BatchTime((Piece(2e-3, 5e-6, 5e-6, 0.0, 0.0),))
LIMITS = Limits(8, 256, 2048)
BLOCKS = 200  # 3200 tokens: enough for a few jobs, so that some are evicted


class Watched(Replica):
    """Counts how often the driver comes by."""

    visits = 0

    def sync(self) -> None:
        self.visits += 1
        super().sync()


class Ended:
    """What became of each job: the instant, and whether it completed."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[float, bool]] = {}

    def __call__(self, job: Job, at_s: float, completed: bool) -> None:
        assert job.id not in self.jobs, "told once"
        self.jobs[job.id] = at_s, completed


def maker(policy: Policy | None = None, speculation: Speculation | None = None) -> Callable[..., Watched]:
    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: object = None) -> Watched:
        kv = KvCache(BLOCKS)
        return Watched(kernel, policy or Fcfs(), LIMITS, kv, TIME, on_tokens, speculation=speculation)

    return make


def job(number: int, prompt: int = 100, output: int = 20) -> Job:
    return Job(id=f"{number}/0", arrival_s=0.0, prompt_tokens=prompt, output_tokens=output, stream=str(number))


def some_jobs(count: int) -> list[Job]:
    rng = stream(0, "jobs")
    return [job(number, int(rng.integers(1, 900)), int(rng.integers(1, 60))) for number in range(count)]


async def read(call: Call) -> int:
    done = 0
    while sizes := await call.sizes():
        done += sum(sizes)
    return done


def no_decline(job: Job) -> None:
    raise AssertionError("there is nobody else")


def with_engine(
    body: Callable[[RealTime, Ended], Awaitable[None]],
    make: Callable[..., Watched] | None = None,
) -> tuple[RealTime, Ended]:
    ended = Ended()
    engine = RealTime(make or maker(), ended, no_decline)

    async def main() -> None:
        async with engine.running():
            await body(engine, ended)

    asyncio.run(main())
    return engine, ended


def assert_empty(engine: RealTime) -> None:
    replica = engine.replica
    assert (engine.calls, replica.running, replica.queued) == (0, {}, [])
    assert replica.kv.free_blocks == replica.kv.blocks


@pytest.mark.parametrize("stall_s", [0.0, 0.1])
def test_what_happens_is_what_the_simulator_says_even_if_the_process_falls_behind(stall_s: float):
    jobs = some_jobs(40)
    tokens: dict[str, int] = {}

    async def body(engine: RealTime, _: Ended) -> None:
        async def serve(served: Job) -> None:
            tokens[served.id] = await read(engine.submit(served))

        tasks = []
        for served in jobs:
            tasks.append(asyncio.create_task(serve(served)))
            await asyncio.sleep(0.002)
            if len(tasks) == 20:
                time.sleep(stall_s)  # the whole process stalls
        await asyncio.gather(*tasks)

    engine, ended = with_engine(body)
    requests = [Request(j.stream, j.arrival_s, (Stage(j.prompt_tokens, j.output_tokens),)) for j in jobs]
    for timeline, served in zip(simulate(requests, maker()), jobs, strict=True):
        assert tokens[served.id] == served.output_tokens
        assert served.first_token_s == timeline.token_s[0]
        assert ended.jobs[served.id] == (timeline.token_s[-1], True)
    assert_empty(engine)


def test_a_plan_that_holds_gives_its_tokens_one_by_one_and_none_before_its_instant():
    looks: list[tuple[float, int]] = []

    async def body(engine: RealTime, _: Ended) -> None:
        call = engine.submit(asked)
        while sizes := await call.sizes():
            assert set(sizes) == {1}
            looks.append((engine.now_s(), len(sizes)))

    asked = job(0, output=300)
    with_engine(body)
    instants_s = simulate([Request("0", asked.arrival_s, (Stage(100, 300),))], maker())[0].token_s
    seen = np.cumsum([size for _, size in looks])
    assert len(looks) > 1
    assert seen[-1] == 300
    assert all(at_s >= instants_s[n - 1] for (at_s, _), n in zip(looks, seen, strict=True))


class Drafting(Fcfs):
    """Four tokens a step for whatever decodes."""

    def plan(self, now_s: float, view: View) -> Plan:
        plan = super().plan(now_s, view)
        decoding = [running for running in view.running if running.decoding and view.kv.grow(running, 4)]
        return replace(plan, tokens=plan.tokens | {one.id: 4 for one in decoding}, holds_until_s=float("-inf"))


def test_tokens_of_one_step_come_together():
    given: list[int] = []

    async def body(engine: RealTime, _: Ended) -> None:
        call = engine.submit(job(0, output=100))
        while sizes := await call.sizes():
            given.extend(sizes)

    with_engine(body, maker(Drafting(), Speculation(3, 1.0)))
    assert given == [1, *[4] * 24, 3]


def test_whoever_hangs_up_leaves_nothing_behind():
    rng = stream(0, "patience")

    async def body(engine: RealTime, _: Ended) -> None:
        async def serve(served: Job, patience_s: float) -> None:
            call = engine.submit(served)
            try:
                await asyncio.wait_for(read(call), patience_s)
            except TimeoutError:
                engine.abort(call)
                engine.abort(call)  # as a stream that ends does, whatever ended it
                assert call.ended

        await asyncio.gather(*(serve(j, float(rng.exponential(0.3))) for j in some_jobs(200)))
        while engine.replica.running or engine.replica.queued:  # the steps in progress
            await asyncio.sleep(0.01)

    engine, ended = with_engine(body)
    assert len(ended.jobs) == 200
    assert {completed for _, completed in ended.jobs.values()} == {True, False}
    assert_empty(engine)


def test_an_idle_engine_does_nothing():
    async def body(engine: RealTime, _: Ended) -> None:
        await read(engine.submit(job(0)))
        await asyncio.sleep(0.02)
        visits = engine.replica.visits  # pyright: ignore[reportAttributeAccessIssue]
        await asyncio.sleep(0.1)
        assert engine.replica.visits == visits  # pyright: ignore[reportAttributeAccessIssue]

    with_engine(body)


class Broken(Fcfs):
    def plan(self, now_s: float, view: View) -> Plan:
        if view.running:
            raise RuntimeError("out of ideas")
        return super().plan(now_s, view)


def test_a_policy_that_breaks_leaves_nobody_waiting():
    async def body(engine: RealTime, ended: Ended) -> None:
        calls = [engine.submit(job(number)) for number in range(3)]
        await asyncio.gather(*map(read, calls))
        assert [call.error for call in calls] == ["the engine failed: out of ideas"] * 3
        late = engine.submit(job(9))
        assert await late.sizes() == []
        assert late.error == engine.fault == "the engine failed: out of ideas"
        assert [completed for _, completed in ended.jobs.values()] == [False] * 4

    with_engine(body, maker(Broken()))


def test_what_is_under_way_at_the_end_is_told_so():
    calls: list[Call] = []

    async def body(engine: RealTime, _: Ended) -> None:
        calls.append(engine.submit(job(0, output=500)))
        await asyncio.sleep(0.01)

    engine, ended = with_engine(body)
    assert (calls[0].error, engine.calls) == ("the server is shutting down", 0)
    assert [completed for _, completed in ended.jobs.values()] == [False]
