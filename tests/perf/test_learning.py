from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from scipy.optimize import nnls

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.learning import FIRST_GUESS, OUTLIER, LearningTime, _least_squares
from sloguard.rng import stream

PLANTED = Piece(6e-3, 120e-6, 80e-6, 200e-9, 10e-9)
TRUE = BatchTime((PLANTED,))


def mixed(rng: Generator) -> Iterator[Batch]:
    """As an engine computes: prompts in chunks beside decodes, prompts alone, decodes alone."""
    while True:
        decodes = int(rng.integers(0, 64))
        prefill = int(rng.integers(1, 2048)) if not decodes or rng.random() < 0.5 else 0
        chunks = ((prefill, int(rng.integers(0, 1024))),) if prefill else ()
        yield Batch(chunks, decodes, decodes * int(rng.integers(100, 2000)))


def decodes_alone(rng: Generator) -> Iterator[Batch]:
    while True:
        decodes = int(rng.integers(1, 64))
        yield Batch((), decodes, decodes * int(rng.integers(100, 2000)))


def learn(
    time: LearningTime,
    batches: Iterator[Batch],
    steps: int,
    rng: Generator,
    sigma: float = 0.05,
    true: BatchTime = TRUE,
) -> LearningTime:
    for _, batch in zip(range(steps), batches, strict=False):
        time.observe(batch, true.seconds(batch) * rng.lognormal(0.0, sigma))
    return time


def error(time: LearningTime, batches: Iterator[Batch], true: BatchTime = TRUE) -> float:
    """Mean relative error of 500 predictions."""
    pairs = [(time.seconds(batch), true.seconds(batch)) for _, batch in zip(range(500), batches, strict=False)]
    return float(np.mean([abs(said / was - 1) for said, was in pairs]))


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_steps_are_predicted_within_the_noise_whatever_the_machine(scale: float, seed: int):
    rng, true = stream(seed, "steps"), TRUE.scaled(scale)
    time = learn(LearningTime(), mixed(rng), 1500, rng, true=true)
    assert error(time, mixed(rng), true) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_coefficients_are_found(seed: int):
    rng = stream(seed, "steps")
    time = learn(LearningTime(), mixed(rng), 4000, rng)
    found, bias = time._piece, time.bias
    assert found.base_s * bias == pytest.approx(PLANTED.base_s, rel=0.3)
    assert found.prefill_token_s * bias == pytest.approx(PLANTED.prefill_token_s, rel=0.15)
    assert found.decode_s * bias == pytest.approx(PLANTED.decode_s, rel=0.4)
    assert found.kv_token_s * bias == pytest.approx(PLANTED.kv_token_s, rel=0.3)
    assert found.attention_pair_s * bias == pytest.approx(PLANTED.attention_pair_s, rel=0.6)


def test_before_there_are_enough_steps_the_first_guess_is_only_scaled():
    rng, time = stream(0, "steps"), LearningTime()
    assert time.seconds(Batch((), 4, 400)) == BatchTime((FIRST_GUESS,)).seconds(Batch((), 4, 400))
    learn(time, mixed(rng), 15, rng)
    assert time.prior == BatchTime((FIRST_GUESS,))


def test_a_phase_of_decodes_alone_does_not_wash_out_what_was_learnt_of_prompts():
    rng = stream(1, "steps")
    time = learn(LearningTime(), mixed(rng), 1000, rng)
    learn(time, decodes_alone(rng), 20_000, rng)
    assert error(time, mixed(rng)) < 0.06


def test_prompts_that_come_only_after_a_phase_of_decodes_are_learnt():
    rng = stream(2, "steps")
    time = learn(LearningTime(), decodes_alone(rng), 5000, rng)
    assert error(time, decodes_alone(rng)) < 0.05
    assert error(learn(time, mixed(rng), 1000, rng), mixed(rng)) < 0.06


@pytest.mark.parametrize("at", range(20))
def test_a_first_use_that_takes_a_second_is_soon_forgotten(at: int):
    rng, time = stream(at, "steps"), LearningTime()
    learn(time, mixed(rng), at, rng)
    time.observe(Batch((), 8, 8000), 1.0)
    assert error(learn(time, mixed(rng), 600, rng), mixed(rng)) < 0.08


def test_a_stall_counts_as_no_more_than_an_outlier():
    rng = stream(3, "steps")
    one, other = (learn(LearningTime(), mixed(stream(3, "a")), 700, stream(3, "b")) for _ in range(2))
    batch = next(mixed(rng))
    one.observe(batch, OUTLIER * one.seconds(batch))
    other.observe(batch, 1e6)
    assert one.seconds(batch) == other.seconds(batch)


def test_a_machine_that_becomes_slower_is_followed():
    rng = stream(4, "steps")
    time = learn(LearningTime(), mixed(rng), 1000, rng)
    slower = TRUE.scaled(1.3)
    assert error(learn(time, mixed(rng), 3000, rng, true=slower), mixed(rng), slower) < 0.08


def test_it_keeps_a_cell_for_each_size_and_no_more():
    rng = stream(5, "steps")
    time = learn(LearningTime(), mixed(rng), 5000, rng)
    assert len(time._cells) <= 12 * 7


def test_steps_without_time_are_passed_over_and_equal_ones_teach_equally():
    one, other = (learn(LearningTime(), mixed(stream(6, "a")), 300, stream(6, "b")) for _ in range(2))
    one.observe(Batch((), 1, 1), 0.0)
    for batch, _ in zip(mixed(stream(7, "a")), range(50), strict=False):
        assert one.seconds(batch) == other.seconds(batch)


@given(st.integers(0, 2**32 - 1), st.integers(5, 30), st.booleans())
def test_least_squares_are_scipys(seed: int, count: int, planted: bool):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 5)) if not planted else rng.uniform(0, 1, size=(count, 5))
    aim = (
        rows @ np.maximum(rng.normal(size=5), 0.0) + 0.1 * rng.normal(size=count) if planted else rng.normal(size=count)
    )
    # As `_fit` asks: a small pull towards something, so that what no row tells has an answer.
    rows, aim = np.vstack([rows, 0.01 * np.eye(5)]), np.concatenate([aim, np.zeros(5)])
    expected, residual = nnls(rows, aim)
    found = _least_squares(rows, aim)
    assert found.min() >= 0
    assert np.linalg.norm(rows @ found - aim) == pytest.approx(residual, rel=1e-9, abs=1e-12)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
