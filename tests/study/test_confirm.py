"""The last word: who is measured again, what noise allows to be said, and who is recommended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optim.planted import OOM, measured
from sloguard.optim.base import Goal, best
from sloguard.study.confirm import DOUBT, candidates, chosen, confirmed, doubted, gain_interval, next_recheck
from sloguard.study.results import Results
from sloguard.trial import Capacity, Config, Crashed, Leg, Outcome, Trial

GOAL = Goal("goodput")


def trial(number: int, goodput: float, config: Config | None = None, recheck: int | None = None) -> Trial:
    values = Config({"seqs": number}) if config is None else config
    outcome: Outcome = measured(goodput, 0.3 if goodput else 9.0)
    proposed = values if number > 1 and recheck != 1 else Config()
    return Trial(number, proposed, values, outcome, 10.0, recheck=recheck)


def again(history: list[Trial], scores: dict[int, list[float]], rounds: int = 3) -> list[Trial]:
    """Runs the rechecks as they are asked for."""
    done = list(history)
    while (made := next_recheck(done, [], GOAL, rounds)) is not None:
        assert made.recheck is not None
        turn = made.ask.turn
        original = next(t for t in history if t.number == made.recheck)
        score = scores[made.recheck][turn - 1]
        done.append(trial(len(done) + 1, score, original.config, made.recheck))
    return done


CAPACITY = Goal("capacity")


def raced(number: int, rate: float, *, seqs: int | None = None, lost: bool = False) -> Trial:
    """One that kept `rate`, or lost the race there."""
    config = Config({"seqs": number if seqs is None else seqs})
    legs = (Leg(rate, not lost, 20, 20, True, 1.0 if lost else -1.0),)
    capacity = Capacity(legs, 0.05, to_beat=rate if lost else None)
    return Trial(number, config, config, replace(measured(1.0, 0.3), capacity=capacity), 10.0)


def test_a_best_that_none_comes_near_is_measured_once_more() -> None:
    history = [raced(1, 2.0), raced(2, 4.0), *(raced(3 + i, 3.6, lost=True) for i in range(DOUBT))]
    assert doubted(history[:-1], [], CAPACITY) is None
    made = doubted(history, [], CAPACITY)
    assert made is not None
    assert made.run == history[1].config
    assert (made.ask.turn, made.ask.again, made.ask.to_beat, made.recheck) == (0, 1, None, None)
    assert doubted(history, [made], CAPACITY) is None, "it is being measured"
    own = [replace(trial, proposed=Config()) if trial.number == 2 else trial for trial in history]
    default = doubted(own, [], CAPACITY)
    assert default is not None
    assert default.run == Config()
    assert doubted(own, [default], CAPACITY) is None, "nor is the default asked for twice"
    again = [*history, raced(6, 3.8, seqs=2), *(raced(7 + i, 3.6, lost=True) for i in range(DOUBT))]
    assert doubted(again, [], CAPACITY) is None, "twice is enough"


def test_what_was_lucky_counts_by_its_mean() -> None:
    history = [raced(1, 2.5), raced(2, 4.0), raced(3, 1.0, seqs=2)]
    assert best(history[:2], CAPACITY) is history[1]
    assert best(history, CAPACITY) is history[0], "4 and 1 make 2"
    failed = Trial(3, history[1].proposed, history[1].config, Crashed(OOM), 1.0)
    assert best([*history[:2], failed], CAPACITY) is history[0], "what fails the second time is not to be deployed"
    assert [t.number for t in candidates(history, CAPACITY)] == [1, 2]


def test_the_two_best_and_the_default_are_measured_again_round_by_round() -> None:
    history = [trial(1, 50), trial(2, 70), trial(3, 90), trial(4, 80)]
    assert [t.number for t in candidates(history, GOAL)] == [3, 4, 1]
    done = again(history, {1: [50, 51, 49], 3: [80, 82, 81], 4: [79, 78, 80]})
    assert [t.recheck for t in done[4:]] == [3, 4, 1] * 3
    assert next_recheck(history, [], GOAL, 0) is None


def test_what_runs_already_is_not_asked_for_twice() -> None:
    history = [trial(1, 50), trial(2, 70)]
    first = next_recheck(history, [], GOAL, 1)
    assert first is not None
    second = next_recheck(history, [first], GOAL, 1)
    assert second is not None
    assert {first.recheck, second.recheck} == {1, 2}
    assert next_recheck(history, [first, second], GOAL, 1) is None


def test_a_default_that_is_as_good_is_kept() -> None:
    scores = {1: [100.0, 104, 98], 2: [101.0, 99, 103], 3: [99.0, 103, 101]}
    results = Results(again([trial(1, 100), trial(2, 104), trial(3, 103)], scores), GOAL, True)
    assert results.best is results.default
    assert len(results.explored) == 3


def test_a_gain_beyond_noise_is_taken_with_its_interval() -> None:
    scores = {1: [100.0, 104, 98], 2: [131.0, 129, 133], 3: [99.0, 103, 101]}
    results = Results(again([trial(1, 100), trial(2, 150), trial(3, 103)], scores), GOAL, True)
    assert results.best is not None
    assert results.best.number == 2
    assert results.gain == pytest.approx(131 / 100.6 - 1, abs=0.01)
    low, high = results.gain_interval or (0, 0)
    assert 0 < low < (results.gain or 0) < high


def test_one_round_is_told_from_chance_by_what_runs_are_known_to_differ_by() -> None:
    history = [trial(1, 100), trial(2, 150), trial(3, 103)]
    like, better = ({1: [100.0], 2: [second], 3: [99.0]} for second in (104.0, 140.0))
    assert Results(again(history, like, 1), GOAL, True).best is history[0]
    assert Results(again(history, better, 1), GOAL, True).best is history[1]


def test_of_equals_the_one_that_changes_least_is_recommended() -> None:
    base = Config({"a": 1, "b": 2, "c": 3})
    near, far = base.replace(a=5), base.replace(a=5, b=6, c=7)
    history = [trial(1, 60, base), trial(2, 100, far), trial(3, 99, near)]
    done = again(history, {1: [60, 61, 59], 2: [100, 98, 102], 3: [99, 101, 98]})
    found = confirmed(done, GOAL)
    assert found[0].trial.number == 2
    best = chosen(found, done[0])
    assert best is not None
    assert best.number == 3


def test_one_that_only_ties_with_the_default_is_not_taken_for_the_best_that_beats_it() -> None:
    base = Config({"a": 1, "b": 2, "c": 3})
    near, far = base.replace(a=5), base.replace(a=5, b=6, c=7)
    history = [trial(1, 55, base), trial(2, 62, far), trial(3, 58, near)]
    done = again(history, {1: [55, 55.5], 2: [62, 61], 3: [58.5, 57]}, 2)
    assert Results(done, GOAL, True).best is history[1]


def test_one_that_fails_when_measured_again_is_out() -> None:
    done = again([trial(1, 50), trial(2, 90)], {1: [50, 51, 49], 2: [88, 0, 90]})
    results = Results(done, GOAL, True)
    assert results.best is results.default
    crashed = [*again([trial(1, 50), trial(2, 90)], {1: [50], 2: [88]}, 1)]
    crashed[-2] = Trial(3, crashed[1].proposed, crashed[1].config, Crashed(OOM), 5.0, recheck=2)
    assert Results(crashed, GOAL, True).best is crashed[0]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    studies = 400
    for _ in range(studies):
        noise = np.exp(rng.normal(0, 0.03, (3, 3)) + rng.normal(0, 0.05, (1, 3)))  # of runs, and of a round's arrivals
        truth = np.array([100.0, 120.0, 110.0])
        scores = {n + 1: list(truth[n] * noise[n]) for n in range(3)}
        done = again([trial(1, 100), trial(2, 120), trial(3, 110)], scores)
        interval = gain_interval(confirmed(done, GOAL), done[1], done[0])
        assert interval is not None
        covered += interval[0] <= 0.2 <= interval[1]
    assert 0.92 <= covered / studies <= 0.98
