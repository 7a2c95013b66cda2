"""What earlier studies are worth to it, right or wrong, and what it makes of trials without a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from optim import planted
from sloguard.optim.base import Earlier, Goal, Problem
from sloguard.optim.guided import DRAWN, MISLED, SCORE, Guided
from sloguard.optim.lessons import Lesson, costs, starts, survives, values
from sloguard.optim.sources import TRUST, belief, learnt
from sloguard.rng import stream
from sloguard.space.knobs import Categorical, Int
from sloguard.space.space import Space
from sloguard.trial import Capacity, Config, Crashed, Leg, Measured, Outcome, Refused, Trial

START = Config(
    {"dtype": "fp16", "seqs": 8, "tokens": 1024, "util": 0.7, "eager": False, "chunked": False, "prefix": False}
)


def negated(config: Config) -> Outcome:
    outcome = planted.smooth(config)
    assert isinstance(outcome, Measured)
    return planted.measured(1000.0 / outcome.summary.token_goodput, 0.3)


def source(evaluate: Callable[[Config], Outcome], space: Space = planted.SPACE, n: int = 80) -> Earlier:
    configs = [space.sample(stream(3, "source", i)) for i in range(n)]
    return Earlier("another", [Trial(i, c, c, evaluate(c), 1.0) for i, c in enumerate(configs, start=1)])


def scaled(factor: float) -> planted.Evaluate:
    def evaluate(config: Config) -> Outcome:
        outcome = planted.smooth(config)
        assert isinstance(outcome, Measured)
        return planted.measured(factor * outcome.summary.token_goodput, 0.3)

    return evaluate


def drawn(count: int) -> list[Trial]:
    configs = [START, *(planted.SPACE.sample(stream(7, "drawn", n)) for n in range(1, count))]
    return [Trial(n, c, c, planted.smooth(c), 60.0) for n, c in enumerate(configs, start=1)]


def draws(history: Sequence[Trial], *told: planted.Evaluate) -> bool:
    """Whether it proposes what it would have drawn without a source, of a study that is not done with drawing."""
    earlier = tuple(source(evaluate) for evaluate in told)
    proposed, first = (
        Guided(replace(planted.problem(), earlier=among)).propose(trials, stream(1, "propose"))
        for among, trials in ((earlier, history), ((), history[:1]))
    )
    return proposed == first


def bests(evaluate: planted.Evaluate, seed: int, *earlier: Earlier, trials: int = 12) -> list[float]:
    """The best goodput after each trial; the first is a poor default."""
    problem = replace(planted.problem(budget=trials), earlier=earlier)
    history = [Trial(1, START, START, evaluate(START), 60.0)]
    ran = planted.run(Guided(problem), problem, evaluate, seed, history)
    scores = [Goal().score(trial) or 0.0 for trial in ran]
    return [float(b) for b in np.maximum.accumulate(scores)]


def test_a_right_source_is_followed_at_once() -> None:
    good = source(planted.smooth)
    firsts = [bests(planted.smooth, seed, good, trials=3) for seed in range(3)]
    assert np.mean([b[2] for b in firsts]) > 94.0


@pytest.mark.parametrize("wrong", [negated, planted.crash_aside], ids=["score negated", "crashes elsewhere"])
def test_a_misleading_source_costs_two_trials_at_most(wrong: planted.Evaluate) -> None:
    alone = np.mean([bests(planted.smooth, seed)[9] for seed in range(3)])
    misled = np.mean([bests(planted.smooth, seed, source(wrong))[11] for seed in range(3)])
    assert misled > alone - 2.0


def test_two_configs_in_a_row_are_not_the_same_advice_when_the_first_was_bad() -> None:
    bad = source(negated)
    problem = replace(planted.problem(budget=12), earlier=(bad,))
    ran = planted.run(
        Guided(problem), problem, planted.smooth, 1, [Trial(1, START, START, planted.smooth(START), 60.0)], 4
    )
    scores = [Goal().score(trial) or 0.0 for trial in ran]
    assert max(scores[2:]) > scores[1]


def test_a_source_over_other_knobs_says_what_it_can() -> None:
    """It has neither `prefix` nor `eager`, another range of `seqs` and a knob of its own."""
    other = Space(
        (Int("seqs", 16, 512, log=True), planted.SPACE.knobs[2], planted.SPACE.knobs[3], Categorical("z", (1, 2)))
    )

    def like(config: Config) -> Outcome:
        return planted.smooth(config.replace(eager=False, chunked=True, prefix=True))

    problem = replace(planted.problem(), earlier=(source(like, other),))
    history = [Trial(1, START, START, planted.smooth(START), 60.0)]
    configs = [Guided(problem).propose(history, stream(seed, "propose")) for seed in range(3)]
    assert all(planted.SPACE.contains(config) for config in configs)
    assert all(20 <= planted.number(config["seqs"]) <= 110 for config in configs)


def test_a_source_without_any_trial_that_teaches_changes_nothing() -> None:
    nothing = Earlier("empty", [Trial(1, START, START, Crashed(planted.PORT), 1.0)])
    history = [Trial(1, START, START, planted.smooth(START), 60.0)]
    asked = [
        Guided(replace(planted.problem(), earlier=earlier)).propose(history, stream(1, "propose"))
        for earlier in ((), (nothing,))
    ]
    assert asked[0] == asked[1]


def test_without_a_source_the_first_configs_are_drawn_over_the_space_and_not_around_the_default() -> None:
    """Whatever the default is worth; once enough are known, that counts."""

    def proposed(after: int, rising: bool) -> Config:
        history = [
            replace(t, outcome=planted.measured(t.number if rising else 1 / t.number, 0.3)) for t in drawn(after)
        ]
        return Guided(planted.problem(budget=15)).propose(history, stream(1, "propose"))

    assert proposed(DRAWN - 1, rising=True) == proposed(DRAWN - 1, rising=False)
    assert proposed(DRAWN, rising=True) != proposed(DRAWN, rising=False)


@pytest.mark.parametrize("count", [2, 5, DRAWN - 1])
def test_where_no_source_turns_out_right_configs_are_drawn_as_if_there_was_none(count: int) -> None:
    assert draws(drawn(count), negated)


def test_a_search_that_was_misled_begins_in_the_end() -> None:
    assert not draws(drawn(DRAWN), negated)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "told",
    [(planted.smooth,), (scaled(5.0),), (scaled(0.2),), (negated, planted.smooth)],
    ids=["right", "five times as fast", "five times as slow", "right beside a wrong one"],
)
def test_a_source_is_followed_that_is_right_about_all_but_the_level(
    told: tuple[planted.Evaluate, ...], count: int
) -> None:
    assert not draws(drawn(count), *told)


def test_as_long_as_nothing_has_a_goodput_a_source_is_followed() -> None:
    history = [replace(trial, outcome=planted.measured(0.0, 0.3)) for trial in drawn(2)]
    good = source(planted.smooth)
    at = [trial.config for trial in good.trials]
    foretold = learnt(at, values(good.trials, Goal()), SCORE, planted.SPACE)
    assert foretold is not None
    told = belief([t.config for t in history], values(history, Goal()), SCORE, planted.SPACE, [foretold])
    assert told.weights[0] == pytest.approx(1 - TRUST)
    proposed = Guided(replace(planted.problem(), earlier=(good,))).propose(history, stream(1, "propose"))
    assert (Goal().score(Trial(3, proposed, proposed, planted.smooth(proposed), 60.0)) or 0.0) > 85.0


def test_the_farther_the_first_score_is_from_what_a_source_foretold_the_less_that_is_believed() -> None:
    at = [START]
    foretold = learnt(at, [Lesson(0, 1.0)], SCORE, planted.SPACE)
    assert foretold is not None

    def disbelief(y: float) -> float:
        return float(belief(at, [Lesson(0, y)], SCORE, planted.SPACE, [foretold]).weights[0])

    assert disbelief(1.0) < 1 - TRUST
    assert disbelief(1.0) < disbelief(0.5) < disbelief(0.0) < disbelief(-1.5)
    assert disbelief(-1.5) > MISLED


def searched(*legs: Leg, to_beat: float | None = None) -> Trial:
    base = planted.measured(1.0, 0.3)
    return Trial(1, START, START, replace(base, capacity=Capacity(legs, 0.05, to_beat)), 60.0)


def failed(rate: float, excess: float) -> Leg:
    return Leg(rate, False, 10, 100, True, excess)


def test_a_config_that_was_dropped_lies_below_the_rate_it_failed_at_the_more_the_worse_it_failed() -> None:
    known = searched(Leg(10.0, True, 100, 100, True, -0.1), failed(10.4, 0.1))
    near, far, lost = (searched(failed(10.0, excess), to_beat=10.0) for excess in (0.05, 1.5, float("inf")))
    lessons = values([known, near, far, lost], Goal("capacity"))
    assert np.log(10.0) < lessons[0].y < np.log(10.4)
    assert [lesson.y for lesson in lessons] == sorted((lesson.y for lesson in lessons), reverse=True)
    assert lessons[0].extra == 0 < min(lesson.extra for lesson in lessons[1:])
    assert np.isfinite(lessons[3].y)


def test_dropped_trials_steer_what_comes_next() -> None:
    """Every config with few sequences was dropped, none with many: few are no longer proposed."""

    def trial(n: int, few: bool) -> Trial:
        config = planted.SPACE.sample(stream(5, "dropped", n)).replace(seqs=6 if few else 100)
        one = searched(failed(10.0, 1.0), to_beat=10.0) if few else searched(Leg(10.0, True, 9, 9, True, -0.1))
        return replace(one, number=n, proposed=config, config=config)

    history = [trial(n, n % 2 == 0) for n in range(1, 9)]
    problem = Problem(planted.SPACE, Goal("capacity"), 15, lambda c: c)
    proposed = [Guided(problem).propose(history, stream(seed, "propose")) for seed in range(4)]
    assert np.median([planted.number(config["seqs"]) for config in proposed]) > 40


def test_a_cost_is_told_on_the_log_scale_too_and_less_is_more() -> None:
    trials = [Trial(1, START, START, planted.measured(1.0, s), 60.0) for s in (0.1, 0.2)]
    quick, slow = values(trials, Goal("latency"))
    assert quick.y == pytest.approx(-np.log(0.1), abs=0.01)
    assert slow.y < quick.y


def test_what_is_far_below_the_best_differs_little() -> None:
    trials = [
        Trial(n, START, START, planted.measured(goodput, 0.3), 60.0) for n, goodput in enumerate((100, 95, 10, 5))
    ]
    best, near, low, lowest = (lesson.y for lesson in values(trials, Goal("goodput")))
    assert best == np.log(100)
    assert best - near == pytest.approx(np.log(100 / 95), rel=0.05)
    assert 0 < low - lowest < 0.1 * np.log(2)


def test_starting_and_surviving_are_learnt_apart() -> None:
    load = Crashed(replace(planted.OOM, phase="load"))
    outcomes = (planted.measured(1.0, 0.3), Crashed(planted.OOM), Refused("no room"), load)
    trials = [Trial(1, START, START, outcome, 60.0) for outcome in outcomes]
    assert [lesson.y for lesson in starts(trials)] == [1.0, -1.0, -1.0, 1.0]
    assert [(lesson.trial, lesson.y) for lesson in survives(trials)] == [(0, 1.0), (3, -1.0)]
    assert [lesson.trial for lesson in costs(trials)] == [0]
