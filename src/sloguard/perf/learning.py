"""A batch time learnt from nothing but the steps that run, for an engine that nobody has profiled.

cells    steps of like size (powers of two of their prefill tokens and of their decodes) share a cell, which holds the
         moving means of what they computed and of what they took: a phase of decodes alone is one cell of many, and
         can't wash out what was learnt of prompts
model    one piece of batch_time.py, so five coefficients, none negative: least squares of relative errors over the
         cells, drawn a little towards the piece before it, for what no cell tells
drift    what no step has told of since the last fit is taken to have become slower or faster with everything else
outliers a step that took more than OUTLIER times what was expected counts as that: kernels are compiled, and caches
         filled, on first use. The first steps are not believed at all

Between two fits the factor and the margin of online.py go on correcting. Deterministic; O(1) a step,
and a fit takes 0.5 ms.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.online import OnlineTime

FIRST_GUESS = Piece(10e-3, 50e-6, 50e-6, 0.0, 0.0)  # a small GPU's
FIRST_FIT_STEPS = 16
FIT_EVERY_STEPS = 64
CELL_WEIGHT = 0.05  # of the latest step in its cell's means
TRUSTED_STEPS = 16  # a cell with more weighs no more
PULL = 0.02  # of the piece before, as a share of a cell's weight: it decides only what the cells don't
OUTLIER = 3.0
UNBELIEVED_STEPS = 3

Array = NDArray[np.float64]


class LearningTime(OnlineTime):
    """`first` is believed until FIRST_FIT_STEPS steps were seen."""

    def __init__(self, first: Piece = FIRST_GUESS) -> None:
        super().__init__(BatchTime((first,)))
        self._piece = first
        self._cells: dict[tuple[int, int], tuple[int, Array, float]] = {}  # steps, means of what, mean of seconds
        self._fresh: set[tuple[int, int]] = set()  # cells with steps since the last fit
        self._seen = 0

    def observe(self, batch: Batch, seconds: float) -> None:
        self._seen += 1
        if self._seen <= UNBELIEVED_STEPS or seconds <= 0:
            return
        if self._seen > FIRST_FIT_STEPS:
            seconds = min(seconds, OUTLIER * self.seconds(batch))
        super().observe(batch, seconds)
        self._into_cell(batch, seconds)
        if self._seen == FIRST_FIT_STEPS or self._seen % FIT_EVERY_STEPS == 0:
            self._fit()

    def _into_cell(self, batch: Batch, seconds: float) -> None:
        prefill = batch.prefill_tokens
        what = np.array([1.0, prefill, batch.decodes + batch.draft_tokens, batch.kv_tokens, batch.attention_pairs])
        key = prefill.bit_length(), batch.decodes.bit_length()
        steps, mean, mean_s = self._cells.get(key, (0, what, seconds))
        weight = max(CELL_WEIGHT, 1 / (steps + 1))
        self._fresh.add(key)
        self._cells[key] = steps + 1, mean + weight * (what - mean), mean_s + weight * (seconds - mean_s)

    def _fit(self) -> None:
        for key in self._cells.keys() - self._fresh:
            steps, mean, mean_s = self._cells[key]
            self._cells[key] = steps, mean, mean_s * self.bias
        self._fresh.clear()
        cells = list(self._cells.values())
        what = np.array([mean for _, mean, _ in cells])
        relative = np.sqrt([min(steps, TRUSTED_STEPS) for steps, _, _ in cells]) / [mean_s for _, _, mean_s in cells]
        seconds = np.array([mean_s for _, _, mean_s in cells])
        # Each coefficient in units of what it is worth at the largest batch, so that one pull suits all.
        unit = 1 / np.maximum(what.max(axis=0), 1.0)
        before = np.array(_five(self._piece)) * self.bias / unit
        pull = PULL * float(np.median(relative))
        rows = np.vstack([what * unit * relative[:, None], np.eye(len(unit)) * pull])
        found = _least_squares(rows, np.concatenate([seconds * relative, before * pull]))
        if found.any():
            self._piece = Piece(*(found * unit).tolist())
            self.start_from(BatchTime((self._piece,)))


def _five(piece: Piece) -> tuple[float, ...]:
    return piece.base_s, piece.prefill_token_s, piece.decode_s, piece.kv_token_s, piece.attention_pair_s


def _least_squares(rows: Array, aim: Array) -> Array:
    """The non-negative x [d] of least |rows x - aim|: the best of all choices of what is not 0. An engine's environment
    has NumPy, and SciPy only by chance.
    """
    gram, projected = rows.T @ rows, rows.T @ aim
    best, best_gain = np.zeros(len(gram)), 0.0
    for free in product((False, True), repeat=len(gram)):
        at = np.flatnonzero(free)
        if not len(at):
            continue
        x = np.linalg.solve(gram[np.ix_(at, at)], projected[at])
        gain = float(projected[at] @ x)
        if x.min() >= 0 and gain > best_gain:
            best, best_gain = np.zeros(len(gram)), gain
            best[at] = x
    return best
