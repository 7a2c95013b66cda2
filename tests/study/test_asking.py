"""The search for a capacity within one start: against an engine whose limit is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import served
from sloguard.contract import Contract, Limit, Metric
from sloguard.engine.base import Load, LoadPlan, Run, follow
from sloguard.engine.simulated import SimulatedEngine
from sloguard.perf.gpus import gpu_named
from sloguard.perf.models import MODELS
from sloguard.request import End, Request, Stage, Timeline
from sloguard.slo import StageSLO
from sloguard.study.asking import CapacitySearch, FixedLoad, leg_requests, mean_promise_s, search_rates
from sloguard.trial import Ask, Capacity, Config

SLO = StageSLO(ttft_s=0.5)
COUNT = 40


def requests(rate: float, count: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate, count))
    return [Request(f"r{i}", float(s), (Stage(64, 8, SLO),)) for i, s in enumerate(at_s)]


def search(**changes: object) -> CapacitySearch:
    return replace(CapacitySearch(requests, Contract(attainment=0.9), seed=3, near=4.0, count=COUNT), **changes)


class Limited:
    """Keeps every promise up to `capacity` requests/s and breaks a share of them beyond."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.loads: list[Load] = []

    def __call__(self, load: Load) -> Sequence[Timeline]:
        self.loads.append(load)
        assert load.rate is not None
        late = load.rate > self.capacity
        lines = [served([r], 0.6 if late and i % 4 == 0 else 0.1, 0.01)[0] for i, r in enumerate(load.requests)]
        assert load.stop_when is not None
        for at, line in enumerate(lines):
            if load.stop_when(line):
                unsent = (Timeline(t.request, t.due_s, None, np.empty(0), End.CANCELLED) for t in lines[at + 1 :])
                return [*lines[: at + 1], *unsent]
        return lines


def ask(engine: Limited, asked: Ask = Ask(), **changes: object) -> Capacity:  # noqa: B008 - frozen
    question = search(**changes)
    found = question.measured(asked, Run(follow(question.plan(asked), engine), 1.0, 1.0))[2]
    assert found is not None
    return found


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 200.0))
def test_the_capacity_is_found_within_the_tolerance(capacity: float) -> None:
    found = ask(Limited(capacity))
    assert found.resolved
    assert found.low <= capacity < found.high <= found.low * 1.05 * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(1.0, 50.0), st.floats(1.0, 50.0))
def test_a_race_gives_up_at_once_or_finds_the_capacity(capacity: float, to_beat: float) -> None:
    engine = Limited(capacity)
    found = ask(engine, Ask(to_beat=to_beat))
    assert engine.loads[0].rate == to_beat
    if capacity < to_beat:
        assert found.dropped
        assert len(engine.loads) == 1
    else:
        assert not found.dropped
        assert found.low <= capacity < found.high <= found.low * 1.05 * (1 + 1e-9)


def test_one_that_beats_the_best_by_little_is_found_in_few_loads() -> None:
    engine = Limited(10.8)
    assert ask(engine, Ask(to_beat=10.0)).resolved
    assert len(engine.loads) <= 3


@settings(max_examples=30, deadline=None)
@given(st.floats(1.0, 50.0), st.floats(0.8, 1.25))
def test_what_was_found_before_is_found_again_in_few_loads(capacity: float, off: float) -> None:
    engine = Limited(capacity)
    found = ask(engine, Ask(near=capacity * off, turn=1))
    assert found.low <= capacity < found.high <= found.low * 1.05 * (1 + 1e-9)
    assert len(engine.loads) <= 6


def test_loads_share_arrivals_but_neither_prompts_nor_those_of_other_turns() -> None:
    engine = Limited(7.0)
    ask(engine)
    ask(engine, Ask(turn=1))
    gaps = [np.diff([r.arrival_s for r in load.requests[:COUNT]]) * (load.rate or 0) for load in engine.loads]
    per_turn = len(gaps) // 2
    for gap in gaps[1:per_turn]:
        np.testing.assert_allclose(gap, gaps[0])
    assert not np.allclose(gaps[0], gaps[-1])
    assert len({load.seed for load in engine.loads}) == len(engine.loads)


def test_what_has_failed_is_not_offered_to_the_end_and_still_tells_by_how_much() -> None:
    engine = Limited(1e-3)
    found = ask(engine)
    assert (found.low, found.resolved) == (0.0, False)
    for leg, load in zip(found.legs, engine.loads, strict=True):
        assert leg.offered < len(load.requests), "it was ended early"
        assert leg.excess == pytest.approx(np.log(leg.offered - leg.met) - np.log(0.1 * leg.offered))


def test_an_engine_without_a_limit_is_unresolved() -> None:
    found = ask(Limited(inf))
    assert (found.high, found.resolved, found.dropped) == (inf, False, False)


def test_a_backlog_fails_a_rate_that_kept_its_promises() -> None:
    def late(load: Load) -> Sequence[Timeline]:
        return served(load.requests, 25.0, 0.01)

    question = search(contract=Contract((Limit(Metric.TTFT, 99, 60.0),)))
    found = question.measured(Ask(near=0.2), Run(follow(question.plan(Ask(near=0.2)), late), 1.0, 1.0))[2]
    assert found is not None
    assert found.low == 0.0
    assert all(not leg.drained and leg.excess > 0 for leg in found.legs)


def test_a_population_limit_stops_a_load_only_once_it_is_lost() -> None:
    """The early stop must never fail what would have passed: whatever was stopped fails when served whole too."""
    contract = Contract((Limit(Metric.TTFT, 90, 0.5), Limit(Metric.E2EL, 95, 0.55)))
    rng = np.random.default_rng(0)
    for trial in range(200):
        question = search(contract=contract)
        load = next(question.plan(Ask()).loads)
        slow = rng.random(len(load.requests)) < 0.12 + 0.01 * (trial % 5 - 2)
        lines = [served([r], 0.6 if s else 0.1, 0.001)[0] for r, s in zip(load.requests, slow, strict=True)]
        assert load.stop_when is not None
        if any(load.stop_when(line) for line in lines):
            assert not contract.judge(lines).met


def test_a_load_lasts_long_enough_for_a_queue_to_build_up() -> None:
    assert leg_requests(1.0, 200) == 200
    assert leg_requests(20.0, 200) == 600
    assert leg_requests(1000.0, 200) == 1600


def test_a_load_outlasts_the_answers_that_were_promised() -> None:
    """Answers that may take a minute pile up for as long: a load of half a minute says nothing of the rate."""
    slow = StageSLO(ttft_s=5.0, tpot_s=0.2)

    def patient(rate: float, count: int, seed: int) -> list[Request]:
        return [replace(r, stages=(Stage(64, 250, slow),)) for r in requests(rate, count, seed)]

    engine = Limited(4.0)
    ask(engine, requests=patient)
    for load in engine.loads:
        assert load.rate is not None
        assert len(load.requests) / load.rate >= min(2 * (5.0 + 250 * 0.2), 8 * COUNT / load.rate) - 1


def test_a_promise_is_the_tightest_of_what_binds_an_answer() -> None:
    asked = [Request("r", 0.0, (Stage(10, 100, StageSLO(ttft_s=1.0, tpot_s=0.05)),))]
    assert mean_promise_s(asked, Contract()) == pytest.approx(1.0 + 100 * 0.05)
    assert mean_promise_s(asked, Contract((Limit(Metric.ITL, 99, 0.02),))) == pytest.approx(1.0 + 100 * 0.02)
    assert mean_promise_s(asked, Contract((Limit(Metric.E2EL, 99, 2.5),))) == 2.5
    unpaced = [Request("r", 0.0, (Stage(10, 100, SLO),))]
    assert mean_promise_s(unpaced, Contract()) == 0.0


def test_every_rate_is_asked_once() -> None:
    asking = search_rates(Ask(to_beat=4.0), 1.0)
    rates = [next(asking)]
    try:
        while True:
            rates.append(asking.send(rates[-1] < 9.1))
    except StopIteration:
        pass
    assert len(rates) == len(set(rates))


def test_fixed_loads_of_two_turns_have_other_requests() -> None:
    question = FixedLoad(lambda seed: requests(2.0, 10, seed), Contract(), 1)
    loads = [next(question.plan(Ask(turn=turn)).loads) for turn in (0, 0, 1)]
    assert list(loads[0].requests) == list(loads[1].requests)
    assert list(loads[0].requests) != list(loads[2].requests)


def test_a_simulated_engine_serves_a_plan_within_one_start(tmp_path: Path) -> None:
    def plan() -> LoadPlan:
        return search(near=2.0).plan(Ask())

    engine = SimulatedEngine(MODELS["Qwen/Qwen2-1.5B"], gpu_named("A100-40GB"))
    first, again = (engine.run(Config(), plan(), tmp_path) for _ in range(2))
    assert len(first.served) > 2
    assert [t.token_s.tolist() for t in first.timelines] == [t.token_s.tolist() for t in again.timelines]
    loads_s = first.cost_s - first.startup_s
    whole_s = [one.load.requests[-1].arrival_s for one in first.served if one.timelines[-1].end is End.COMPLETED]
    assert loads_s > sum(whole_s), "virtual time of every load is paid for"
