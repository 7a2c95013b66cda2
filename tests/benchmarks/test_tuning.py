"""The benchmark of the tuner: its worlds, its statistics, and that what is on record is not run again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from optim import planted
from paths import REPO

sys.path.insert(0, str(REPO / "benchmarks" / "tuning"))

import loop
import prior
import tasks
from records import Run
from stats import at_times, mean_and_sd
from truth import Truth, Worlds, fingerprint
from world import Hidden, World, true_time

from sloguard.sim.settings import read_settings
from sloguard.study import prior as study_prior
from sloguard.trial import Capacity, Config, Leg, Measured, Trial

BURSTY = tasks.TASKS["3090-4b-bursty"]


def test_without_distortion_the_world_is_what_the_simulator_believes():
    task = replace(BURSTY, distortion=0.0, others_gib=0.0)
    hidden = Hidden.of(task)
    assert (hidden.compute, hidden.memory, hidden.overhead, hidden.activations) == (1, 1, 1, 0)
    world = World(task, 1)
    settings = read_settings(world.default_config())
    believed = world.step_time(settings, world.tp)
    assert true_time(believed, settings, hidden) == believed
    assert true_time(believed, settings, Hidden.of(BURSTY)) != believed


def test_a_study_is_made_once_and_again_when_its_task_changed(tmp_path):
    (tmp_path / "runs").mkdir()
    path = loop.run_one(tmp_path, BURSTY, "random+default", 1)
    written, at_ns = path.read_text(), path.stat().st_mtime_ns
    records = [json.loads(line) for line in written.splitlines()]
    assert [one["recheck"] for one in records[: loop.BUDGET]] == [None] * loop.BUDGET
    assert all(one["recheck"] for one in records[loop.BUDGET :])
    assert sum(one["deployed"] for one in records) == 1
    assert loop.run_one(tmp_path, BURSTY, "random+default", 1).stat().st_mtime_ns == at_ns
    changed = replace(BURSTY, others_gib=20.0)
    assert loop.run_one(tmp_path, changed, "random+default", 1).read_text() != written


def test_a_task_is_rehearsed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(study_prior, "DRAWN", 3)
    monkeypatch.setattr(study_prior, "SOUGHT", 2)
    monkeypatch.setattr(prior, "TRIALS", 6)
    trials = prior.simulation(tmp_path, BURSTY).trials
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5, 6]
    assert [trial.proposed for trial in trials].count(Config()) == 1
    assert not any(trial.recheck or (trial.capacity and trial.capacity.dropped) for trial in trials)
    monkeypatch.setattr(prior, "TRIALS", 0)
    assert prior.simulation(tmp_path, BURSTY).trials == trials


def test_a_mirrored_prior_tells_the_best_as_the_worst(tmp_path, monkeypatch):
    monkeypatch.setattr(study_prior, "DRAWN", 6)
    monkeypatch.setattr(study_prior, "SOUGHT", 2)
    monkeypatch.setattr(prior, "TRIALS", 9)
    told, turned = (
        [(trial.proposed, trial.capacity.low) for trial in of(tmp_path, BURSTY).trials if trial.feasible]
        for of in (prior.simulation, prior.mirrored)
    )
    assert len(told) > 2
    assert [config for config, _ in told] == [config for config, _ in turned]
    rates, back = (np.array([rate for _, rate in each]) for each in (told, turned))
    assert rates * back == pytest.approx(rates.min() * rates.max())


def test_truths_are_kept_by_world(tmp_path):
    Worlds(tmp_path)._write(BURSTY, "{}", Truth(2.0, 0.5))
    assert Worlds(tmp_path).truth(BURSTY, Config()) == Truth(2.0, 0.5)
    assert fingerprint(BURSTY) != fingerprint(replace(BURSTY, ttft_ms=900))
    assert not Worlds(tmp_path).known(replace(BURSTY, ttft_ms=900))


def capacity_of(rate: float) -> Measured:
    kept, lost = Leg(rate, True, 20, 20, True, -1.0), Leg(1.05 * rate + 0.1, False, 10, 20, True, 1.0)
    legs = (kept, lost) if rate else (lost,)
    return replace(planted.measured(1.0, 0.3 if rate else 9.0), capacity=Capacity(legs, 0.05))


def test_the_incumbent_is_the_best_by_all_that_was_measured_of_it():
    asked = [(1, 0.0), (2, 2.0), (3, 3.0), (4, 2.5), (3, 1.0)]
    configs = [Config({"max_num_seqs": 8 * which}) for which, _ in asked]
    made = zip(configs, asked, strict=True)
    trials = [Trial(n, config, config, capacity_of(rate), 10.0) for n, (config, (_, rate)) in enumerate(made, start=1)]
    leaders = loop.leaders(trials)
    assert leaders == [None, 2, 3, 3, 4], "the third was lucky: 3 and 1 make 1.7"
    lines = [{"number": n, "leader": who, "cost_s": 10.0} for n, who in enumerate(leaders, start=1)]
    run = Run("task", "way", 1, lines)
    assert [one and one["number"] for one in run.incumbents] == [*leaders, *[4] * (loop.BUDGET - 5)]
    assert run.ends_s[-1] == 50.0


def test_a_curve_is_read_at_instants():
    assert at_times(np.array([1.0, 2.0]), np.array([5.0, 6.0]), np.array([0.5, 1.0, 9.0])).tolist() == [0.0, 5.0, 6.0]


def test_one_study_has_no_spread() -> None:
    assert (mean_and_sd([2.0]), mean_and_sd([1.0, 3.0])) == ("2.00", "2.00 +- 1.41")
