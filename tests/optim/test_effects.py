"""What trials say of knobs: a planted function is found again, noise is not taken for an effect."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fakes import served, some_requests
from sloguard.contract import Verdict
from sloguard.crash import Crash
from sloguard.metrics import summarise
from sloguard.optim.base import Goal
from sloguard.optim.effects import effects, tried_space
from sloguard.space.knobs import Categorical, Float, Int
from sloguard.trial import Capacity, Config, Crashed, Leg, Measured, Trial

SUMMARY = summarise(served(some_requests(20), 0.1, 0.01))


def measured(rate: float) -> Measured:
    legs = (Leg(rate, True, 100, 100, True, -0.5), Leg(rate * 1.04, False, 90, 100, True, 0.5))
    return Measured(SUMMARY, Verdict((), 20), 1.0, capacity=Capacity(legs, 0.05))


def study(n: int = 24, seed: int = 0, noise: float = 0.01) -> list[Trial]:
    """log score = -(log2(seqs) - 6)^2 / 20 + 0.1 fast + noise; `idle` does nothing."""
    rng = np.random.default_rng(seed)
    trials: list[Trial] = []
    for number in range(1, n + 1):
        power, fast = rng.uniform(3, 9), bool(rng.integers(2))
        config = Config({"seqs": round(2**power), "fast": fast, "idle": float(rng.uniform(0.1, 0.2)), "fixed": 1})
        height = -((power - 6) ** 2) / 20 + 0.1 * fast + rng.normal(0, noise)
        trials.append(Trial(number, config, config, measured(5 * math.exp(height)), 1.0))
    return trials


def test_a_planted_effect_is_found_and_its_best_value() -> None:
    found = effects(study(), Goal("capacity"))
    assert found is not None
    assert [one.knob.name for one in found.knobs] == ["seqs", "fast", "idle"]
    seqs, fast, idle = found.knobs
    assert (seqs.clear, fast.clear, idle.clear) == (True, True, False)
    assert isinstance(seqs.best, int)
    assert 40 <= seqs.best <= 100
    assert fast.best is True
    assert fast.mean[1] / fast.mean[0] == pytest.approx(math.exp(0.1), rel=0.05)
    assert all(
        low < mean < high for one in found.knobs for low, mean, high in zip(one.low, one.mean, one.high, strict=True)
    )


def test_the_pair_is_of_the_two_strongest_and_sees_no_interaction_where_there_is_none() -> None:
    found = effects(study(), Goal("capacity"))
    assert found is not None
    assert found.pair is not None
    assert [knob.name for knob in found.pair.knobs] == ["seqs", "fast"]
    assert len(found.pair.mean) == len(found.pair.values[0])
    assert {len(row) for row in found.pair.mean} == {2}
    assert found.pair.interaction < 0.02


def test_equal_trials_give_equal_effects() -> None:
    assert effects(study(), Goal("capacity")) == effects(study(), Goal("capacity"))


def test_a_latency_is_best_where_it_is_least() -> None:
    rng = np.random.default_rng(1)
    trials: list[Trial] = []
    for number in range(1, 13):
        config = Config({"n": int(rng.integers(1, 60))})
        seconds = 1.0 + config["n"] / 60  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        outcome = measured(1.0)
        slow = replace(outcome, summary=replace(SUMMARY, e2el_s=replace(SUMMARY.e2el_s, mean=seconds)), capacity=None)
        trials.append(Trial(number, config, config, slow, 1.0))
    found = effects(trials, Goal("latency"))
    assert found is not None
    assert found.knobs[0].best == min(t.config["n"] for t in trials)  # pyright: ignore[reportArgumentType]
    assert all(-2.2 < score < -0.9 for score in found.knobs[0].mean)


def test_too_few_scores_or_nothing_that_changed_say_nothing() -> None:
    oom = Crashed(Crash("oom", "gpu_memory", "", "", "startup"))
    crashed = [replace(trial, outcome=oom) for trial in study(8)]
    same = [replace(trial, config=Config({"a": 1})) for trial in study(8)]
    for trials in ([], study(3), crashed, same):
        assert effects(trials, Goal("capacity")) is None


def test_knobs_reach_as_far_as_they_were_tried() -> None:
    values = [8, 20, 64, 300, 1000, 512]
    configs = [
        Config({"n": n, "x": 0.8 + i / 50, "size": (16, 32)[i % 2], "on": i > 2, "name": "ab"[i % 2], "same": 7})
        for i, n in enumerate(values)
    ]
    assert tried_space([*configs, Config({"odd": "only here"}), Config({"odd": None})]).knobs == (
        Int("n", 8, 1000, log=True),
        Categorical("name", ("a", "b")),
        Categorical("odd", (None, "only here")),
        Categorical("on", (False, True)),
        Categorical("size", (16, 32)),
        Float("x", 0.8, 0.9),
    )
