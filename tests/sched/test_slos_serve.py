from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.contract import judge_request
from sloguard.errors import SpecError
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.request import Request, Stage
from sloguard.sched.edf_sim import EdfSim
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, Speculation, View
from sloguard.sched.scene import KEPT_AFTER_S
from sloguard.sched.slos_serve import EXACT_UPTO, REPLAN_S, SlosServe
from sloguard.sim.replica import Replica
from sloguard.sim.serve import simulate_cluster
from sloguard.slo import Judgement, StageSLO, TpotRule

TIME = BatchTime((Piece(10e-3, 50e-6, 50e-6, 0.0, 0.0),))  # 800 tokens in 50 ms
LIMITS = Limits(256, 4096, 4096)


def job(name: str, prompt: int = 100, output: int = 50, ttft_s: float | None = 1.0, tpot_s: float | None = 0.05) -> Job:
    return Job(name, 0.0, prompt, output, ttft_s=ttft_s, tpot_s=tpot_s)


def decoding(kv: KvCache, one: Job, generated: int = 1, first_token_s: float = 0.0, tier: Tier = Tier.PROMISED) -> Job:
    one.tier, one.generated_tokens, one.first_token_s = tier, generated, first_token_s
    one.computed_tokens = one.known_tokens - 1
    assert kv.admit(one, 0, one.computed_tokens, whole=False)
    return one


def plan(
    policy: Policy,
    running: Sequence[Job] = (),
    waiting: Sequence[Job] = (),
    kv: KvCache | None = None,
    now_s: float = 0.0,
    limits: Limits = LIMITS,
    speculation: Speculation | None = None,
) -> Plan:
    kv = kv or KvCache(1000)
    return policy.plan(now_s, View(list(running), deque(waiting), kv, limits, TIME, Oracle(), speculation))


# Admission.


def test_what_can_be_kept_is_promised_and_starts():
    new = job("a")
    made = plan(SlosServe(), waiting=[new])
    assert new.tier is Tier.PROMISED
    assert made.tokens == {"a": 100}


def test_what_can_not_be_kept_is_declined_while_others_may_be_asked_and_is_best_effort_after_that():
    asked, last = job("asked", 4000, ttft_s=0.1), job("last", 4000, ttft_s=0.1)
    asked.hops_left = 1
    policy = SlosServe()
    made = plan(policy, waiting=[asked, last])
    assert made.decline == ("asked",)
    assert (asked.tier, last.tier) == (Tier.NEW, Tier.BEST_EFFORT)
    assert list(made.tokens) == ["last"]  # there is nothing else to do
    assert (policy.stats.declined, policy.stats.best_effort) == (1, 1)


def test_a_job_without_promises_is_best_effort_from_the_start():
    new = job("a", ttft_s=None, tpot_s=None)
    assert plan(SlosServe(), waiting=[new]).tokens == {"a": 100}
    assert new.tier is Tier.BEST_EFFORT


def test_what_could_not_be_promised_is_considered_again_while_it_is_in_time():
    policy = SlosServe()
    before, later = job("before", 3500, ttft_s=0.25), job("later", 1500, ttft_s=0.25)
    before.tier = Tier.PROMISED
    plan(policy, waiting=[before, later])
    assert later.tier is Tier.BEST_EFFORT
    plan(policy, waiting=[later], now_s=REPLAN_S)  # the other one hung up
    assert later.tier is Tier.PROMISED


def test_a_job_that_came_as_best_effort_is_not_promised_later():
    lost = job("lost")
    lost.tier = Tier.BEST_EFFORT
    policy = SlosServe()
    for now_s in (0.0, 0.2, 0.4):
        plan(policy, waiting=[lost], now_s=now_s)
    assert lost.tier is Tier.BEST_EFFORT


def test_a_later_stage_of_a_promised_request_is_served_before_new_ones_are_promised():
    stage, new = job("stage", 1500, ttft_s=0.11), job("new", 1500, ttft_s=0.10)
    stage.tier = Tier.PROMISED
    stage.tpot_s = new.tpot_s = 0.2
    made = plan(SlosServe(), waiting=[new, stage])
    assert next(iter(made.tokens)) == "stage"
    assert made.tokens["stage"] == 1500
    assert new.tier is Tier.BEST_EFFORT


def test_prefix_hits_are_work_that_need_not_be_done():
    kv = KvCache(1000)
    shared = tuple(range(200))
    before = Job("before", 0.0, 3200, 1, prefix_keys=shared)
    assert kv.admit(before, 0, 3200)
    cached, cold = job("cached", 3210, ttft_s=0.1), job("cold", 3210, ttft_s=0.1)
    cached.prefix_keys = shared
    plan(SlosServe(), [], [cached, cold], kv)
    assert (cached.tier, cold.tier) == (Tier.PROMISED, Tier.BEST_EFFORT)


def test_memory_is_promised_by_expected_length():
    kv = KvCache(256)
    jobs = [job("short", 1000, 100), job("long", 1000, 3000), job("none", 1000, 2500, ttft_s=1.1)]
    for one in jobs:
        one.ttft_s = 2.0
    policy = SlosServe()
    plan(policy, [], jobs, kv)
    assert [one.tier for one in jobs].count(Tier.PROMISED) == 1  # 256 blocks hold 4096 tokens


@pytest.mark.parametrize(("count", "way"), [(EXACT_UPTO, "dp"), (EXACT_UPTO + 1, "greedy")])
def test_the_choice_is_exact_for_few_and_greedy_for_many_and_says_so(count: int, way: str):
    policy = SlosServe()
    plan(policy, waiting=[job(f"j{i}", 1000, ttft_s=0.3) for i in range(count)])
    assert getattr(policy.stats, way) == 1
    edf = EdfSim()
    plan(edf, waiting=[job(f"j{i}", 1000, ttft_s=0.3) for i in range(count)])
    assert edf.stats.edf == 1


def test_bad_ablations_are_named():
    with pytest.raises(SpecError, match="admission"):
        SlosServe(admission="best")
    with pytest.raises(SpecError, match="fixed_batch"):
        SlosServe(fixed_batch=0)


# Batches.


def test_looser_tiers_skip_a_batch_that_prompts_need():
    kv = KvCache(1000)
    tight = decoding(kv, job("tight", tpot_s=0.05, ttft_s=0.05))
    loose = decoding(kv, job("loose", tpot_s=0.1, ttft_s=0.1), generated=2)
    assert loose.token_due_s == pytest.approx(0.3)  # its window opens at 0.2, after the batch
    prompt = job("prompt", 4000, ttft_s=3.0)
    prompt.tier = Tier.PROMISED
    made = plan(SlosServe(), [tight, loose], [prompt], kv, now_s=0.05)
    assert made.tokens["tight"] == 1
    assert "loose" not in made.tokens
    assert 600 < made.tokens["prompt"] < 800  # what fits until the nearest deadline, and no more


def test_without_prompts_everything_decodes_and_the_plan_holds():
    kv = KvCache(1000)
    jobs = [decoding(kv, job(f"j{i}")) for i in range(3)]
    made = plan(SlosServe(), jobs, (), kv)
    assert made.tokens == {"j0": 1, "j1": 1, "j2": 1}
    assert made.holds_until_s > 1.0


def test_a_batch_ends_when_a_prompt_that_can_be_finished_is_due():
    urgent, patient = job("urgent", 100, ttft_s=0.03), job("patient", 3000, ttft_s=2.0)
    for one in (urgent, patient):
        one.tier = Tier.PROMISED
    made = plan(SlosServe(), [], [patient, urgent])
    assert made.tokens["urgent"] == 100
    assert TIME.pieces[0].base_s + 50e-6 * sum(made.tokens.values()) <= 0.03


def test_a_fixed_batch_is_never_exceeded():
    kv = KvCache(1000)
    running = [decoding(kv, job(f"d{i}")) for i in range(10)]
    waiting = [job(f"w{i}", 500) for i in range(5)]
    made = plan(SlosServe(fixed_batch=256), running, waiting, kv)
    assert sum(made.tokens.values()) == 256


def test_drafts_are_verified_only_with_speculation():
    offered = Speculation(4, 0.8)
    for speculation, longest in ((True, 2), (False, 1)):
        kv = KvCache(1000)
        running = [decoding(kv, job("d", tpot_s=0.03))]
        made = plan(SlosServe(speculation=speculation), running, (), kv, speculation=offered)
        assert made.tokens["d"] >= longest if speculation else made.tokens["d"] == longest


@pytest.mark.parametrize(("acceptance", "verified"), [(0.8, 5), (0.0, 1)])
def test_best_effort_drafts_what_pays_in_the_time_that_promises_leave(acceptance: float, verified: int):
    kv = KvCache(1000)
    spare = decoding(kv, job("spare", ttft_s=None, tpot_s=None), tier=Tier.BEST_EFFORT)
    promised = decoding(kv, job("promised", tpot_s=0.3))
    for running in ([spare], [spare, promised]):
        made = plan(SlosServe(), running, (), kv, speculation=Speculation(4, acceptance))
        assert made.tokens["spare"] == verified


# Best effort and memory.


def test_best_effort_jobs_are_evicted_first_and_the_youngest_of_them():
    kv = KvCache(14)
    elder, younger = (decoding(kv, job(f"b{i}", 40, ttft_s=None), tier=Tier.BEST_EFFORT) for i in range(2))
    younger.arrival_s = 0.1
    promised = [decoding(kv, job(f"p{i}", 63), tier=Tier.PROMISED) for i in range(2)]  # each needs a fifth block
    for one in promised:
        one.generated_tokens, one.computed_tokens = 2, 64
    made = plan(SlosServe(), [elder, younger, *promised], (), kv, now_s=0.2)
    assert made.evict == ("b1",)
    assert {"p0", "p1", "b0"} <= made.tokens.keys()


def test_of_the_promised_the_one_that_has_computed_least_is_evicted():
    kv = KvCache(12)
    jobs = [decoding(kv, job(name, prompt), tier=Tier.PROMISED) for name, prompt in (("a", 64), ("b", 48), ("c", 80))]
    made = plan(SlosServe(), jobs, (), kv)
    assert made.evict == ("b",)
    assert made.tokens == {"a": 1, "c": 1}


def test_without_best_effort_the_rest_waits_until_nothing_promised_is_there():
    kv = KvCache(1000)
    rest = job("rest", ttft_s=None, tpot_s=None)
    policy = SlosServe(best_effort=False)
    assert list(plan(policy, [decoding(kv, job("d"))], [rest], kv).tokens) == ["d"]
    assert list(plan(policy, [], [rest], kv).tokens) == ["rest"]


# In the simulator.


@dataclass
class Watched:
    """Notes what happened to promises, and asserts that they are not taken back."""

    inner: Policy
    promised: set[str] = field(default_factory=set)
    eldest_steps: int = 0
    eldest_idle_steps: int = 0

    def plan(self, now_s: float, view: View) -> Plan:
        made = self.inner.plan(now_s, view)
        jobs = {one.id: one for one in (*view.running, *view.waiting)}
        for one in jobs.values():
            assert one.id not in self.promised or one.tier is Tier.PROMISED
            if one.tier is Tier.PROMISED:
                self.promised.add(one.id)
        assert not self.promised & set(made.decline)
        others = [one for one in jobs.values() if one.tier is Tier.BEST_EFFORT]
        if others:
            eldest = min(others, key=lambda one: (one.arrival_s, one.id))
            if now_s - eldest.arrival_s >= KEPT_AFTER_S:
                self.eldest_steps += 1
                self.eldest_idle_steps += eldest.id not in made.tokens
        return made


def overload(rng: np.random.Generator, n: int, rate: float, unpromised: float = 0.0) -> list[Request]:
    arrivals_s = np.cumsum(rng.exponential(1 / rate, n))
    return [
        Request(
            f"r{i}",
            float(at_s),
            (
                Stage(
                    int(rng.integers(20, 1500)),
                    int(rng.integers(1, 200)),
                    StageSLO()
                    if rng.random() < unpromised
                    else StageSLO(float(rng.choice([0.2, 0.5, 1.0])), float(rng.choice([0.05, 0.1]))),
                ),
            ),
        )
        for i, at_s in enumerate(arrivals_s)
    ]


def serve(policy: Policy, requests: list[Request], blocks: int = 20_000):  # type: ignore[no-untyped-def]
    return simulate_cluster(
        requests,
        [lambda kernel, tokens, decline: Replica(kernel, policy, LIMITS, KvCache(blocks), TIME, tokens, decline)],
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([4.0, 10.0, 20.0]), st.sampled_from([SlosServe, EdfSim]))
def test_a_promise_is_never_taken_back_and_nearly_always_kept(seed: int, rate: float, policy: type[SlosServe]):
    watched = Watched(policy())
    run = serve(watched, overload(np.random.default_rng(seed), 150, rate))
    promised = [line for line, tier in zip(run.timelines, run.tiers, strict=True) if tier is Tier.PROMISED]
    kept = sum(judge_request(line, TpotRule.DEADLINE) is Judgement.MET for line in promised)
    assert len(promised) > 20
    assert kept >= 0.95 * len(promised)


@pytest.mark.parametrize("seed", [11, 12])
def test_the_eldest_best_effort_job_is_served_in_every_batch_from_its_stated_age_on(seed: int):
    flood = overload(np.random.default_rng(seed), 800, 16.0, unpromised=0.05)  # 50 s of twice what can be served
    long = Request("long", 0.0, (Stage(2000, 1500),))
    watched = Watched(SlosServe())
    run = serve(watched, [long, *flood])
    assert watched.eldest_steps > 100
    assert watched.eldest_idle_steps == 0
    assert any(tier is Tier.BEST_EFFORT for tier in run.tiers)
