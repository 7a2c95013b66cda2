"""Each rule of docs/writing-a-policy.md, broken once; and who keeps them all is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sloguard.errors import PolicyError
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.registry import load
from sloguard.request import End, Request, Stage
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.plan_check import Checked
from sloguard.sched.policy import POLICIES, Limits, Policy, View
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Planner, Replica
from sloguard.sim.serve import simulate
from sloguard.slo import StageSLO

TIME = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0),))
LIMITS = Limits(max_num_seqs=3, max_num_batched_tokens=64, max_model_len=256)
SLO = StageSLO(ttft_s=1.0, tpot_s=0.1)


def serve(policy: Policy, requests: Sequence[Request], blocks: int = 64, limits: Limits = LIMITS) -> Replica:
    made: list[Replica] = []

    def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        made.append(Replica(kernel, policy, limits, KvCache(blocks), TIME, on_tokens, on_decline, planner=PLANNER))
        return made[-1]

    lines = simulate(requests, replica)
    assert all(line.end is End.COMPLETED for line in lines)
    return made[0]


PLANNER = Planner(stopwatch=lambda: 0.0)


def asked(count: int, prompt_tokens: int = 40, output_tokens: int = 30, every_s: float = 0.0) -> list[Request]:
    stages = (Stage(prompt_tokens, output_tokens, SLO),)
    return [Request(f"r{at}", at * every_s, stages) for at in range(count)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_keeps_the_rules_runs_as_if_nobody_watched(name: str):
    def policy() -> Policy:
        return load(POLICIES, name, "policy")()

    requests = asked(30, prompt_tokens=90, output_tokens=60, every_s=0.04)
    limits = replace(LIMITS, max_num_seqs=16)
    assert serve(Checked(policy(), name), requests, 17, limits).stats == serve(policy(), requests, 17, limits).stats


def test_the_rules_were_kept_under_evictions():
    assert serve(Checked(Fcfs(), "f"), asked(8, 90, 60), 17).stats.evictions


class Deaf:
    """A KV cache that says yes and takes nothing; all else as it is."""

    def __init__(self, kv: KvCache, but: str) -> None:
        self.kv, self.but = kv, but

    def __getattr__(self, name: str) -> Any:
        return (lambda *_, **__: True) if name == self.but else getattr(self.kv, name)


class Slip:
    """FCFS, until the plan that `wrong` makes another of; `deaf` is a method of the KV cache that is not called."""

    def __init__(self, wrong: Callable[[Plan, View], Any], deaf: str = "") -> None:
        self.wrong, self.deaf = wrong, deaf

    def plan(self, now_s: float, view: View) -> Any:
        seen: Any = Deaf(view.kv, self.deaf)
        plan = Fcfs().plan(now_s, replace(view, kv=seen))
        return self.wrong(replace(plan, holds_until_s=float("-inf")), view)


def same(plan: Plan, view: View) -> Plan:
    return plan


def decoding(wrong: Callable[[Plan, View], Any]) -> Callable[[Plan, View], Any]:
    """Once the first job decodes."""
    return lambda plan, view: wrong(plan, view) if view.running and view.running[0].decoding else plan


def release(plan: Plan, view: View) -> Plan:
    view.kv.release(view.running[0])
    return replace(plan, tokens={k: v for k, v in plan.tokens.items() if k != view.running[0].id})


def take(plan: Plan, view: View) -> Plan:
    job = next(job for job in view.waiting if job.id not in plan.admit)
    assert view.kv.admit(job, 0, 1)
    return plan


def tokens(**changes: Any) -> Callable[[Plan, View], Plan]:
    return lambda plan, view: replace(plan, tokens={**plan.tokens, **{k + "/0": v for k, v in changes.items()}})


def whole(**changes: Any) -> Callable[[Plan, View], Plan]:
    return lambda plan, view: replace(plan, **changes)


SLIPS: dict[str, tuple[Callable[[Plan, View], Any], str]] = {
    "no plan": (lambda plan, view: None, "returned None: return a Plan"),
    "a dict": (lambda plan, view: plan.tokens, "returned a dict: return a Plan"),
    "tokens are a list": (whole(tokens=["r0/0"]), "made a Plan whose tokens is a list"),
    "evict is a text": (whole(evict="r0/0"), "made a Plan whose evict is a str"),
    "a job for its id": (lambda plan, view: Plan({next(iter(view.waiting)): 1}), "named a Job in Plan.tokens"),  # type: ignore[dict-item]
    "half a token": (tokens(r0=0.5), "gave 0.5 in Plan.tokens for 'r0/0'"),
    "unknown": (tokens(r7=1), "planned 1 token of r7/0, which neither runs nor waits"),
    "not admitted": (tokens(r5=1), "planned 1 token of r5/0, which waits: admit it first"),
    "no tokens": (tokens(r0=0), "planned 0 tokens of r0/0: leave out"),
    "fewer than none": (tokens(r0=-3), "planned -3 tokens of r0/0"),
    "more than is left": (tokens(r0=41), "planned 41 tokens of r0/0, which has 40 left"),
    "over the budget": (tokens(r1=40), "planned 40 tokens of r1/0, which makes 80 in one step"),
    "admits who runs": (decoding(whole(admit={"r0/0": 0})), "admitted r0/0, which runs already"),
    "admits nobody": (whole(admit={"r7/0": 0}), "admitted r7/0, which neither runs nor waits"),
    "admits without tokens": (whole(tokens={}), "admitted r0/0 without any token"),
    "cached too much": (whole(admit={"r0/0": 40, "r1/0": 0}), "admitted r0/0, of 40 tokens, with 40 found"),
    "evicts who waits": (whole(evict=("r5/0",)), "evicted r5/0, which waits"),
    "evicts and keeps": (
        decoding(lambda plan, view: Plan({"r1/0": 1}, evict=("r0/0",))),
        "evicted r0/0, which keeps its KV room: call view.kv.release first",
    ),
    "evicts twice": (decoding(whole(evict=("r0/0", "r0/0"))), "named r0/0 twice in Plan.evict"),
    "releases who runs": (decoding(release), "released the KV room of r0/0, which goes on running"),
    "takes room in vain": (take, "took KV room for r2/0, which stays in the queue: name it in Plan.admit"),
    "declines the last": (whole(decline=("r5/0",)), "declined r5/0, which no other replica can serve"),
    "declines nobody": (whole(decline=("r7/0",)), "declined r7/0, which neither runs nor waits"),
    "holds too much": (whole(holds_until_s=9.0), "held a plan that does not decode each running job"),
    "holds for no time": (whole(holds_until_s=None), "made a Plan whose holds_until_s is no number"),
}


@pytest.mark.parametrize("what", SLIPS)
def test_the_first_rule_that_a_plan_breaks_is_named(what: str):
    wrong, says = SLIPS[what]
    with pytest.raises(PolicyError) as raised:
        serve(Checked(Slip(wrong), "--policy mine:Mine"), asked(6))
    said = str(raised.value)
    assert said.startswith("--policy mine:Mine: at 0.0"), said
    assert f" s it {says}" in said, said
    assert said.endswith(". See docs/writing-a-policy.md."), said


@pytest.mark.parametrize(("deaf", "planned"), [("admit", "40 tokens of r0/0"), ("grow", "1 token of r0/0")])
def test_tokens_without_memory_are_found(deaf: str, planned: str):
    says = rf"it planned {planned}, for which no KV room was taken: call view\.kv\.{deaf} first"
    with pytest.raises(PolicyError, match=says):
        serve(Checked(Slip(same, deaf), "x"), asked(1))


@pytest.mark.parametrize("state", ["waits", "runs"])
def test_work_that_is_left_undone_is_found(state: str):
    class Idle(Fcfs):
        def plan(self, now_s: float, view: View) -> Plan:
            return super().plan(now_s, view) if state == "runs" and not view.running else Plan({})

    with pytest.raises(PolicyError, match=rf"it planned no token although r0/0 {state}: each step must compute"):
        serve(Checked(Idle(), "x"), asked(6))


def test_seats_are_counted():
    class Crowd:
        def plan(self, now_s: float, view: View) -> Plan:
            names = {job.id: 1 for job in view.waiting if view.kv.admit(job, 0, 1)}
            return Plan(names, dict.fromkeys(names, 0))

    with pytest.raises(PolicyError, match=r"admitted r3/0 beyond the 3 seats"):
        serve(Checked(Crowd(), "x"), asked(6))


def test_a_prompt_is_not_cut_where_there_are_no_chunks():
    with pytest.raises(PolicyError, match=r"planned 7 tokens of r0/0, which has 40 left .* no prompt in chunks"):
        serve(Checked(Slip(tokens(r0=7)), "x"), asked(1), limits=replace(LIMITS, enable_chunked_prefill=False))


def test_what_a_policy_raises_is_told_with_the_line_of_its_own():
    def wrong(plan: Plan, view: View) -> Plan:
        view.kv.release(next(job for job in view.waiting if job.id == "r5/0"))  # it has none: raised inside KvCache
        return plan

    with pytest.raises(PolicyError) as raised:
        serve(Checked(Slip(wrong), "x"), asked(6))
    line = wrong.__code__.co_firstlineno + 1
    assert str(raised.value) == f"x: at 0.000 s it raised KeyError: 'r5/0' ({__file__}, line {line})."


def test_a_long_message_is_one_line():
    def wrong(plan: Plan, view: View) -> Plan:
        raise ValueError("one\n  two.")

    with pytest.raises(PolicyError, match=r"it raised ValueError: one two \("):
        serve(Checked(Slip(wrong), "x"), asked(1))


def test_what_a_policy_has_stays_reachable_and_can_be_copied():
    policy = Slip(same, "grow")
    watched = Checked(policy, "x")
    assert (watched.deaf, copy.copy(watched).deaf) == ("grow", "grow")
    with pytest.raises(AttributeError, match="stats"):
        _ = watched.stats
