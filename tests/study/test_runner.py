"""The loop: order, repair, guard, crashes, environment faults, and that a resumed study equals an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import OOM, PORT_TAKEN, FakeEngine, some_requests
from sloguard.contract import Contract, Limit, Metric
from sloguard.crash import Evidence
from sloguard.errors import SpecError
from sloguard.optim.base import Goal, Problem
from sloguard.optim.random import RandomSearch
from sloguard.space.knobs import Categorical, Int
from sloguard.space.repair import Repaired
from sloguard.space.space import Space
from sloguard.study.asking import FixedLoad
from sloguard.study.log import StudyLog
from sloguard.study.results import Results
from sloguard.study.runner import EnvironmentFault, Study, run_study
from sloguard.trial import Config, Crashed, Measured, Refused, Trial

SPACE = Space((Int("seqs", 1, 200, log=True), Categorical("eager", (False, True))))


def no_repair(config: Config) -> Repaired:
    return Repaired(config, ())


def no_guard(config: Config) -> str | None:
    return None


def bigger_is_faster_until_it_crashes(config: Config) -> tuple[float, float] | Evidence:
    seqs = int(config.get("seqs", 8) or 8)
    return OOM if seqs > 100 else (0.8 / seqs, 0.1 / seqs)


def a_study(
    engine: FakeEngine,
    repair: Callable[[Config], Repaired] = no_repair,
    guard: Callable[[Config], str | None] = no_guard,
    budget: int = 12,
) -> Study:
    problem = Problem(SPACE, Goal(), budget, lambda config: repair(config).config)
    limits = (Limit(Metric.TTFT, 99, 0.2),)
    question = FixedLoad(lambda seed: some_requests(), Contract(limits), 7)
    return Study(engine, RandomSearch(problem), SPACE, repair, guard, question, Goal(), 7, True, retry_wait_s=0.0)


def run_all(study: Study, directory: Path, budget: int = 12) -> list[Trial]:
    log = StudyLog(directory)
    with log.writer():
        if not log.exists():
            log.append_header({"spec": {}, "engine": {}})
        return list(run_study(study, log, budget))


def test_the_default_comes_first_and_every_trial_is_on_disk(tmp_path: Path) -> None:
    engine = FakeEngine(bigger_is_faster_until_it_crashes, default=Config({"seqs": 8, "eager": False}))
    trials = run_all(a_study(engine), tmp_path)
    assert trials[0].config == engine.default
    assert StudyLog(tmp_path).trials() == trials
    assert [t.number for t in trials] == list(range(1, 13))
    kinds = {type(t.outcome) for t in trials}
    assert kinds == {Measured, Crashed}
    assert all(t.outcome.crash.category == "oom" for t in trials if isinstance(t.outcome, Crashed))


@pytest.mark.parametrize("stops", [(1,), (3, 4), (5, 9), (11,)])
def test_a_study_resumed_after_any_stop_equals_an_uninterrupted_one(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole = run_all(a_study(FakeEngine(bigger_is_faster_until_it_crashes)), tmp_path / "whole")
    for stop in (*stops, 12):
        run_all(a_study(FakeEngine(bigger_is_faster_until_it_crashes)), tmp_path / "cut", budget=stop)
    assert StudyLog(tmp_path / "cut").trials() == whole
    assert (tmp_path / "cut" / "study.jsonl").read_bytes() == (tmp_path / "whole" / "study.jsonl").read_bytes()


def test_what_a_killed_trial_left_behind_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "trials" / "001").mkdir(parents=True)
    (tmp_path / "trials" / "001" / "half.json").write_text("{")
    run_all(a_study(FakeEngine(bigger_is_faster_until_it_crashes)), tmp_path, budget=1)
    assert [p.name for p in (tmp_path / "trials" / "001").iterdir()] == ["engine.log"]


def test_repair_is_recorded_and_what_is_learnt_from(tmp_path: Path) -> None:
    def at_most_50(config: Config) -> Repaired:
        seqs = int(config["seqs"] or 0)
        return Repaired(config.replace(seqs=50), ("seqs lowered to 50",)) if seqs > 50 else Repaired(config, ())

    engine = FakeEngine(bigger_is_faster_until_it_crashes)
    repaired = [t for t in run_all(a_study(engine, at_most_50), tmp_path) if t.repairs]
    assert repaired
    for trial in repaired:
        assert int(trial.proposed["seqs"] or 0) > 50
        assert trial.config["seqs"] == 50
    assert len(set(engine.calls)) == len(engine.calls), "equal configs after repair are not tried twice"


def test_what_the_guard_refuses_never_reaches_the_engine_nor_the_budget(tmp_path: Path) -> None:
    def guard(config: Config) -> str | None:
        return "KV cache too small" if int(config["seqs"] or 0) > 20 else None

    engine = FakeEngine(bigger_is_faster_until_it_crashes)
    trials = run_all(a_study(engine, guard=guard), tmp_path)
    assert all(int(c["seqs"] or 0) <= 20 for c in engine.calls if c)
    assert len(trials) == 12
    assert not any(isinstance(t.outcome, Refused) for t in trials)
    assert Results(trials, Goal(), True).avoided > 0
    assert all(a.reason == "KV cache too small" for t in trials for a in t.avoided)


def test_a_guard_that_refuses_everything_ends_in_refused_trials_not_in_a_loop(tmp_path: Path) -> None:
    engine = FakeEngine(bigger_is_faster_until_it_crashes)
    trials = run_all(a_study(engine, guard=lambda config: "no room"), tmp_path, budget=3)
    assert [type(t.outcome) for t in trials[1:]] == [Refused, Refused]
    assert len(engine.calls) == 1


def test_a_fault_of_the_machine_before_anything_ran_stops_the_study_and_records_nothing(tmp_path: Path) -> None:
    engine = FakeEngine(lambda config: PORT_TAKEN)
    with pytest.raises(EnvironmentFault, match="port_in_use"):
        run_all(a_study(engine), tmp_path)
    assert StudyLog(tmp_path).trials() == []
    assert len(engine.calls) == 3, "it was tried again first"


def test_a_passing_fault_of_the_machine_is_retried_and_leaves_no_trace(tmp_path: Path) -> None:
    clean = run_all(a_study(FakeEngine(bigger_is_faster_until_it_crashes)), tmp_path / "clean", budget=4)
    engine = FakeEngine(bigger_is_faster_until_it_crashes)
    engine.respond = lambda c: PORT_TAKEN if len(engine.calls) == 2 else bigger_is_faster_until_it_crashes(c)
    shaken = run_all(a_study(engine), tmp_path / "shaken", budget=4)
    assert [t.config for t in shaken] == [t.config for t in clean]
    assert [type(t.outcome) for t in shaken] == [type(t.outcome) for t in clean]
    assert shaken[1].cost_s == clean[1].cost_s + 3.0, "the time it took is counted"


def test_a_bug_is_not_taken_for_a_crash(tmp_path: Path) -> None:
    def broken(config: Config) -> tuple[float, float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_all(a_study(FakeEngine(broken)), tmp_path)


def test_an_exhausted_space_ends_the_study_early(tmp_path: Path) -> None:
    study = a_study(FakeEngine(bigger_is_faster_until_it_crashes), guard=no_guard)
    small = Space((Categorical("eager", (False, True)),))
    problem = Problem(small, Goal(), 10, lambda config: config)
    study = replace(study, optimizer=RandomSearch(problem), space=small)
    assert len(run_all(study, tmp_path, budget=10)) == 3


def test_a_default_that_the_engine_rejects_stops_the_study_at_once(tmp_path: Path) -> None:
    rejected = Evidence(
        "startup", exit_code=2, log_tail="api_server.py: error: unrecognized arguments: --max-modle-len 5"
    )
    engine = FakeEngine(lambda config: rejected)
    with pytest.raises(SpecError, match="max-modle-len"):
        run_all(a_study(engine), tmp_path)
    assert len(engine.calls) == 1
    assert StudyLog(tmp_path).trials() == []
