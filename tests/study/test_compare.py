"""Measures, tests and caveats of made studies, whose figures can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.study.compare import BEST, CONSISTENCY, FAST_TRIALS, FIRST_FAST, FIRST_FEASIBLE, HELD_OUT, compare
from sloguard.study.runs import StudyRun, TrialRun
from sloguard.trial import Config

CRASH = TrialRun(False, crashed=True, cost_s=30.0)
MISS = TrialRun(False, score=50.0, cost_s=10.0)
DROPPED = TrialRun(False, dropped=True, cost_s=10.0)


def kept(score: float, **values: int) -> TrialRun:
    return TrialRun(True, score, cost_s=10.0, config=Config(values), requests=200)


def study(label: str, seed: int | None, *trials: TrialRun, objective: str = "goodput") -> StudyRun:
    return StudyRun(label, seed, trials, objective)


def steady(label: str, seeds: range, score: float = 10.0, trials: int = 4) -> list[StudyRun]:
    """Studies of which all configs differ, and scores by the seed."""
    return [
        study(
            label,
            seed,
            CRASH,
            MISS,
            *(kept(score + seed / 10, at=1000 * seed + i + len(label) * 10**6) for i in range(trials)),
        )
        for seed in seeds
    ]


def test_each_measure_is_of_a_study_and_given_over_studies() -> None:
    ours = [
        study("a", 1, CRASH, kept(7.0), kept(8.0), kept(3.0), kept(10.0)),
        study("a", 2, MISS, DROPPED, kept(9.0), kept(9.5), kept(8.5)),
    ]
    group = compare(ours).groups[0]
    measured = {name: (spread.mean, spread.sd, spread.n) for name, spread in group.measures.items()}
    assert measured[FAST_TRIALS] == (2.5, pytest.approx(stdev([2, 3])), 2)
    assert measured[CONSISTENCY] == (pytest.approx(fmean([1 / 2, 1.0])), pytest.approx(stdev([0.5, 1.0])), 2)
    assert measured[BEST] == (pytest.approx(9.75), pytest.approx(stdev([10, 9.5])), 2)
    assert measured[FIRST_FEASIBLE][0] == 2.5
    assert measured[FIRST_FAST][0] == 3.0
    assert measured[HELD_OUT] == (None, None, 0)
    assert (group.feasible, group.trials, group.dropped, group.crashes) == (7, 10, 1, 1)
    assert group.crash_share == pytest.approx(30 / 120)


def test_what_misses_its_limits_is_neither_fast_nor_the_best() -> None:
    comparison = compare([study("a", 1, MISS, kept(10.0))])
    assert comparison.fast_at == 8.0
    assert comparison.groups[0].measures[BEST].mean == 10.0


def test_the_fast_cluster_is_of_all_that_is_compared() -> None:
    slow, quick = study("slow", 1, kept(5.0), kept(5.0)), study("quick", 1, kept(10.0), kept(9.0))
    by_label = {group.label: group.measures[FAST_TRIALS].mean for group in compare([slow, quick]).groups}
    assert by_label == {"slow": 0.0, "quick": 2.0}


def test_latencies_are_told_as_seconds_and_the_least_is_the_best() -> None:
    studies = [study("a", 1, kept(-0.5), kept(-0.4), kept(-2.0), objective="latency")]
    comparison = compare(studies)
    assert comparison.groups[0].measures[BEST].mean == 0.4
    assert comparison.groups[0].measures[FAST_TRIALS].mean == 2.0
    assert comparison.fast_at == pytest.approx(0.5)


def test_a_figure_that_some_studies_lack_is_of_the_others_and_that_is_said() -> None:
    studies = [study("a", 1, kept(10.0), kept(10.0)), study("a", 2, CRASH, MISS)]
    comparison = compare(studies)
    assert comparison.groups[0].measures[CONSISTENCY].n == 1
    assert comparison.groups[0].measures[BEST].sd is None
    assert "1 of 2 studies of a have no fast trial" in "\n".join(comparison.caveats)


def test_time_that_was_not_written_down_has_no_share() -> None:
    assert compare([study("a", 1, replace(CRASH, cost_s=None), kept(1.0))]).groups[0].crash_share is None


def test_nothing_feasible_anywhere_is_still_a_comparison() -> None:
    comparison = compare([study("a", 1, CRASH, CRASH), study("a", 2, CRASH), study("b", 1, MISS), study("b", 2, MISS)])
    assert comparison.fast_at is None
    assert [test.measure for test in comparison.tests] == [FAST_TRIALS]
    assert comparison.tests[0].p == 1.0


def test_the_baseline_is_random_or_the_first_or_the_one_that_is_named() -> None:
    guided, random = steady("guided", range(2)), steady("random", range(2))
    assert compare(guided + random).baseline == "random"
    assert compare(guided + steady("random, no race", range(2))).baseline == "random, no race"
    assert compare(guided + steady("tpe", range(2))).baseline == "guided"
    named = compare(guided + random, "guided")
    assert [group.label for group in named.groups] == ["guided", "random"]
    assert {test.label for test in named.tests} == {"random"}
    with pytest.raises(SpecError, match="Choose one of 'guided', 'random'"):
        compare(guided + random, "tpe")


def test_objectives_are_not_mixed() -> None:
    with pytest.raises(SpecError, match="objective"):
        compare([study("a", 1, kept(1.0)), study("b", 1, kept(-1.0), objective="latency")])


def test_a_clear_difference_is_found_and_corrected_for_the_number_of_tests() -> None:
    better = [replace(one, label="tpe") for one in steady("tpe", range(5), 100.0)]
    comparison = compare(steady("random", range(5), 10.0) + better)
    assert {test.measure for test in comparison.tests} == {FAST_TRIALS, BEST}, "random has no fast trial"
    fast, best = (next(test for test in comparison.tests if test.measure == name) for name in (FAST_TRIALS, BEST))
    assert (fast.alternative, fast.difference, fast.delta, fast.paired) == ("greater", 4.0, 1.0, True)
    assert fast.interval == (4.0, 4.0)
    assert best.alternative == "two-sided"
    assert best.p == pytest.approx(2 / 252)
    assert fast.p <= fast.p_holm <= 2 * fast.p
    assert best.difference == pytest.approx(90.0)
    assert best.interval == pytest.approx((90.0, 90.0)), "of pairs: the seeds' own spread is no part of it"


def test_pairs_are_made_by_seed_whatever_the_order() -> None:
    ours = steady("tpe", range(5), 20.0)
    forward, backward = compare(steady("random", range(5)) + ours), compare(steady("random", range(5)) + ours[::-1])
    assert forward.tests == backward.tests
    other = compare(steady("random", range(5)) + steady("tpe", range(1, 6), 20.0))
    assert not any(test.paired for test in other.tests)
    assert "seeds of tpe are not those of random: unpaired" in other.caveats


def test_one_study_of_a_label_is_not_tested() -> None:
    comparison = compare(steady("random", range(5)) + steady("tpe", range(1)))
    assert not comparison.tests
    assert any("one study of tpe" in line for line in comparison.caveats)


def test_the_spread_of_the_best_is_held_against_the_baselines() -> None:
    wide = [study("wide", seed, kept(10.0 + 0.4 * seed)) for seed in range(3)]
    ratios = [group.sd_ratio for group in compare(steady("random", range(3)) + wide).groups]
    assert ratios == pytest.approx([1.0, 4.0])


SOUND = [*steady("random", range(12), 90.0), *steady("tpe", range(12), 100.0)]
WEAK = {
    "few seeds (4 against 4): p is at least 0.014 one-sided, 0.029 two-sided": (
        steady("random", range(4), 90.0) + steady("tpe", range(4), 100.0)
    ),
    "no trial crashed": [replace(one, trials=one.trials[1:]) for one in SOUND],
    "all 120 configs that ran are feasible": [
        replace(one, trials=(one.trials[0], *one.trials[2:], one.trials[2])) for one in SOUND
    ],
    "differ from those of random by less than runs of one config do: tpe 1.1%": (
        steady("random", range(12), 90.0) + steady("tpe", range(12), 91.0)
    ),
    "are simulated": [replace(one, simulated=True) for one in SOUND],
    "12 of 24 studies are simulated": [replace(one, simulated=one.label == "tpe") for one in SOUND],
    "studies have from 3 to 6 trials": [*SOUND[1:], replace(SOUND[0], trials=SOUND[0].trials[:3])],
    "seeds of tpe are not known": [*SOUND[:12], *(replace(one, seed=None) for one in SOUND[12:])],
    "12 of 24 studies began with the crashes of earlier ones known": [
        replace(one, warned=one.label == "tpe") for one in SOUND
    ],
    "24 of 168 trials were dropped in races": [replace(one, trials=(*one.trials, DROPPED)) for one in SOUND],
    "a trial's load had 5 requests (median): p99": [
        replace(one, trials=tuple(replace(t, requests=t.requests and 5) for t in one.trials)) for one in SOUND
    ],
    "one after another: nothing was concurrent": [
        replace(one, trials=tuple(replace(t, requests=t.requests and 5) for t in one.trials), one_at_a_time=True)
        for one in SOUND
    ],
    "48 of 48 configs are the same in random and tpe for the same seeds": [
        *SOUND[:12],
        *(replace(one, label="tpe") for one in steady("random", range(12), 100.0)),
    ],
    "tpe: 100% of configs are the same from seed to seed": [
        *SOUND[:12],
        *(replace(SOUND[12], seed=seed) for seed in range(12)),
    ],
}


def test_strong_evidence_has_no_caveat() -> None:
    assert not compare(SOUND).caveats


@pytest.mark.parametrize("says", WEAK)
def test_what_makes_evidence_weak_is_said_and_nothing_else(says: str) -> None:
    (line,) = compare(WEAK[says]).caveats
    assert says in line


def test_a_seed_under_which_nothing_can_be_fast_is_said() -> None:
    slower = [study("tpe", seed, CRASH, MISS, *(kept(60.0, at=seed + i * 100) for i in range(4))) for seed in (3, 5)]
    fast = [one for one in SOUND if one.seed not in (3, 5)]
    lines = compare([*fast, *slower, *(replace(one, label="random") for one in slower)]).caveats
    assert any(line.startswith("nothing under seed 3, 5 is fast, under any label") for line in lines)
    assert sum("2 of 12 studies" in line and "no fast trial" in line for line in lines) == 2
    every = compare([*SOUND[:-2], *slower]).caveats
    assert not any("nothing under seed" in line for line in every), "random has fast ones under those seeds"


def test_limits_bind_where_a_capacity_is_sought() -> None:
    every = [replace(one, objective="capacity", trials=(CRASH, *one.trials[2:])) for one in SOUND]
    assert compare(every).caveats == ()


scores = st.one_of(st.just(None), st.floats(0.1, 100.0))
trials = st.builds(
    lambda score, fate: {
        "kept": TrialRun(score is not None, score),
        "missed": TrialRun(False, score),
        "crashed": TrialRun(False, crashed=True),
        "dropped": TrialRun(False, dropped=True),
    }[fate],
    scores,
    st.sampled_from(["kept", "missed", "crashed", "dropped"]),
)
made = st.lists(
    st.builds(
        lambda label, seed, tried: StudyRun(label, seed, tuple(tried), "goodput"),
        st.sampled_from(["random", "tpe", "guided"]),
        st.integers(0, 3),
        st.lists(trials, min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=8,
)


@given(made)
def test_any_studies_can_be_compared(studies: list[StudyRun]) -> None:
    comparison = compare(studies)
    assert sum(len(group.seeds) for group in comparison.groups) == len(studies)
    assert sum(group.trials for group in comparison.groups) == sum(len(one.trials) for one in studies)
    for group in comparison.groups:
        assert group.feasible + group.dropped + group.crashes <= group.trials
        fast, steady_share = group.measures[FAST_TRIALS], group.measures[CONSISTENCY]
        assert fast.n == len(group.seeds)
        assert steady_share.mean is None or 0 <= steady_share.mean <= 1
    for test in comparison.tests:
        assert 0 < test.p <= test.p_holm <= 1
        assert -1 <= test.delta <= 1
        assert test.interval[0] - 1e-9 <= test.difference <= test.interval[1] + 1e-9
    assert len(set(comparison.caveats)) == len(comparison.caveats)


@given(made, st.floats(0.01, 100))
def test_units_of_a_score_change_nothing_but_the_best(studies: list[StudyRun], factor: float) -> None:
    def scaled(trial: TrialRun) -> TrialRun:
        return replace(trial, score=None if trial.score is None else trial.score * factor)

    def counted(of: list[StudyRun]) -> list[object]:
        groups = compare(of).groups
        return [(group.label, group.feasible, group.measures[FIRST_FEASIBLE]) for group in groups]

    assert counted(studies) == counted([replace(one, trials=tuple(map(scaled, one.trials))) for one in studies])
