"""Configs that may change answers: held to those of the default, in the serial loop and beside pending trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes import FakeEngine, some_requests
from sloguard.contract import Contract, Limit, Metric
from sloguard.optim.base import Goal, Problem
from sloguard.optim.random import RandomSearch
from sloguard.space.knobs import Categorical, Int
from sloguard.space.repair import Repaired
from sloguard.space.space import Space
from sloguard.study.asking import FixedLoad
from sloguard.study.log import StudyLog
from sloguard.study.quality import PROMPTS, agreement
from sloguard.study.results import Results
from sloguard.study.runner import Study, next_proposal, run_study
from sloguard.trial import Answers, Config, Measured, Proposal, Refused, Trial

SPACE = Space((Int("seqs", 1, 20), Categorical("kv_cache_dtype", ("auto", "fp8", "int8"))))
TOKENS = tuple(range(32))
DIFFERS_FROM = {"auto": 32, "fp8": 30, "int8": 16}


def answered(config: Config) -> Answers:
    """As the default, up to a token that depends on the type of the cache."""
    same = DIFFERS_FROM[str(config.get("kv_cache_dtype", "auto"))]
    return ((*TOKENS[:same], *(-1 for _ in TOKENS[same:])),) * len(PROMPTS)


def a_study(quality: float | None = 0.9, *, try_default: bool = True) -> Study:
    question = FixedLoad(lambda seed: some_requests(), Contract((Limit(Metric.TTFT, 99, 0.2),)), 7)
    optimizer = RandomSearch(Problem(SPACE, Goal(), 12, lambda config: config))
    engine = FakeEngine(lambda _: (0.1, 0.01), default=Config({"seqs": 8, "kv_cache_dtype": "auto"}), answer=answered)
    return Study(engine, optimizer, SPACE, Repaired, lambda _: None, question, Goal(), 7, try_default, quality=quality)


def run_all(study: Study, directory: Path, budget: int = 12) -> list[Trial]:
    log = StudyLog(directory)
    with log.writer():
        if not log.exists():
            log.append_header({"spec": {}, "engine": {}})
        list(run_study(study, log, budget))
        return log.trials()


def test_agreement_is_the_mean_share_of_leading_tokens() -> None:
    assert agreement(((1, 2, 3, 4), (5, 6)), ((1, 2, 9, 4), (5, 6))) == 0.75
    assert agreement(((1, 2),), ((1, 2, 3, 4),)) == 0.5
    assert agreement(((), ()), ((), (1,))) == 0.5
    assert agreement(((7, 2),), ((1, 2),)) == 0.0


def test_what_agrees_is_measured_and_what_does_not_is_refused(tmp_path: Path) -> None:
    trials = run_all(a_study(), tmp_path)
    outcomes = {name: [t.outcome for t in trials if t.config["kv_cache_dtype"] == name] for name in DIFFERS_FROM}
    assert all(len(found) > 1 for found in outcomes.values())
    told = "answers agree to {} with those of the default"
    for outcome in outcomes["int8"]:
        assert outcome == Refused(f"kv_cache_dtype=int8: {told.format('50.0%')}, and 90% is asked")
    for outcome in outcomes["fp8"]:
        assert isinstance(outcome, Measured)
        assert outcome.notes == (f"kv_cache_dtype=fp8: {told.format('93.8%')}",)
    first, *others = trials
    assert isinstance(first.outcome, Measured)
    assert first.outcome.answers == answered(Config())
    assert not any(isinstance(t.outcome, Measured) and t.outcome.answers for t in others)
    assert not any(t.feasible for t in trials if t.config["kv_cache_dtype"] == "int8")
    assert Results(trials, Goal(), True).best is not None


def test_resumed_it_is_the_same_study(tmp_path: Path) -> None:
    run_all(a_study(), tmp_path / "whole")
    for stop in (1, 4, 12):
        run_all(a_study(), tmp_path / "cut", budget=stop)
    assert (tmp_path / "cut" / "study.jsonl").read_bytes() == (tmp_path / "whole" / "study.jsonl").read_bytes()


def test_without_a_measure_nothing_is_asked(tmp_path: Path) -> None:
    for trial in run_all(a_study(None), tmp_path):
        assert isinstance(trial.outcome, Measured)
        assert (trial.outcome.answers, trial.outcome.notes) == ((), ())


def test_the_next_waits_for_answers_to_be_held_to() -> None:
    study = a_study()
    first = next_proposal(study, [], (), 12)
    assert first is not None
    assert first.ask.reference == ()
    assert next_proposal(study, [], [(1, first)], 12) is None
    assert next_proposal(replace(study, quality=None), [], [(1, first)], 12) is not None


@pytest.mark.parametrize("reference", [None, (), ((1, 2), (3,))])
def test_what_is_asked_reads_back(reference: Answers | None) -> None:
    made = Proposal(Config(), Config())
    made = replace(made, ask=replace(made.ask, reference=reference))
    assert Proposal.from_json(made.to_json()) == made


def test_with_nothing_to_hold_it_to_nothing_lossy_runs(tmp_path: Path) -> None:
    study = a_study(try_default=False)
    first = next(t for t in run_all(study, tmp_path) if isinstance(t.outcome, Measured))
    assert first.config["kv_cache_dtype"] == "auto"
