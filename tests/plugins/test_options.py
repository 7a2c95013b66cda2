from __future__ import annotations

import json
from typing import Any

import pytest

from sloguard.errors import SpecError
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.learning import LearningTime
from sloguard.plugins.options import API_KEY, CONTROL_TOKEN, DOOR, DoorOptions, Options, Promise, StepTimes
from sloguard.slo import NO_SLO, StageSLO

CHAT = {"chat": {"ttft_ms": 500, "tpot_ms": 50.0}, "batch": {}}


def door(told: object = None, **secrets: str) -> DoorOptions:
    return DoorOptions.from_environment(({} if told is None else {DOOR: json.dumps(told)}) | secrets)


def test_a_door_is_told_by_its_environment():
    options = door(
        {"slo_classes": CHAT, "default_class": "chat", "max_wait_s": 5}, **{API_KEY: "k", CONTROL_TOKEN: "t"}
    )
    assert options.classes == {"chat": StageSLO(0.5, 0.05), "batch": NO_SLO}
    assert (options.default_class, options.max_wait_s, options.api_key, options.control_token) == ("chat", 5, "k", "t")
    assert "'k'" not in repr(options)
    assert door() == DoorOptions()


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"max_requests": 0}, f"{DOOR}.max_requests"),
        ({"max_wait_s": 0}, f"{DOOR}.max_wait_s"),
        ({"speed": 1}, f"{DOOR}.speed"),
        ({"slo_classes": {"a": {"ttft_ms": 0}}}, f"{DOOR}.slo_classes.a.ttft_ms"),
        ({"default_class": "gold"}, "default_class"),
        ([], DOOR),
    ],
)
def test_a_door_that_cannot_be_told_names_the_field(told: object, field: str):
    with pytest.raises(SpecError) as raised:
        door(told)
    assert raised.value.field == field


def test_what_is_no_json_is_said_to_be_none():
    with pytest.raises(SpecError, match=f"^{DOOR} .*JSON"):
        DoorOptions.from_environment({DOOR: "{"})


def test_secrets_have_variables_of_their_own():
    with pytest.raises(SpecError, match=API_KEY) as raised:
        door({"api_key": "the-key"})
    assert "the-key" not in str(raised.value)
    for variable in (API_KEY, CONTROL_TOKEN):
        with pytest.raises(SpecError, match=f"^{variable} .*empty"):
            door(**{variable: ""})


def read(**fields: Any) -> Options:
    return Options.read({"sloguard": fields})


@pytest.mark.parametrize("given", [None, {}, {"other": 1}, "text", {"sloguard": {}}])
def test_without_a_word_the_defaults_hold(given: object):
    options = Options.read(given)
    assert options == Options()
    assert isinstance(options.time(), LearningTime)


def test_a_profile_is_believed():
    profile = BatchTime(
        (Piece(0.01, 1e-4, 1e-5, 1e-8, 1e-9, 1e-8), Piece(0.02, 0.0, 0.0, 0.0, 0.0)),
        cpu_step_s=1e-3,
        cpu_sequence_s=1e-5,
        launch_s=2e-3,
        draft_step_s=3e-3,
        graph_sizes=(1, 2, 4),
        curve=((0, 0.0), (256, 1e-5)),
    )
    told = json.loads(json.dumps({"batch_time": StepTimes.of(profile).model_dump()}))
    assert read(**told).time().prior == profile


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"polcy": "vllm"}, "sloguard.polcy", "Extra"),
        ({"planner_budget_ms": 0}, "sloguard.planner_budget_ms", "greater than 0"),
        ({"batch_time": {"pieces": [[1.0]]}}, "sloguard.batch_time.pieces", "5 to 8 coefficients"),
        ({"batch_time": {"pieces": []}}, "sloguard.batch_time.pieces", "at least one piece"),
        ({"batch_time": {"pieces": [[1e-3] * 5], "curve": [[5, 0.0]]}}, "sloguard.batch_time", "starts at 0 tokens"),
        ({"slo_classes": {"a": {"tpot_ms": float("inf")}}}, "sloguard.slo_classes.a.tpot_ms", "less than"),
        ({"slo_classes": {"a": {"tpot_ms": 5e-324}}}, "sloguard.slo_classes.a.tpot_ms", "greater than"),
        ({"slo_classes": {"a": {"tpot_ms": True}}}, "sloguard.slo_classes.a.tpot_ms", "number"),
        ({"default_class": "gold"}, "default_class", "best-effort"),
    ],
)
def test_what_the_plugin_cannot_read_names_the_field(fields: dict[str, Any], field: str, says: str):
    with pytest.raises(SpecError, match=says) as raised:
        read(**fields)
    assert raised.value.field == field


def test_best_effort_is_a_class_that_there_always_is():
    assert read(default_class="best-effort").default_class == "best-effort"


@pytest.mark.parametrize("slo", [NO_SLO, StageSLO(0.5), StageSLO(0.5, 0.05), StageSLO(None, 0.05)])
def test_a_promise_is_the_same_in_milliseconds(slo: StageSLO):
    assert Promise.of(slo).slo() == slo


@pytest.mark.parametrize(("slo", "field"), [(StageSLO(1e9), "slo.ttft_ms"), (StageSLO(None, 1e-9), "slo.tpot_ms")])
def test_what_is_no_time_to_promise(slo: StageSLO, field: str):
    with pytest.raises(SpecError, match="a day") as raised:
        Promise.of(slo)
    assert raised.value.field == field
