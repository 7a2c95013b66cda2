"""What is known beforehand: a simulation of the same task, or studies of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sloguard.engine.base import Facts
from sloguard.errors import SpecError
from sloguard.rng import stream
from sloguard.space.knobs import Categorical
from sloguard.space.layout import LAYOUT
from sloguard.space.space import Space
from sloguard.study import prior
from sloguard.study.build import build_study, informed
from sloguard.study.log import StudyLog
from sloguard.study.prior import can_simulate, earlier_trials, simulated
from sloguard.study.spec import StudySpec
from sloguard.trial import Config

SPEC = StudySpec(
    "sim",
    "meta-llama/Llama-3.1-8B",
    "guided",
    4,
    1,
    {},
    slo_s={"ttft": 0.5, "tpot": 0.03},
    gpu="A100-40GB",
    num_requests=20,
)


FACTS = build_study(SPEC).engine.facts()
ON_CPU = Facts(device="cpu")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior, "DRAWN", 8)
    monkeypatch.setattr(prior, "SOUGHT", 4)


def test_a_simulation_is_made_once_and_tells_whole_capacities(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    trials = simulated(SPEC, FACTS, tmp_path / "prior", lambda done, of: told.append((done, of)))
    assert told == [(n, 12) for n in range(1, 13)]
    assert not any(t.capacity.dropped for t in trials if t.capacity)
    told.clear()
    assert simulated(SPEC, FACTS, tmp_path / "prior", lambda done, of: told.append((done, of))) == trials
    assert not told


def test_a_simulation_that_was_cut_off_is_finished_as_it_was_begun(tmp_path: Path) -> None:
    whole = simulated(SPEC, FACTS, tmp_path / "whole", lambda done, of: None)
    lines = (tmp_path / "whole" / "study.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "study.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:9])
    assert simulated(SPEC, FACTS, tmp_path / "cut", lambda done, of: None) == whole


def test_a_simulation_of_another_task_is_made_anew(tmp_path: Path) -> None:
    """As after a start that was interrupted while it simulated."""
    for spec in (SPEC, replace(SPEC, gpus=2), replace(SPEC, gpus=2, budget=9)):
        trials = simulated(spec, FACTS, tmp_path, lambda done, of: None)
        assert all(("layout" in trial.config) == (spec.gpus == 2) for trial in trials)
        assert len(trials) == 12


def test_several_gpus_are_laid_out_as_by_the_engine_as_far_as_can_be_simulated(tmp_path: Path) -> None:
    """Pipelines can't be, and are in the space of the study all the same."""
    spec = replace(SPEC, gpus=2, priors=("sim",))
    study = build_study(spec)
    real = study.space.without({LAYOUT: None})
    study = replace(study, space=Space((*real.knobs, Categorical(LAYOUT, ("tp2", "pp2", "dp2")))))
    earlier = earlier_trials(spec, study, tmp_path, lambda done, of: None)
    (trials,) = [list(one.trials) for one in earlier]
    assert (trials[0].proposed, trials[0].config[LAYOUT]) == (Config(), "tp2"), "the default is the engine's own"
    assert {trial.config[LAYOUT] for trial in trials} == {"tp2", "dp2"}
    told = informed(study, spec, earlier)
    assert told.space.contains(told.optimizer.propose(trials[:1], stream(1, "propose")))
    assert told.space.contains(trials[0].config.replace(layout="pp2"))


def test_what_can_not_be_simulated_is_said(tmp_path: Path) -> None:
    assert can_simulate(SPEC, FACTS)
    for spec, facts, said in (
        (SPEC, ON_CPU, "no GPU that could be simulated"),
        (replace(SPEC, model="nobody/knows-it"), FACTS, "can't be simulated: --model"),
    ):
        assert not can_simulate(spec, facts)
        with pytest.raises(SpecError, match=said):
            simulated(spec, facts, tmp_path, lambda done, of: None)


@pytest.mark.parametrize(
    ("knobs", "problem"), [({}, "holds no study"), ({"elsewhere": 3}, "have none of the knobs that are tuned")]
)
def test_a_directory_without_a_study_of_these_knobs_is_refused(
    tmp_path: Path, knobs: Mapping[str, int], problem: str
) -> None:
    if knobs:
        log = StudyLog(tmp_path)
        with log.writer():
            log.append_header({"spec": {}, "engine": {}})
            (trial, *_) = simulated(SPEC, FACTS, tmp_path / "made", lambda done, of: None)
            log.append(replace(trial, config=type(trial.config)(knobs)))
    with pytest.raises(SpecError, match=problem):
        earlier_trials(replace(SPEC, priors=(str(tmp_path),)), build_study(SPEC), tmp_path, lambda done, of: None)
