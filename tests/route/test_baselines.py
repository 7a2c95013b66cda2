from __future__ import annotations

from dataclasses import replace

import pytest

from clusters import ask, maker, state
from sloguard.request import Prefix
from sloguard.rng import stream
from sloguard.route.baselines import LeastJobs, LeastTokens, PowerOfTwo, PrefixAffinity, RoundRobin
from sloguard.route.prefixes import PrefixMap
from sloguard.route.slo import Sequential
from sloguard.sched.job import Job
from sloguard.sim.serve import simulate_cluster


def job(name: str = "j", keys: tuple[int, ...] = ()) -> Job:
    return Job(name, 0.0, 100, 10, prefix_keys=keys)


def test_round_robin_takes_turns():
    router = RoundRobin()
    assert [router.choose(0.0, job(), [state()] * 3, ()).replica for _ in range(5)] == [0, 1, 2, 0, 1]


def test_power_of_two_never_takes_the_busiest():
    router = PowerOfTwo(stream(0, "router"))
    states = [state(running=3), state(waiting=9), state(running=1, waiting=1)]
    chosen = {router.choose(0.0, job(), states, ()).replica for _ in range(50)}
    assert chosen == {0, 2}


def test_least_jobs_takes_turns_among_equals_and_shuns_queues_on_full_caches():
    router = LeastJobs()
    assert [router.choose(0.0, job(), [state()] * 3, ()).replica for _ in range(4)] == [0, 1, 2, 0]
    full = state(running=2, waiting=1, blocks=100, free_blocks=0)
    assert router.choose(0.0, job(), [full, state(running=5, blocks=100, free_blocks=90)], ()).replica == 1
    roomy = replace(full, free_blocks=60)
    assert router.choose(0.0, job(), [roomy, state(running=5, blocks=100, free_blocks=90)], ()).replica == 0


def test_least_tokens_counts_queue_and_memory():
    states = [state(queued_tokens=50, kv_tokens=60), state(kv_tokens=100), state(queued_tokens=101)]
    assert LeastTokens().choose(0.0, job(), states, ()).replica == 1


def test_sequential_asks_all_from_the_next_on_and_the_last_has_to_serve():
    router = Sequential()
    states = [state()] * 3
    assert router.choose(0.0, job(), states, ()).replica == 0
    route = router.choose(0.0, job(), states, ())
    seen = [(route.replica, route.hops_left)]
    while route.hops_left:
        route = router.choose(0.0, job(), states, [replica for replica, _ in seen])
        seen.append((route.replica, route.hops_left))
    assert seen == [(1, 2), (2, 1), (0, 0)]
    few = Sequential(tries=1)
    assert few.choose(0.0, job(), states, ()).hops_left == 0


def test_affinity_follows_the_prefix_until_its_holder_has_too_much_to_do():
    router = PrefixAffinity(slack_tokens=100)
    idle = [state(), state()]
    assert router.choose(0.0, job("a", (1, 2, 3)), [state(kv_tokens=1), state()], ()).replica == 1
    assert router.choose(0.0, job("b", (1, 2, 9)), idle, ()).replica == 1
    assert router.choose(0.0, job("c", (7, 8, 9)), idle, ()).replica == 0  # another beginning
    busy = [state(), state(queued_tokens=101)]
    assert router.choose(0.0, job("d", (1, 2, 3)), busy, ()).replica == 0
    assert router.choose(0.0, job("e", (1, 2, 3)), idle, ()).replica == 0  # it was sent there last


@pytest.mark.parametrize("slack", ["slack_tokens", "slack_share"])
@pytest.mark.parametrize("value", [-5, float("nan")])
def test_slack_below_nothing_is_refused(slack: str, value: float):
    with pytest.raises(ValueError, match=slack):
        PrefixAffinity(**{slack: value})  # type: ignore[arg-type]


def test_the_map_of_prefixes_is_bounded_and_forgets_tails_before_heads():
    prefixes = PrefixMap(blocks=5)
    prefixes.sent(job("a", (1, 2, 3, 4)), 0)
    prefixes.sent(job("b", (5, 6, 7)), 1)
    assert prefixes.find(job("a", (1, 2, 3, 4))) == (0, 2)
    assert prefixes.find(job("b", (5, 6, 8))) == (1, 2)
    assert prefixes.find(job("c", (9,))) is None
    assert prefixes.find(job("d")) is None


def test_affinity_computes_less_than_turns_where_prompts_share_beginnings():
    """Six families of prompts, two of which fit a replica's memory."""
    rng = stream(0, "families")
    requests = [
        ask(i, 0.05 * i, 700, 5, prefix=Prefix((100 + family,) * 5, 128))
        for i, family in enumerate(rng.integers(6, size=120).tolist())
    ]
    makers = [maker(caching=True, blocks=128, tokens=1024)] * 3
    computed = {
        type(router).__name__: sum(r.stats.step_tokens for r in simulate_cluster(requests, makers, router).replicas)
        for router in (RoundRobin(), PrefixAffinity())
    }
    assert computed["PrefixAffinity"] < 0.5 * computed["RoundRobin"]
