"""The annealer's walk, its blacklist, its densities and the gate of its forests."""

from __future__ import annotations

import numpy as np
import pytest

from optim import planted
from sloguard.optim.base import Goal
from sloguard.optim.blacklist import COOL_DOWN_TRIALS, blacklist
from sloguard.optim.forest import crash_forest, merit_forest, merits
from sloguard.optim.kde import Kde, good_and_rest
from sloguard.optim.switch import handed_over
from sloguard.optim.tba import T0, T_OPTIMISE, T_REHEAT_MAX, p_struct, walk
from sloguard.rng import stream
from sloguard.space.knobs import Float
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Outcome, Trial

CRASH = Crashed(planted.OOM)
FAULT = Crashed(planted.PORT)


def log(*outcomes: Outcome) -> list[Trial]:
    """Trials at different places, so that they are told apart."""
    configs = [planted.SPACE.sample(stream(3, "log", i)) for i in range(len(outcomes))]
    return [Trial(i, c, c, o, 1.0) for i, (c, o) in enumerate(zip(configs, outcomes, strict=True), start=1)]


def miss(factor: float) -> Outcome:
    return planted.measured(1.0, 0.5 * factor)


def good(goodput: float) -> Outcome:
    return planted.measured(goodput, 0.3)


def test_the_search_for_feasibility_goes_to_smaller_misses_and_cools() -> None:
    state = walk(log(CRASH, miss(4), miss(2)), Goal(), 100)
    assert state.current == state.best
    assert state.best is not None
    assert state.best.number == 3
    assert state.temperature == pytest.approx(T0 * 0.95**3)
    assert not state.feasible


def test_the_first_feasible_trial_starts_the_optimisation_from_there() -> None:
    state = walk(log(CRASH, miss(4), good(5)), Goal(), 100)
    assert state.feasible
    assert state.temperature == T_OPTIMISE
    assert state.current is not None
    assert state.current.number == 3


def test_a_crash_is_never_accepted_once_something_is_feasible() -> None:
    state = walk(log(good(5), *[CRASH] * 4), Goal(), 100)
    assert state.current is not None
    assert state.current.number == 1


def test_a_worse_score_is_accepted_sometimes_and_the_walk_remembers_the_best() -> None:
    history = log(good(1), good(9), good(10))
    places = [planted.SPACE.sample(stream(4, "worse", i)) for i in range(30)]
    ends = [walk([*history, Trial(4, c, c, good(9.7), 1.0)], Goal(), 100) for c in places]
    assert {state.best.number for state in ends if state.best} == {3}
    assert {state.current.number for state in ends if state.current} == {3, 4}


def test_standing_still_reheats_up_to_the_ceiling() -> None:
    stale = walk(log(good(5), *[good(6 + i) for i in range(12)], *[good(0)] * 5), Goal(), 10)
    assert stale.temperature == pytest.approx(min(T_OPTIMISE * 0.92**12 * 2.5, T_REHEAT_MAX))
    assert walk(log(good(5), *[good(0)] * 50), Goal(), 10).temperature == pytest.approx(T_REHEAT_MAX)


def test_the_walk_returns_to_the_best_every_twelve_trials_early_in_the_budget() -> None:
    """The scores fall slowly enough that each is accepted; only an elite restart goes back."""
    falling = log(*[good(1.0 - 1e-9 * i) if i else good(1000.0) for i in range(12)])
    rising = log(good(0.0), *[good(1000.0 - 1e-9 * i) for i in range(11)])
    assert walk(rising, Goal(), 100).current == walk(rising, Goal(), 100).best
    late = walk(rising, Goal(), 12)
    assert late.current is not None
    assert late.current.number == 12
    assert walk(falling, Goal(), 12).best == falling[0]


def test_a_fault_of_the_environment_is_no_step() -> None:
    assert walk(log(CRASH, FAULT, FAULT), Goal(), 10) == walk(log(CRASH), Goal(), 10)


def test_the_chance_to_move_a_choice_falls_from_half_to_015() -> None:
    assert [p_struct(step, 20) for step in (0, 10, 20, 30)] == pytest.approx([0.5, 0.325, 0.15, 0.15])


def at(outcome: Outcome, **changes: bool) -> Trial:
    config = Config({"dtype": "fp16", "seqs": 8, "tokens": 600, "util": 0.7, "eager": True, "prefix": False, **changes})
    return Trial(1, config, config, outcome, 1.0)


def test_three_strikes_list_a_value_and_its_pairs_until_a_success_or_the_cool_down() -> None:
    bad = [at(CRASH, eager=True)] * 3
    assert blacklist(bad, planted.SPACE).hits(at(CRASH, eager=True).config, planted.SPACE)
    assert not blacklist(bad[:2], planted.SPACE).hits(bad[0].config, planted.SPACE)
    elsewhere = Config({"eager": False, "chunked": True, "prefix": True, "dtype": "fp16"})
    assert not blacklist(bad, planted.SPACE).hits(elsewhere, planted.SPACE)  # dtype has one value: nothing to avoid
    assert not blacklist([*bad, at(good(1))], planted.SPACE).hits(bad[0].config, planted.SPACE)
    rest = [at(good(1), eager=False, prefix=True, chunked=True)] * COOL_DOWN_TRIALS
    assert blacklist([*bad, *rest[:-1]], planted.SPACE).hits(bad[0].config, planted.SPACE)
    assert not blacklist([*bad, *rest], planted.SPACE).hits(bad[0].config, planted.SPACE)


def test_a_pair_is_listed_though_both_its_values_work_apart() -> None:
    history = [t for _ in range(3) for t in (at(CRASH), at(good(1), prefix=True), at(good(1), eager=False))]
    listed = blacklist(history, planted.SPACE)
    assert listed.hits(at(CRASH).config, planted.SPACE)
    assert not listed.hits(at(CRASH, prefix=True).config, planted.SPACE)
    assert not listed.hits(at(CRASH, eager=False).config, planted.SPACE)


def test_merit_puts_every_feasible_trial_above_every_miss_and_those_above_a_crash() -> None:
    merit = merits(log(good(1), good(3), miss(1.5), miss(1e9), CRASH), Goal())
    assert merit[1] > merit[0] > merit[2] > merit[3] > merit[4]
    assert (merit[0], merit[1], merit[4]) == (0.5, 1.0, -1.0)


def test_a_forest_that_found_nothing_is_not_asked() -> None:
    noise = log(*[good(float(g)) for g in stream(1, "noise").random(30)])
    assert merit_forest(noise, planted.SPACE, Goal(), stream(1, "forest")) is None
    assert crash_forest(noise, planted.SPACE, stream(1, "forest")) is None  # no crash among them


def test_a_forest_that_found_the_edge_of_a_crash_region_tells_its_sides_apart() -> None:
    configs = [planted.SPACE.sample(stream(5, "edge", i)) for i in range(60)]
    trials = [Trial(i, c, c, planted.crash_aside(c), 1.0) for i, c in enumerate(configs)]
    forest = crash_forest(trials[:40], planted.SPACE, stream(1, "forest"))
    assert forest is not None
    guess = forest.guess(configs[40:])
    crashed = np.array([isinstance(t.outcome, Crashed) for t in trials[40:]])
    assert guess[crashed].min() > np.median(guess[~crashed])


def test_densities_are_normalised_and_prefer_where_the_good_ones_are() -> None:
    line = Space((Float("x", 0.0, 1.0),))
    configs = [Config({"x": x}) for x in np.linspace(0, 1, 21)]
    everywhere = [Config({"x": float(x)}) for x in np.linspace(0, 1, 2001)]
    mass = np.exp(Kde.of([Config({"x": 0.5})], line).log_density(everywhere)).mean()
    assert mass == pytest.approx(1.0, abs=0.01)
    near, rest = good_and_rest(configs, [-abs(planted.number(c["x"]) - 0.3) for c in configs], line)
    ratio = near.log_density(configs) - rest.log_density(configs)
    assert abs(planted.number(configs[int(np.argmax(ratio))]["x"]) - 0.3) < 0.11
    drawn = [planted.number(near.sample(stream(2, "kde", i))["x"]) for i in range(200)]
    assert np.mean([abs(x - 0.3) < 0.4 for x in drawn]) > 0.8


def test_annealing_hands_over_when_good_and_bad_are_known_or_two_fifths_are_spent() -> None:
    assert not handed_over(log(good(1), good(1)), 15)
    assert not handed_over(log(good(1), CRASH, CRASH), 15)
    assert handed_over(log(good(1), good(1), good(1), CRASH, CRASH), 15)
    assert not handed_over(log(*[CRASH] * 5), 15)
    assert handed_over(log(*[CRASH] * 6), 15)
    assert not handed_over(log(*[CRASH] * 5, FAULT), 15)
