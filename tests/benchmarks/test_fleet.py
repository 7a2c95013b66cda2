"""The arithmetic of the benchmarks of many replicas."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from paths import REPO

sys.path.insert(0, str(REPO / "benchmarks"))

import fleet_overload
import fleet_routers
from parallel_tuning import hours_to


def test_arrivals_are_bursts_of_the_asked_rate():
    requests = fleet_routers.bursts(8.0, 300.0, 1)
    gaps_s = np.diff([request.arrival_s for request in requests])
    assert np.mean(gaps_s) == pytest.approx(1 / 8, rel=0.3)
    assert np.std(gaps_s) > 2 * np.mean(gaps_s)  # of a Poisson process they are equal


def test_an_overload_begins_and_ends_when_it_should():
    requests = fleet_overload.profile((0.0, 60.0, 180.0, 270.0), (5.0, 25.0, 5.0))
    at_s = np.array([request.arrival_s for request in requests])
    assert np.all(np.diff(at_s) >= 0)
    counts = [np.sum((at_s >= a) & (at_s < b)) / (b - a) for a, b in ((0, 60), (60, 180), (180, 270))]
    assert counts == pytest.approx([5, 25, 5], rel=0.2)


def test_hours_to_a_score_count_to_the_first_trial_that_has_it():
    curve = [(0.0, 0.0), (1.0, 5.0), (2.0, 9.0)]
    assert (hours_to(curve, 5.0), hours_to(curve, 6.0), hours_to(curve, 10.0)) == (1.0, 2.0, None)
