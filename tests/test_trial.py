"""Configs are values; a trial survives its JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.contract import Contract, Limit, Metric
from sloguard.crash import Crash
from sloguard.metrics import summarise
from sloguard.trial import Avoided, Capacity, Config, Crashed, Leg, Measured, Refused, Trial
from timelines import RUNS, SECONDS

VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
FINITE = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | SECONDS | st.text(max_size=8)
ITEMS = st.dictionaries(st.text(max_size=8), VALUES, max_size=6)
CONFIGS = st.dictionaries(st.text(max_size=8), FINITE, max_size=4).map(Config)
LIMITS = st.lists(st.builds(Limit, st.sampled_from(Metric), st.sampled_from([50, 99, 99.9]), SECONDS), max_size=3).map(
    tuple
)
TEXT = st.text(max_size=20)


@st.composite
def measured(draw: st.DrawFn) -> Measured:
    run, limits = draw(RUNS), draw(LIMITS)
    effective = draw(st.dictionaries(TEXT, FINITE, max_size=3))
    return Measured(summarise(run), Contract(limits).judge(run), draw(SECONDS), effective)


CRASHES = st.builds(Crash, category=TEXT, cause=TEXT, line=TEXT, hint=TEXT, phase=st.sampled_from(["startup", "load"]))
OUTCOMES = measured() | CRASHES.map(Crashed) | st.builds(Refused, TEXT)
TRIALS = st.builds(
    Trial,
    number=st.integers(1, 1000),
    proposed=CONFIGS,
    config=CONFIGS,
    outcome=OUTCOMES,
    cost_s=SECONDS,
    repairs=st.lists(TEXT, max_size=3).map(tuple),
    avoided=st.lists(st.builds(Avoided, CONFIGS, CONFIGS, TEXT), max_size=2).map(tuple),
)


@given(ITEMS, st.randoms())
def test_equal_configs_hash_and_print_alike_whatever_their_order(items, random):
    shuffled = list(items.items())
    random.shuffle(shuffled)
    a, b = Config(items), Config(dict(shuffled))
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)
    assert list(a) == sorted(items)
    assert dict(a) == items


@pytest.mark.parametrize(("a", "b"), [(True, 1), (False, 0), (None, 0), ("1", 1), (None, False)])
def test_values_that_python_may_mix_up_make_different_configs(a, b):
    assert Config({"knob": a}) != Config({"knob": b})
    assert len({Config({"knob": a}), Config({"knob": b})}) == 2


def test_a_knob_left_out_differs_from_one_that_is_none():
    assert Config({"knob": None}) != Config()


def test_a_config_is_no_dict():
    assert Config({"a": 1}) != {"a": 1}
    assert isinstance(Config(), Mapping)
    assert not Config()


@given(ITEMS, VALUES)
def test_replacing_leaves_the_original(items, value):
    config = Config(items)
    before = copy.copy(dict(config))
    assert config.replace(knob=value) == Config({**items, "knob": value})
    assert dict(config) == before


def test_a_config_does_not_follow_the_dict_it_was_made_of():
    values: dict[str, int] = {"a": 1}
    config = Config(values)
    values["a"] = 2
    assert config["a"] == 1


@settings(max_examples=40)
@given(TRIALS)
def test_a_trial_survives_json(trial):
    text = json.dumps(trial.to_json(), allow_nan=False)
    assert Trial.from_json(json.loads(text)) == trial
    assert Trial.from_json(json.loads(text)).feasible == trial.feasible


@settings(max_examples=40)
@given(TRIALS)
def test_a_record_has_the_fields_that_scripts_rely_on(trial):
    record = trial.to_json()
    assert {"number", "proposed", "config", "outcome", "cost_s"} <= record.keys()
    kind = {Measured: "measured", Crashed: "crashed", Refused: "refused"}[type(trial.outcome)]
    assert record["outcome"]["kind"] == kind
    if isinstance(trial.outcome, Measured):
        assert record["outcome"]["status"] == trial.outcome.verdict.judgement.value


@settings(max_examples=40)
@given(TRIALS)
def test_only_a_measured_trial_that_kept_its_contract_is_feasible(trial):
    assert trial.feasible == (isinstance(trial.outcome, Measured) and trial.outcome.verdict.met)


def paths(node: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, child in children for path in paths(child, (*at, key)))]


JUNK = st.sampled_from([None, 0, -1, 1.5, "x", "", True, [], [1], {}, {"x": 1}])


@settings(max_examples=40)
@given(TRIALS, st.data())
def test_a_damaged_record_is_an_error_of_the_documented_kinds_or_still_a_trial(trial, data):
    record = json.loads(json.dumps(trial.to_json()))
    *parents, last = data.draw(st.sampled_from(paths(record)[1:]))
    node = record
    for key in parents:
        node = node[key]
    if data.draw(st.booleans()) and isinstance(node, dict):
        del node[last]
    else:
        node[last] = data.draw(JUNK)
    try:
        Trial.from_json(record)
    except (KeyError, TypeError, ValueError):
        return


@pytest.mark.parametrize("junk", [None, 5, "trial", [], {}, {"number": 1}])
def test_what_is_no_record_is_refused(junk):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Trial.from_json(junk)


def test_an_unknown_kind_of_outcome_is_refused():
    with pytest.raises(ValueError, match="unknown outcome kind"):
        Trial.from_json(
            {
                "number": 1, "proposed": {}, "config": {}, "cost_s": 1.0, "repairs": [], "avoided": [],
                "outcome": {"kind": "guessed"},
            }
        )  # fmt: skip


def test_a_capacity_lies_between_its_last_two_rates_by_how_clearly_they_passed_and_failed() -> None:
    def found(passed: float, failed: float) -> Capacity:
        return Capacity(
            (
                Leg(8.0, False, 9, 20, True, 2.0),
                Leg(4.0, True, 20, 20, True, passed),
                Leg(5.0, False, 18, 20, True, failed),
            ),
            0.25,
        )

    assert (found(-1.0, 1.0).low, found(-1.0, 1.0).high) == (4.0, 5.0)
    assert found(-1.0, 1.0).estimate == pytest.approx(20**0.5)
    assert found(-0.1, 2.0).estimate < found(-1.0, 1.0).estimate < found(-2.0, 0.1).estimate < 5.0
    assert found(0.0, 1.0).estimate == 4.0
    only = Capacity((Leg(4.0, True, 20, 20, True, -1.0),), 0.25)
    assert (only.estimate, only.resolved) == (4.0, False)
    assert Capacity.from_json(json.loads(json.dumps(only.to_json()))) == only
