from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.online import OnlineTime
from sloguard.rng import stream

TRUE = BatchTime((Piece(8e-3, 50e-6, 40e-6, 60e-9, 1e-9),), cpu_step_s=2e-4, cpu_sequence_s=5e-5)


def steps(n: int, seed: int = 0) -> list[Batch]:
    rng = stream(seed, "steps")
    return [
        Batch(((int(rng.integers(1, 1024)), 0),) * int(rng.integers(2)), int(d), int(d) * 500)
        for d in rng.integers(1, 128, n)
    ]


def learnt(prior: BatchTime, noise: Sequence[float], seed: int = 0) -> OnlineTime:
    online = OnlineTime(prior)
    for batch, factor in zip(steps(len(noise), seed), noise, strict=True):
        online.observe(batch, TRUE.seconds(batch) * factor)
    return online


def test_knows_only_the_prior_before_the_first_step():
    online = OnlineTime(TRUE)
    assert online.seconds(Batch((), 8, 100)) == TRUE.seconds(Batch((), 8, 100))
    assert online.margin > 1


@pytest.mark.parametrize("wrong", [0.7, 0.85, 1.2, 1.4])
def test_a_prior_that_is_wrong_by_a_factor_is_mended_within_a_few_steps(wrong: float):
    online = learnt(TRUE.scaled(wrong), [1.0] * 5)
    assert online.bias == pytest.approx(1 / wrong, rel=0.03)
    batch = Batch(((512, 0),), 64, 30_000)
    assert learnt(TRUE.scaled(wrong), [1.0] * 50).seconds(batch) == pytest.approx(TRUE.seconds(batch), rel=0.005)


@pytest.mark.parametrize("wrong", [0.7, 1.4])
def test_noise_does_not_bias(wrong: float):
    noise = stream(1, "noise").lognormal(0.0, 0.1, 3000)
    tail = [learnt(TRUE.scaled(wrong), noise[:n].tolist()).bias * wrong for n in range(1000, 3000, 100)]
    assert np.mean(tail) == pytest.approx(1.0, abs=0.01)
    assert np.std(tail) < 0.03


def test_a_stall_of_a_hundredfold_step_is_no_lesson():
    noise = [1.0] * 200 + [100.0]
    assert learnt(TRUE, noise).bias < 1.006


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("wrong", [0.7, 1.4])
def test_nine_steps_of_ten_stay_below_the_margin(sigma: float, wrong: float):
    online = OnlineTime(TRUE.scaled(wrong))
    noise = stream(2, "noise").lognormal(0.0, sigma, 4000)
    below: list[bool] = []
    for batch, factor in zip(steps(4000), noise, strict=True):
        actual_s = TRUE.seconds(batch) * factor
        below.append(actual_s <= online.seconds(batch) * online.margin)
        online.observe(batch, actual_s)
    assert np.mean(below[500:]) == pytest.approx(0.9, abs=0.02)


def test_the_margin_follows_a_machine_that_gets_noisier_and_calmer():
    rng = stream(3, "noise")
    calm, wild = rng.lognormal(0.0, 0.02, 1500).tolist(), rng.lognormal(0.0, 0.2, 1500).tolist()
    assert learnt(TRUE, calm).margin == pytest.approx(np.exp(1.28 * 0.02), rel=0.03)
    assert learnt(TRUE, calm + wild).margin == pytest.approx(np.exp(1.28 * 0.2), rel=0.1)
    assert learnt(TRUE, wild + calm).margin == pytest.approx(np.exp(1.28 * 0.02), rel=0.03)


def test_the_inverse_fits_what_was_learnt():
    online = learnt(TRUE.scaled(0.7), stream(4, "noise").lognormal(0.0, 0.05, 500).tolist())
    for budget_s in (0.02, 0.05, 0.2):
        n = online.inverse(budget_s, decodes=16, kv_tokens=8000, context_tokens=100)
        assert online.seconds(Batch(((n, 100),), 16, 8000)) <= budget_s * (1 + 1e-12)
        assert online.seconds(Batch(((n + 1, 100),), 16, 8000)) > budget_s * (1 - 1e-12)


def test_equal_observations_teach_equally():
    noise = stream(5, "noise").lognormal(0.0, 0.1, 300).tolist()
    one, other = learnt(TRUE, noise), learnt(TRUE, noise)
    assert (one.bias, one.margin) == (other.bias, other.margin)


def test_a_step_that_took_no_time_is_passed_over():
    online = OnlineTime(BatchTime((Piece(0.0, 0.0, 0.0, 0.0, 0.0),)))
    online.observe(Batch((), 1, 1), 1.0)
    online.observe(Batch((), 1, 1), 0.0)
    assert online.bias == 1.0
