"""What Optuna itself reads of a study that was written for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from optim.planted import OOM, measured
from sloguard.optim.base import CRASH_VIOLATION, Goal, violation
from sloguard.study.optuna_storage import write_optuna
from sloguard.trial import Capacity, Config, Crashed, Leg, Outcome, Refused, Trial, Value


def trial(number: int, outcome: Outcome, recheck: int | None = None, **values: Value) -> Trial:
    config = Config(values or {"seqs": 8 * number, "util": 0.8, "eager": number % 2 == 0, "cache": "auto"})
    return Trial(number, Config() if number == 1 else config, config, outcome, 10.0 * number, recheck=recheck)


TRIALS = [
    trial(1, measured(50.0, 0.3)),
    trial(3, measured(90.0, 0.9)),
    trial(2, Crashed(OOM)),
    trial(4, Refused("no room")),
    trial(5, measured(48.0, 0.2), recheck=1),
]


def opened(path: Path, trials: list[Trial], objective: str = "goodput") -> optuna.Study:
    write_optuna(path, "mine", trials, Goal(objective), {"spec": {"seed": 1}})
    return optuna.load_study(study_name="mine", storage=f"sqlite:///{path}")


def test_optuna_has_every_trial_with_its_state_value_and_params(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db", TRIALS)
    assert study.user_attrs == {"spec": {"seed": 1}, "value": "goodput, tokens/s"}
    assert [(t.number, t.user_attrs["number"], t.state, t.value) for t in study.trials] == [
        (0, 1, TrialState.COMPLETE, 50.0),
        (1, 2, TrialState.FAIL, None),
        (2, 3, TrialState.COMPLETE, 90.0),
        (3, 4, TrialState.FAIL, None),
        (4, 5, TrialState.COMPLETE, 48.0),
    ]
    by_number = {trial.number: trial for trial in TRIALS}
    for told in study.trials:
        assert told.params == dict(by_number[told.number + 1].config)
        assert all(
            told.distributions[name]._contains(told.distributions[name].to_internal_repr(v))
            for name, v in told.params.items()
        )
    assert study.trials[0].user_attrs["default"] is True
    assert study.trials[4].user_attrs["recheck"] == 1
    assert study.trials[1].user_attrs["crash_cause"] == "kv_cache"
    assert study.trials[1].user_attrs["crash_line"] == OOM.line
    assert study.trials[3].user_attrs["refused"] == "no room"


def test_constraints_are_named_and_their_sum_ranks_as_ours(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db", TRIALS)
    kept, crashed, missed = study.trials[:3]
    assert kept.constraints["p99(TTFT) <= 500 ms"] < 0
    assert missed.constraints["p99(TTFT) <= 500 ms"] > 0
    assert crashed.constraints["runs"] == CRASH_VIOLATION

    def broken(told: FrozenTrial) -> float:
        return sum(value for name, value in told.constraints.items() if value > 0 and name != "0")

    by_number = {trial.number: violation(trial) for trial in TRIALS}
    assert [broken(t) for t in study.trials] == pytest.approx([by_number[t.number + 1] for t in study.trials])
    assert [t.system_attrs["constraints"] for t in study.trials] == [[by_number[t.number + 1]] for t in study.trials]
    assert study.best_trial.number == 0, "the highest goodput breaks its promise"


def test_a_latency_is_minimised_in_seconds(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db", [trial(1, measured(50.0, 0.3)), trial(2, measured(50.0, 0.2))], "latency")
    assert study.direction is optuna.study.StudyDirection.MINIMIZE
    assert [t.value for t in study.trials] == [0.3, 0.2]
    assert study.best_trial.number == 1


def test_what_lost_a_race_is_pruned(tmp_path: Path) -> None:
    kept, lost = Leg(4.0, True, 20, 20, True, -1.0), Leg(3.6, False, 5, 20, True, 1.0)
    raced = replace(measured(1.0, 0.9), capacity=Capacity((lost,), 0.05, to_beat=3.6))
    study = opened(
        tmp_path / "s.db",
        [trial(1, replace(measured(1.0, 0.3), capacity=Capacity((kept,), 0.05))), trial(2, raced)],
        "capacity",
    )
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 4.0), (TrialState.PRUNED, None)]
    assert [t.user_attrs["dropped"] for t in study.trials] == [False, True]


def test_every_kind_of_value_comes_back_as_it_was(tmp_path: Path) -> None:
    values: list[dict[str, Value]] = [
        {"share": 1, "flag": True, "mixed": True, "word": "auto", "count": 4},
        {"share": 0.5, "flag": False, "mixed": 1, "word": None, "count": 9},
    ]
    study = opened(tmp_path / "s.db", [trial(n, measured(1.0, 0.3), **v) for n, v in enumerate(values, start=1)])
    assert [t.params for t in study.trials] == [
        {"share": 1.0, "flag": True, "mixed": "True", "word": "auto", "count": 4},
        {"share": 0.5, "flag": False, "mixed": "1", "word": None, "count": 9},
    ]


def test_a_sampler_can_go_on_from_it(tmp_path: Path) -> None:
    study = opened(tmp_path / "s.db", TRIALS)
    asked = study.ask(study.trials[0].distributions)
    assert 8 <= asked.params["seqs"] <= 40
