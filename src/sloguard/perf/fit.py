"""Learns a batch time from measured steps: least squares of the relative error, non-negative coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from sloguard.perf.batch_time import Batch, BatchTime, Piece

SPLITS_TOKENS = (64, 128, 192, 256, 384, 512, 768)  # first guesses of where arithmetic takes over from reading weights
ROUNDS = 30  # alternations of "assign each sample to the larger piece" and "fit each piece"; a few suffice
FEATURES = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step."""

    batch: Batch
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted batch time and how far it is off: `mape` and `p95_ape` are shares, `r2` of the seconds themselves."""

    model: BatchTime
    mape: float
    p95_ape: float
    r2: float
    n: int


def fit(samples: Sequence[Sample]) -> Fit:
    """The better of one piece and two, by mean absolute relative error on `samples`.

    Raises ValueError for fewer than 10 samples or a step that took no time.
    """
    if len(samples) < 2 * FEATURES:
        raise ValueError(f"{len(samples)} samples are too few to fit {FEATURES} coefficients")
    seconds = np.array([s.seconds for s in samples])
    if np.any(seconds <= 0):
        raise ValueError("every sample must have taken some time")
    x = np.array([_features(s.batch) for s in samples])
    tokens = x[:, 1] + x[:, 2]
    candidates = [[_fit_piece(x, seconds)]]
    candidates += [pieces for split in SPLITS_TOKENS if (pieces := _fit_two(x, seconds, tokens > split)) is not None]
    best = min(candidates, key=lambda pieces: float(np.mean(_relative_errors(pieces, x, seconds))))
    return residuals(BatchTime(tuple(Piece(*map(float, p)) for p in best)), samples)


def residuals(model: BatchTime, samples: Sequence[Sample]) -> Fit:
    """How well `model` predicts samples that it may not have been fitted on."""
    seconds = np.array([s.seconds for s in samples])
    predicted = np.array([model.seconds(s.batch) for s in samples])
    errors = np.abs(predicted / seconds - 1)
    unexplained = float(np.sum((predicted - seconds) ** 2))
    spread = float(np.sum((seconds - seconds.mean()) ** 2))
    r2 = 1 - unexplained / spread if spread else 0.0
    return Fit(model, float(errors.mean()), float(np.percentile(errors, 95)), r2, len(samples))


def _features(batch: Batch) -> tuple[float, ...]:
    """[5] in the order of `Piece`'s fields."""
    return 1.0, batch.prefill_tokens, batch.decodes, batch.kv_tokens, batch.attention_pairs


def _fit_piece(x: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """[5] coefficients minimising the squared relative error; columns are scaled so that all weigh alike."""
    rows = x / seconds[:, None]
    scale = np.maximum(rows.max(axis=0), 1e-12)
    found = nnls(rows / scale, np.ones(len(rows)))[0]  # pyright: ignore[reportUnknownVariableType]
    return np.asarray(found, dtype=np.float64) / scale


def _fit_two(
    x: NDArray[np.float64], seconds: NDArray[np.float64], upper: NDArray[np.bool_]
) -> list[NDArray[np.float64]] | None:
    """Two pieces by alternation (Magnani and Boyd, 2009); None where one of them is left without samples."""
    pieces: list[NDArray[np.float64]] | None = None
    for _ in range(ROUNDS):
        if min(int(upper.sum()), int((~upper).sum())) < 2 * FEATURES:
            return pieces
        pieces = [_fit_piece(x[part], seconds[part]) for part in (~upper, upper)]
        assigned = x @ pieces[1] > x @ pieces[0]
        if np.array_equal(assigned, upper):
            return pieces
        upper = assigned
    return pieces


def _relative_errors(
    pieces: Sequence[NDArray[np.float64]], x: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.abs(np.max([x @ piece for piece in pieces], axis=0) / seconds - 1)
