"""The search for a capacity: against thresholds that are known."""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.contract import allowed_misses
from sloguard.request import End, Request, Stage, Timeline
from sloguard.sim.capacity import DRAIN_S, Bracket, Misses, drained, search
from sloguard.slo import StageSLO, TpotRule


def ended(asking: Generator[float, bool, Bracket], passes: Callable[[float], bool]) -> tuple[Bracket, list[float]]:
    asked: list[float] = []
    answer: bool | None = None
    while True:
        try:
            rate = next(asking) if answer is None else asking.send(answer)
        except StopIteration as stop:
            return stop.value, asked
        asked.append(rate)
        answer = passes(rate)


rates = st.floats(1e-2, 1e2)


@given(threshold=rates, guess=rates, tolerance=st.floats(0.005, 0.5))
def test_the_bracket_holds_the_threshold_and_is_as_narrow_as_asked(threshold, guess, tolerance):
    bracket, asked = ended(search(guess, tolerance=tolerance), lambda rate: rate <= threshold)
    if bracket.found:
        assert bracket.low <= threshold < bracket.high <= bracket.low * (1 + tolerance)
        assert {bracket.low, bracket.high} <= set(asked)
    else:
        assert not guess / 4096 <= threshold < guess * 4096
    assert len(asked) == len(set(asked)), "no rate is tried twice"
    assert len(asked) < 40


@given(threshold=rates, guess=rates, edges=st.tuples(rates, rates).filter(lambda e: e[0] < e[1]))
def test_rates_given_are_never_left(threshold, guess, edges):
    bracket, asked = ended(search(guess, rates=edges), lambda rate: rate <= threshold)
    assert all(edges[0] <= rate <= edges[1] for rate in asked)
    if threshold < edges[0]:
        assert bracket == Bracket(0.0, edges[0])
    elif threshold >= edges[1]:
        assert bracket == Bracket(edges[1], inf)
    else:
        assert bracket.low <= threshold < bracket.high


def test_a_search_that_finds_no_edge_says_on_which_side():
    assert ended(search(1.0), lambda rate: False)[0] == Bracket(0.0, 2**-12)
    assert ended(search(1.0), lambda rate: True)[0] == Bracket(2**12, inf)


@given(flags=st.lists(st.booleans(), min_size=40, max_size=40))
def test_answers_that_contradict_each_other_still_end_in_a_bracket(flags):
    answers = iter(flags)
    bracket, asked = ended(search(1.0), lambda rate: next(answers))
    assert bracket.low < bracket.high
    assert len(asked) < 40


def timeline(due_s: float, first_s: float | None, slo: StageSLO | None = None) -> Timeline:
    request = Request("r", due_s, (Stage(1, 1, slo or StageSLO(ttft_s=1.0)),))
    end = End.CANCELLED if first_s is None else End.COMPLETED
    return Timeline(request, due_s, due_s, np.array([] if first_s is None else [first_s]), end)


def test_a_backlog_is_drained_if_the_last_first_token_follows_the_last_arrival_soon_enough():
    assert drained([timeline(0, 99 + DRAIN_S), timeline(100, 101)])
    assert not drained([timeline(0, 100 + DRAIN_S), timeline(100, 101)])
    assert not drained([timeline(0, 1), timeline(100, None)])


@pytest.mark.parametrize(("requests", "target", "allowed"), [(300, 0.9, 30), (10, 0.9, 1), (9, 0.9, 0), (100, 0.99, 1)])
def test_as_many_may_miss_as_the_target_leaves(requests, target, allowed):
    assert allowed_misses(requests, target) == allowed
    assert (requests - allowed) / requests >= target - 1e-12 > (requests - allowed - 1) / requests


def test_a_run_is_stopped_by_the_first_miss_too_many():
    misses = Misses(1, TpotRule.DEADLINE)
    stops = [misses.stop(timeline(0, first_s)) for first_s in (0.5, 2.0, 0.9, None)]
    assert stops == [False, False, False, True]
    assert misses.missed == 2
