"""A study as Optuna keeps one, for optuna-dashboard and for whoever analyses with Optuna.

What a trial is there:

    measured, with a score     COMPLETE, with the score in its own unit and, per promise, a constraint (> 0 is broken)
    dropped in a race, or no   PRUNED: what it would have scored is not known
    rate that passes
    crashed or refused         FAIL, with the constraint `runs` broken and what was seen in its user attributes

A knob's range is that of the values tried: the log does not hold the space. Optuna 5 keeps constraints by name, where
optuna-dashboard 0.21 does not look: for its sake the violation (optim/base.py) stands in their old place too. It is the
sum of those that are broken, so trials rank as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sloguard.optim.base import Goal, violation
from sloguard.optim.tpe import quiet, told_constraints
from sloguard.trial import Crashed, Measured, Refused, Trial, Value

OLD_PLACE = "constraints"


def write_optuna(path: Path, name: str, trials: Sequence[Trial], goal: Goal, about: dict[str, Any]) -> None:
    """Writes a new SQLite storage with one study, whose user attributes are `about`; trials come in order of their
    numbers, and Optuna counts from 0.
    """
    with quiet():
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        try:
            direction = "minimize" if goal.told.minimised else "maximize"
            study = optuna.create_study(storage=storage, study_name=name, direction=direction)
            for key, value in {"value": f"{goal.told.figure}, {goal.told.unit}", **about}.items():
                study.set_user_attr(key, value)
            ranges = _ranges(trials)
            study.add_trials([_told(trial, ranges, goal) for trial in sorted(trials, key=lambda trial: trial.number)])
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _told(trial: Trial, ranges: dict[str, BaseDistribution], goal: Goal) -> FrozenTrial:
    score = goal.score(trial)
    state = TrialState.FAIL if not isinstance(trial.outcome, Measured) else TrialState.COMPLETE
    if state is TrialState.COMPLETE and score is None:
        state = TrialState.PRUNED
    return optuna.trial.create_trial(
        state=state,
        value=None if score is None or state is not TrialState.COMPLETE else goal.told.natural(score),
        params={name: _choice(ranges[name], value) for name, value in trial.config.items()},
        distributions={name: ranges[name] for name in trial.config},
        user_attrs=_attributes(trial),
        constraints=told_constraints(trial),
        system_attrs={OLD_PLACE: [violation(trial)]},
    )


def _attributes(trial: Trial) -> dict[str, Any]:
    told: dict[str, Any] = {"number": trial.number, "feasible": trial.feasible, "cost_s": trial.cost_s}
    if not trial.proposed:
        told["default"] = True
    if trial.recheck is not None:
        told["recheck"] = trial.recheck
    if trial.repairs:
        told["repairs"] = list(trial.repairs)
    match trial.outcome:
        case Measured(summary=summary):
            told |= {
                "attainment": summary.attainment,
                "requests": summary.offered,
                "ttft_p99_s": summary.ttft_s.p99,
                "tpot_p99_s": summary.tpot_s.p99,
                "output_tokens_s": summary.output_throughput,
            }
            if trial.capacity is not None:
                told["dropped"] = trial.capacity.dropped
        case Crashed(crash=crash):
            told |= {"crash_category": crash.category, "crash_cause": crash.cause, "crash_line": crash.line}
        case Refused(reason=reason):
            told["refused"] = reason
    return told


def _ranges(trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    tried: dict[str, list[Value]] = {}
    for trial in trials:
        for name, value in trial.config.items():
            tried.setdefault(name, []).append(value)
    return {name: _range(values) for name, values in tried.items()}


def _range(values: Sequence[Value]) -> BaseDistribution:
    """Numbers span a range; all else are choices. Optuna takes 1 and True for one choice, so where a knob had both its
    choices are text.
    """
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values))  # pyright: ignore[reportArgumentType]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))  # pyright: ignore[reportArgumentType]
    kinds = {type(value) for value in values}
    mixed = bool in kinds and kinds & {int, float}
    return CategoricalDistribution(list(dict.fromkeys(str(v) if mixed else v for v in values)))


def _choice(range_: BaseDistribution, value: Value) -> Value:
    if isinstance(range_, CategoricalDistribution) and value not in range_.choices:
        return str(value)
    return float(value) if isinstance(range_, FloatDistribution) else value  # pyright: ignore[reportArgumentType]
