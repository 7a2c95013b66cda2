from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from clusters import LINEAR, ONE_SECOND, Choosy, ask, maker
from sloguard.request import End, Stage
from sloguard.route.base import ReplicaState, Route
from sloguard.route.baselines import LeastTokens, RoundRobin
from sloguard.route.slo import Sequential
from sloguard.sched.job import Job, Tier
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sim.cluster import Cluster
from sloguard.sim.kernel import Kernel
from sloguard.sim.pools import Link, Pools
from sloguard.sim.replica import OnTokens
from sloguard.sim.serve import Service, serve, simulate, simulate_cluster
from sloguard.slo import StageSLO


class Noting:
    """Sends all to `replica` and keeps what it saw."""

    def __init__(self, replica: int = 0) -> None:
        self.replica = replica
        self.seen: list[tuple[float, list[ReplicaState]]] = []

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        self.seen.append((now_s, list(replicas)))
        return Route(self.replica)


class Sorting:
    """First come, first served, with a tier for each job by its application."""

    def plan(self, now_s: float, view: View) -> Plan:
        for job in view.waiting:
            if job.tier is Tier.NEW:
                job.tier = Tier.PROMISED if job.app.startswith("tight") else Tier.BEST_EFFORT
        return Choosy().plan(now_s, view)


def test_a_fresh_view_is_what_the_replica_is_doing_at_this_instant():
    """Chunks of 256: at 2.5 s the first job has made 1 token of a 300-token prompt; the second waits for its step."""
    slo = StageSLO(ttft_s=9.0, tpot_s=0.5)
    noting = Noting()
    requests = [ask(0, 0.0, 300, 20, slo=slo), ask(1, 2.5, 100, 5, slo=slo), ask(2, 2.75, 40, 5), ask(3, 10.5, 1, 1)]
    simulate_cluster(requests, [maker(time=ONE_SECOND)], noting)
    _, [view] = noting.seen[2]
    assert (view.taken_s, view.running, view.waiting, view.decodes) == (2.75, 1, 1, 1)
    assert (view.kv_tokens, view.queued_tokens, view.waiting_blocks) == (300, 100, 7)
    assert view.due == ((11.5, 100),)
    assert view.paces == ((0.5, 2),)
    assert view.free_blocks == 64 - 19
    _, [later] = noting.seen[3]  # steps of a holding plan count up to now
    assert later.kv_tokens == 300 + 8 + 100 + 7 - 1 + 40 + 7 - 1 - 40 - 100 - 12  # the two others ended at 8 s


def test_a_stale_view_is_that_of_the_last_tick():
    noting = Noting()
    requests = [ask(i, at_s, 100, 50) for i, at_s in enumerate([0.1, 0.2, 1.05, 1.9, 2.3, 900.0])]
    simulate_cluster(requests, [maker(time=ONE_SECOND)], noting, stale_s=1.0)
    assert [view.taken_s for _, [view] in noting.seen[:5]] == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert [view.jobs for _, [view] in noting.seen] == [0, 0, 2, 2, 4, 0]


def test_a_view_nobody_looks_at_changes_nothing():
    requests = [ask(i, 0.02 * i, 200, 30) for i in range(60)]
    lines = [
        [line.token_s.tolist() for line in simulate(requests, maker(), replicas=2, router=router, stale_s=stale_s)]
        for router, stale_s in ((RoundRobin(), 0.0), (RoundRobin(), 0.01), (RoundRobin(), 1.0))
    ]
    assert lines[0] == lines[1] == lines[2]


def test_two_replicas_serve_what_one_cannot_and_they_need_not_be_alike():
    slow = replace(LINEAR, cpu_step_s=1.0)
    requests = [ask(i, 0.05 * i, 200, 30) for i in range(80)]
    even = simulate_cluster(requests, [maker(), maker()], LeastTokens())
    lame = simulate_cluster(requests, [maker(), maker(time=slow)], LeastTokens())
    shares = [[replica.stats.finished.total() for replica in done.replicas] for done in (even, lame)]
    assert abs(shares[0][0] - shares[0][1]) < 10
    assert shares[1][0] > 2 * shares[1][1]
    with pytest.raises(ValueError, match="one size"):
        simulate_cluster(
            requests, [maker(), lambda *given: (made := maker()(*given), setattr(made.kv, "block_tokens", 32))[0]]
        )


def test_the_smallest_replica_says_what_is_too_long():
    lines = simulate_cluster([ask(0, 0.0, 600, 10)], [maker(blocks=64), maker(blocks=32)]).timelines
    assert lines[0].end is End.REFUSED


def test_a_declined_job_goes_on_after_a_hop_and_the_last_replica_serves_it():
    """Nobody wants it: 3 replicas decline or must serve, 0.25 s apart, and the deadline stays the first one."""
    policies = [Choosy(avoid=["default/answer"]) for _ in range(3)]
    makers = [maker(lambda policy=policy: policy, time=ONE_SECOND) for policy in policies]
    done = simulate_cluster([ask(0, 1.0, 10, 1)], makers, Sequential(), hop_s=0.25)
    assert [policy.asked for policy in policies] == [["0/0"]] * 3
    assert (done.hops, done.timelines[0].token_s.tolist()) == (2, [2.5])
    assert [replica.stats.finished.total() for replica in done.replicas] == [0, 0, 1]


def test_a_client_that_hangs_up_while_its_job_is_sent_on_is_forgotten():
    makers = [maker(lambda: Choosy(avoid=["default/answer"]), time=ONE_SECOND)] * 2
    done = simulate_cluster(
        [ask(0, 1.0, 10, 1), ask(1, 5.0, 1, 1)], makers, Sequential(), hop_s=2.0, request_timeout_s=1.5
    )
    assert [line.end for line in done.timelines] == [End.TIMED_OUT] * 2
    assert all(replica.stats.steps == 0 for replica in done.replicas)


def test_later_stages_stay_where_their_conversation_lies():
    stages = [Stage(20, 5), Stage(20, 5)]
    requests = [ask(i, 0.3 * i, 200, 5, more=stages) for i in range(20)]
    done = simulate_cluster(requests, [maker(caching=True, blocks=256)] * 3, RoundRobin())
    computed = sum(replica.stats.step_tokens for replica in done.replicas)
    # What the stages add, and at most a partial block of history again at each turn.
    assert computed <= 20 * (200 + 20 + 20 + 3 * 5 + 2 * 16)
    assert [replica.stats.finished.total() for replica in done.replicas] == [21, 21, 18]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("more_tokens", "timeout_s"), [(20, 1e9), (2000, 1e9), (20, 9.5)])
def test_a_conversation_that_ended_is_forgotten_however_it_ended(split: bool, more_tokens: int, timeout_s: float):
    """Served, its second stage refused as too long, or given up in it."""
    made: list[Cluster | Pools] = []

    def service(kernel: Kernel, on_tokens: OnTokens) -> Service:
        one = maker(time=ONE_SECOND)
        made.append(
            Pools(kernel, [one], [one], Link(1.0, 1e6), on_tokens)
            if split
            else Cluster(kernel, [one, one], RoundRobin(), on_tokens)
        )
        return made[0]

    requests = [ask(i, 20.0 * i, 50, 5, more=[Stage(more_tokens, 5)]) for i in range(3)]
    ends = {line.end for line in serve(requests, service, request_timeout_s=timeout_s).timelines}
    assert ends == {End.TIMED_OUT if timeout_s < 10 else End.REFUSED if more_tokens == 2000 else End.COMPLETED}
    assert not (made[0]._homes if isinstance(made[0], Pools) else made[0]._home)  # pyright: ignore[reportPrivateUsage]


def test_a_promise_holds_for_the_stages_after_it_and_is_reported():
    requests = [ask(i, 0.0, 10, 3, more=[Stage(5, 2)], slo_class=c) for i, c in enumerate(["tight", "loose", "tight"])]
    done = simulate_cluster(requests, [maker(Sorting)])
    assert done.tiers == [Tier.PROMISED, Tier.BEST_EFFORT, Tier.PROMISED]
    assert done.requests_by_tier == {Tier.PROMISED: 2, Tier.BEST_EFFORT: 1}
    assert done.replicas[0].stats.finished == {Tier.PROMISED: 4, Tier.BEST_EFFORT: 2}
