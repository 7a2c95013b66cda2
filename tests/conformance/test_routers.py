"""What every router owes: one suite over the whole table."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import ONE_SECOND, Choosy, ask, maker, state
from sloguard.registry import load
from sloguard.request import End, Prefix, Request, Stage
from sloguard.rng import stream
from sloguard.route.base import ROUTERS, ReplicaState, Route, Router
from sloguard.sched.job import Job
from sloguard.sim.serve import Run, simulate_cluster
from sloguard.slo import StageSLO

every = pytest.mark.parametrize("name", ROUTERS)


def router(name: str, seed: int = 0) -> Router:
    made = load(ROUTERS, name, "router", "choose")
    return made(**({"rng": stream(seed, "router")} if "rng" in inspect.signature(made).parameters else {}))


class Watched:
    """A router whose choices are held against what routers owe."""

    def __init__(self, inner: Router) -> None:
        self.inner = inner
        self.hops: dict[str, int] = {}
        self.sent = Counter[int]()

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        route = self.inner.choose(now_s, job, replicas, tried)
        assert 0 <= route.replica < len(replicas)
        assert 0 <= route.hops_left < self.hops.get(job.id, len(replicas) + 1)
        assert route.hops_left == 0 or route.replica not in tried
        assert all(replica.taken_s <= now_s for replica in replicas)
        self.hops[job.id] = route.hops_left
        self.sent[route.replica] += 1
        return route


def requests_of(rows: list[tuple[float, int, int, int, bool]]) -> list[Request]:
    rows = sorted(rows)
    return [
        ask(
            number,
            at_s,
            prompt,
            output,
            prefix=Prefix(tuple(range(family, family + 4)), 32) if family else None,
            slo=StageSLO(ttft_s=0.5, tpot_s=0.1) if promised else StageSLO(),
            more=[Stage(20, 5, StageSLO(ttft_s=1.0))] if family == 2 else (),
        )
        for number, (at_s, prompt, output, family, promised) in enumerate(rows)
    ]


loads = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 200), st.integers(1, 40), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=25,
).map(requests_of)


def run(name: str, requests: list[Request], replicas: int, full: int, stale_s: float, hop_s: float) -> Run:
    makers = [maker(lambda: Choosy(full), caching=True)] * replicas
    return simulate_cluster(requests, makers, Watched(router(name)), stale_s=stale_s, hop_s=hop_s)


@every
@settings(max_examples=25, deadline=None)
@given(
    requests=loads,
    replicas=st.integers(1, 4),
    full=st.integers(0, 6),
    stale_s=st.sampled_from([0.0, 0.1, 0.7]),
    hop_s=st.sampled_from([0.0, 0.05]),
)
def test_every_request_is_served_once_whatever_replicas_decline_and_however_stale_the_view(
    name: str, requests: list[Request], replicas: int, full: int, stale_s: float, hop_s: float
) -> None:
    done = run(name, requests, replicas, full, stale_s, hop_s)
    for request, line in zip(requests, done.timelines, strict=True):
        assert line.end is End.COMPLETED
        assert line.output_tokens == request.output_tokens
    assert sum(replica.stats.finished.total() for replica in done.replicas) == sum(len(r.stages) for r in requests)
    assert sum(replica.stats.declined for replica in done.replicas) == done.hops <= replicas * len(requests)
    assert all(replica.kv.free_blocks == replica.kv.blocks for replica in done.replicas)
    again = run(name, requests, replicas, full, stale_s, hop_s)
    assert [line.token_s.tolist() for line in again.timelines] == [line.token_s.tolist() for line in done.timelines]


@every
def test_one_replica_behind_a_router_serves_as_if_alone(name: str) -> None:
    requests = requests_of([(0.01 * i, 50 + i, 10, i % 3, i % 2 == 0) for i in range(40)])
    behind = simulate_cluster(requests, [maker()], Watched(router(name)))
    alone = simulate_cluster(requests, [maker()])
    assert [line.token_s.tolist() for line in behind.timelines] == [line.token_s.tolist() for line in alone.timelines]


@every
@pytest.mark.parametrize("stale_s", [0.0, 0.25])
def test_every_replica_gets_its_share(name: str, stale_s: float) -> None:
    """Poisson arrivals at 60 % load: each of 4 replicas serves 15 to 35 % of the jobs."""
    arrivals = np.cumsum(stream(0, "arrivals").exponential(1 / 80, 800))
    rows = [(float(at_s), 300, 6, 0, True) for at_s in arrivals]
    watched = Watched(router(name))
    simulate_cluster(requests_of(rows), [maker(caching=True, blocks=256)] * 4, watched, stale_s=stale_s)
    shares = [watched.sent[at] / 800 for at in range(4)]
    herds = stale_s and name in ("least-tokens", "prefix-affinity")  # all of a quarter second go to one
    assert herds or 0.15 < min(shares) <= max(shares) < 0.35


@every
def test_waiting_lies_between_one_shared_queue_and_separate_ones(name: str) -> None:
    """M/D/1 on a random split waits load / (2*(1 - load)) s; c servers on one queue wait less: 2 % to 105 % of it."""
    load, replicas = 0.7, 4
    arrivals = np.cumsum(stream(1, "arrivals").exponential(1 / (load * replicas), 8_000))
    rows = [ask(i, float(at_s), 1, 1) for i, at_s in enumerate(arrivals)]
    done = simulate_cluster(rows, [maker(seqs=1, time=ONE_SECOND)] * replicas, router(name))
    waits = [line.token_s[0] - line.due_s - 1.0 for line in done.timelines]
    assert 0.02 < np.mean(waits) / (load / (2 * (1 - load))) < 1.05


@every
def test_a_snapshot_that_says_nothing_of_promises_is_enough(name: str) -> None:
    job = Job("j", 0.0, 100, 10)
    assert router(name).choose(0.0, job, [state(), state(), state()], ()).replica in range(3)
