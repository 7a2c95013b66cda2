"""What Optuna is told, and that it is left as it was found."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim import planted
from sloguard.contract import Check, Limit, Metric, Verdict
from sloguard.optim.base import violation
from sloguard.optim.tpe import Tpe, told_constraints
from sloguard.rng import stream
from sloguard.slo import Judgement
from sloguard.trial import Config, Crashed, Measured, Outcome, Refused, Trial

LIMITS = [Limit(metric, 99, 0.1) for metric in Metric]


def trial(outcome: Outcome) -> Trial:
    return Trial(1, Config(), Config(), outcome, 1.0)


def served(measured_s: list[float | None], completed: int = 10) -> Measured:
    base = planted.measured(1.0, 0.1)
    checks = tuple(Check(limit, m, Judgement.UNKNOWN) for limit, m in zip(LIMITS, measured_s, strict=False))
    return Measured(base.summary, Verdict(checks, completed), 1.0)


def rank(outcome: Outcome) -> float:
    """How Optuna 5.0 ranks infeasible trials: the plain sum of their positive constraints."""
    return sum(value for value in told_constraints(trial(outcome)).values() if value > 0)


@given(st.lists(st.none() | st.floats(0, float("inf")), max_size=4), st.sampled_from([0, 10]))
def test_no_miss_is_told_as_worse_than_a_crash(measured_s: list[float | None], completed: int) -> None:
    outcome = served(measured_s, completed)
    assert rank(outcome) == pytest.approx(violation(trial(outcome)))
    assert rank(outcome) < rank(Crashed(planted.OOM)) == rank(Refused("no room"))


def test_a_constraint_is_told_under_the_name_of_its_limit() -> None:
    told = told_constraints(trial(served([0.2, 0.05])))
    assert told == pytest.approx({"p99(TTFT) <= 100 ms": 0.693147, "p99(TPOT) <= 100 ms": -0.693147, "serves": 0.0})


def test_a_proposal_prints_nothing_and_leaves_optunas_verbosity(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    Tpe(planted.problem()).propose(planted.of(planted.measured(1.0, 0.3), 12), stream(1, "propose"))
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_a_default_whose_place_the_engine_told_is_learnt_from() -> None:
    """A default that says nothing by itself still pulls proposals to where the engine ran it, if it ran well."""
    place = {"dtype": "fp16", "seqs": 120, "tokens": 8000, "util": 0.94, "eager": True, "prefix": True}
    dull = planted.of(planted.measured(1.0, 0.3), 12)

    def near(outcome: Outcome) -> int:
        history = [*dull, Trial(13, Config(), Config(), outcome, 1.0)]
        proposals = [Tpe(planted.problem()).propose(history, stream(seed, "propose")) for seed in range(20)]
        return sum(planted.number(config["seqs"]) > 60 for config in proposals)

    assert near(planted.measured(100.0, 0.3, effective=place)) >= near(planted.measured(100.0, 0.3)) + 5
