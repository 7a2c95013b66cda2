"""What every optimizer owes: one suite over the whole table."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optim import planted
from sloguard.errors import MissingExtra
from sloguard.optim import OPTIMIZERS
from sloguard.optim.base import Exhausted, Goal, Optimizer, Problem, best
from sloguard.registry import load
from sloguard.rng import stream
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Outcome, Refused, Trial

NEEDS = {"constrained-bo": "botorch"}
SLOW = {"constrained-bo"}  # seconds a study: fewer seeds
LEARNING = [name for name in OPTIMIZERS if name != "random"]


def optimizer(name: str, problem: Problem) -> Optimizer:
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} needs {package}: pip install 'sloguard[bo]'")
    return load(OPTIMIZERS, name, "optimizer")(problem)


every = pytest.mark.parametrize("name", OPTIMIZERS)
learning = pytest.mark.parametrize("name", LEARNING)


@cache
def studied(name: str, seed: int, budget: int = 16) -> tuple[Trial, ...]:
    problem = planted.problem(budget=budget)
    return tuple(planted.run(optimizer(name, problem), problem, planted.cliff, seed))


@every
def test_every_proposal_lies_inside_the_space_with_its_inactive_knobs_absent(name: str) -> None:
    for trial in studied(name, 1):
        assert planted.SPACE.contains(trial.proposed)
        assert ("chunked" in trial.proposed) is (trial.proposed["eager"] is False)


@every
def test_the_same_log_and_seed_give_the_same_proposal_and_another_seed_another(name: str) -> None:
    problem = planted.problem(budget=16)
    history = studied(name, 1)[:9]
    again = [optimizer(name, problem).propose(list(history), stream(1, "propose", 10)) for _ in range(2)]
    assert again[0] == again[1]
    starts = [optimizer(name, problem).propose([], stream(seed, "propose", 1)) for seed in (1, 2)]
    assert starts[0] != starts[1]


@every
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(split=st.integers(0, 15))
def test_a_study_resumed_at_any_trial_equals_the_uninterrupted_one(name: str, split: int) -> None:
    """The log goes through JSON, as on disk, and a new optimizer goes on from it."""
    whole = studied(name, 1)
    problem = planted.problem(budget=16)
    read = [Trial.from_json(trial.to_json()) for trial in whole[:split]]
    stop = min(split + 3, 16) if name in SLOW else 16
    resumed = planted.run(optimizer(name, planted.problem(budget=16)), problem, planted.cliff, 1, read, stop)
    assert resumed == list(whole[:stop])


@every
def test_one_object_keeps_nothing_between_calls(name: str) -> None:
    problem = planted.problem(budget=16)
    used = optimizer(name, problem)
    for other in (2, 3):
        used.propose(studied("random", other)[:12], stream(other, "propose", 13))
    history = studied(name, 1)[:8]
    assert used.propose(history, stream(1, "propose", 9)) == studied(name, 1)[8].proposed


@every
@pytest.mark.parametrize("repaired", [False, True])
def test_a_finite_space_is_used_up_without_a_repetition_and_then_said_to_be(name: str, repaired: bool) -> None:
    def fewer(config: Config) -> Config:
        return planted.SMALL.activate({**config, "n": 2} if config["n"] == 3 else config)

    space = planted.SMALL
    problem = Problem(space, Goal(), 30, fewer if repaired else lambda config: config)
    trials = planted.run(optimizer(name, problem), problem, lambda c: planted.measured(float(len(c)), 0.3), 5)
    ran = [trial.config for trial in trials]
    assert set(ran) == {problem.repair(config) for config in space.configs()}
    assert len(ran) == len(set(ran))
    with pytest.raises(Exhausted):
        optimizer(name, problem).propose(trials, stream(5, "propose", 99))


@every
def test_a_space_without_knobs_has_one_config(name: str) -> None:
    problem = planted.problem(Space(()), budget=3)
    trials = planted.run(optimizer(name, problem), problem, lambda _: planted.measured(1.0, 0.3), 0)
    assert [trial.config for trial in trials] == [Config()]


@every
@pytest.mark.parametrize(
    "outcome",
    [Crashed(planted.OOM), Refused("the KV cache holds no request"), Crashed(planted.PORT), planted.measured(0.0, 9.0)],
    ids=["crashes", "refusals", "environment", "misses"],
)
def test_a_log_of_one_kind_of_failure_is_survived(name: str, outcome: Outcome) -> None:
    history = planted.of(outcome, 12)
    config = optimizer(name, planted.problem()).propose(history, stream(1, "propose", 13))
    assert planted.SPACE.contains(config)
    assert config not in {trial.config for trial in history}


@every
@pytest.mark.parametrize(
    "default",
    [
        Config(),
        Config({"seqs": 1024, "tokens": 8192}),
        Config({"dtype": "bf16", "seqs": 1024, "tokens": 8192, "util": 0.99, "eager": False, "elsewhere": 3}),
    ],
    ids=["nothing stated", "partly stated", "outside the space"],
)
@pytest.mark.parametrize("length", [1, 12])
def test_the_engine_default_may_lie_anywhere(name: str, default: Config, length: int) -> None:
    first = Trial(1, default, default, planted.measured(1000.0, 0.3), 60.0)
    history = [first, *studied("random", 4)[1:length]]
    config = optimizer(name, planted.problem()).propose(history, stream(1, "propose", length + 1))
    assert planted.SPACE.contains(config)


@every
def test_a_fault_of_the_environment_teaches_nothing(name: str) -> None:
    """A log ends in a fault at a place nobody proposes again: what is proposed next is what it would be without."""
    history = list(studied(name, 1)[:10])
    elsewhere = Config({"dtype": "fp16", "seqs": 5, "tokens": 513, "util": 0.61, "eager": True, "prefix": False})
    fault = Trial(11, elsewhere, elsewhere, Crashed(planted.PORT), 1.0)
    ask = optimizer(name, planted.problem(budget=10**6))  # far from its end: where in the budget it is doesn't matter
    draws = [ask.propose(log, stream(1, "propose", 12)) for log in (history, [*history, fault])]
    assert draws[0] == draws[1]


@cache
def late_crashes(name: str, evaluate: planted.Evaluate, seeds: int) -> float:
    """Share of the last third of 30 trials."""
    shares: list[float] = []
    for seed in range(seeds):
        problem = planted.problem(budget=30)
        trials = planted.run(optimizer(name, problem), problem, evaluate, seed)
        shares.append(float(np.mean([isinstance(trial.outcome, Crashed) for trial in trials[20:]])))
    return float(np.mean(shares))


@cache
def found(name: str, seeds: int) -> float:
    """Mean of the best goodput after 30 trials."""
    scores: list[float] = []
    for seed in range(seeds):
        problem = planted.problem(budget=30)
        trial = best(planted.run(optimizer(name, problem), problem, planted.smooth, seed), Goal())
        assert trial is not None
        scores.append(Goal().score(trial) or 0.0)
    return float(np.mean(scores))


@learning
def test_a_crash_region_is_learnt(name: str) -> None:
    """A third of uniform draws crash, so random search never falls far below that."""
    seeds = 1 if name in SLOW else 3
    assert late_crashes(name, planted.crash_aside, seeds) < 0.5 * late_crashes("random", planted.crash_aside, 20)


@pytest.mark.parametrize("name", ["tba", "tba-tpe", "guided"])
def test_an_edge_is_respected_though_the_best_configs_lie_along_it(name: str) -> None:
    """What plain TPE doesn't do: it crashes there as often as random search."""
    assert late_crashes(name, planted.crash_region, 4) < 0.7 * late_crashes("random", planted.crash_region, 20)


@learning
def test_it_finds_more_than_random_search(name: str) -> None:
    assert found(name, 1 if name in SLOW else 6) > found("random", 20) + 2.0


def test_a_missing_package_is_named_when_the_optimizer_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"sloguard\[bo\]"):
        load(OPTIMIZERS, "constrained-bo", "optimizer")(planted.problem())
