"""What makes two studies the same, and what is refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sloguard.contract import Metric
from sloguard.errors import SpecError
from sloguard.study.spec import StudySpec

SPEC = StudySpec("sim", "m", "random", 15, 0, {"ttft": 0.5, "itl": 0.1}, request_rate=2.0)


def test_every_field_but_the_budget_makes_another_study() -> None:
    recorded = json.loads(json.dumps(SPEC.to_json()))
    assert SPEC.differs_from(recorded) == []
    assert replace(SPEC, budget=99).differs_from(recorded) == []
    assert replace(SPEC, budget=99).digest == SPEC.digest
    others = {
        "seed": 1,
        "slo_p99_s": {"ttft": 0.6},
        "request_rate": float("inf"),
        "engine_args": {"dtype": "half"},
        "inputs": {"space.toml": "ab12"},
        "try_default": False,
    }
    for name, value in others.items():
        other = replace(SPEC, **{name: value})
        assert other.differs_from(recorded) == [name]
        assert other.digest != SPEC.digest


def test_an_infinite_rate_can_be_written_down() -> None:
    text = json.dumps(replace(SPEC, request_rate=float("inf")).to_json(), allow_nan=False)
    assert json.loads(text)["request_rate"] == "inf"


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, request_rate=float("inf"), priors=("sim",), gpus=2, engine_args={"dtype": "half"}),
        replace(SPEC, request_rate=None, slo_s={"ttft": 0.5}, budget_s=60.0, inputs={"space.toml": "ab12"}),
    ],
    ids=["plain", "infinite", "promises"],
)
def test_what_is_written_down_is_read_again(spec: StudySpec) -> None:
    assert StudySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_limits_are_promises_on_the_99th_percentile() -> None:
    assert {(x.metric, x.quantile, x.limit_s) for x in SPEC.contract.limits} == {
        (Metric.TTFT, 99, 0.5),
        (Metric.ITL, 99, 0.1),
    }
    assert SPEC.contract.tightest_s(Metric.TTFT) == 0.5
    assert SPEC.contract.tightest_s(Metric.E2EL) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"budget": 0}, "--budget"),
        ({"seed": -1}, "--seed"),
        ({"objective": "joy"}, "--objective"),
        ({"slo_p99_s": {}}, "--slo-*"),
        ({"slo_s": {"e2el": 0.0}}, "--slo-latency"),
        ({"attainment": 1.0}, "--attainment"),
        ({"rechecks": -1}, "--confirm"),
        ({"budget_s": 0.0}, "--budget-minutes"),
        ({"slo_p99_s": {"ttft": float("nan")}}, "--slo-ttft-p99"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(SpecError) as error:
        replace(SPEC, **change)
    assert error.value.field == field
