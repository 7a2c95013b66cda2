"""Learns a batch time from measured steps.

The form is that of batch_time.py. Its curve has corners at the powers of two up to half of the largest step: the last
segment goes on beyond. How many pieces there are, and whether batches of chunks and decodes have terms of their own, is
decided on a fifth of the samples, kept aside (max_affine.py says how pieces are found). Each stratum of samples weighs
as the root of its size, so that many mixed steps don't drown the decodes.

A term that no sample has gets no coefficient. CPU time per sequence can be told from the decodes' own only where steps
have several chunks; elsewhere it is left to them. `fit_paper` is the form of SLOs-Serve (arXiv 2504.08784) on the same
machinery: the larger of two lines in the tokens of a step, and a term for drafting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.max_affine import Problem, grow, refine
from sloguard.rng import stream

MIN_SAMPLES = 10
MAX_PIECES = 4
SELECT_SAMPLES = 80  # with fewer, none are kept aside, and there is one piece
GROW_SAMPLES = 4000  # pieces are found on so many; all samples then say what they are
GAIN = 0.97  # more terms are worth it if the error of the samples kept aside falls to this share
FIRST_CORNER_TOKENS = 8

Array = NDArray[np.float64]
STRATA = ("decode", "prefill", "mixed")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step."""

    batch: Batch
    seconds: float


@dataclass(frozen=True, slots=True)
class Residuals:
    """How far predictions are off: `mape` and `p95_ape` are shares, `r2` is of the seconds themselves."""

    n: int
    mape: float
    p95_ape: float
    r2: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A batch time and its residuals on the samples it was fitted on."""

    model: BatchTime
    residuals: Residuals
    strata: Mapping[str, Residuals]


Fitter = Callable[[Sequence[Sample]], Fit]


def fit(samples: Sequence[Sample], attention_pair_s: float = 0.0) -> Fit:
    """`attention_pair_s` is known beforehand and holds in every piece: steps whose chunks all start a prompt can't tell
    it from what their tokens cost. Raises ValueError for fewer than 10 samples or a step that took no longer than that.
    """
    rest = [replace(s, seconds=s.seconds - attention_pair_s * s.batch.attention_pairs) for s in samples]
    _check(rest)
    pieces, mixed = _terms_worth_it(rest) if len(rest) >= SELECT_SAMPLES else (1, False)
    model = _grow(rest, pieces, partial(_our_columns, mixed=mixed), _our_model)[-1]
    known = [replace(p, attention_pair_s=p.attention_pair_s + attention_pair_s) for p in model.pieces]
    return _fit(replace(model, pieces=tuple(known)), samples)


def fit_paper(samples: Sequence[Sample]) -> Fit:
    """T = max over two pieces of (k1*tokens + b), plus k2 a drafting step. Raises as `fit` does."""
    _check(samples)
    return _fit(_grow(samples, 2, _paper_columns, _paper_model)[-1], samples)


def stratum(batch: Batch) -> str:
    return "decode" if not batch.chunks else "mixed" if batch.decodes else "prefill"


def predict(model: BatchTime, samples: Sequence[Sample]) -> Array:
    return np.array([model.seconds(s.batch) for s in samples])


def residuals(samples: Sequence[Sample], predicted: Array) -> Residuals:
    seconds = np.array([s.seconds for s in samples])
    errors = np.abs(predicted / seconds - 1)
    unexplained = float(np.sum((predicted - seconds) ** 2))
    spread = float(np.sum((seconds - seconds.mean()) ** 2))
    r2 = 1 - unexplained / spread if spread else 0.0
    return Residuals(len(samples), float(errors.mean()), float(np.percentile(errors, 95)), r2)


def by_stratum(samples: Sequence[Sample], predicted: Array) -> dict[str, Residuals]:
    """Residuals of each stratum that has samples."""
    kinds = np.array([stratum(s.batch) for s in samples])
    parts = {kind: kinds == kind for kind in STRATA}
    return {kind: residuals(_only(samples, at), predicted[at]) for kind, at in parts.items() if at.any()}


def held_out(samples: Sequence[Sample], fitter: Fitter, folds: int = 5, seed: int = 0) -> Array:
    """[n] each sample's seconds as predicted by a fit that has not seen its batch: equal batches share a fold."""
    cells = {batch: i for i, batch in enumerate(dict.fromkeys(s.batch for s in samples))}
    fold_of = stream(seed, "folds").permutation(len(cells)) % folds
    fold = np.array([fold_of[cells[s.batch]] for s in samples])
    predicted = np.zeros(len(samples))
    for out in (fold == held for held in range(folds)):
        if out.any():
            predicted[out] = predict(fitter(_only(samples, ~out)).model, _only(samples, out))
    return predicted


def _only(samples: Sequence[Sample], which: NDArray[np.bool_]) -> list[Sample]:
    return [s for s, yes in zip(samples, which.tolist(), strict=True) if yes]


def _fit(model: BatchTime, samples: Sequence[Sample]) -> Fit:
    predicted = predict(model, samples)
    return Fit(model, residuals(samples, predicted), by_stratum(samples, predicted))


def _check(samples: Sequence[Sample]) -> None:
    if len(samples) < MIN_SAMPLES:
        raise ValueError(f"{len(samples)} samples are too few to fit a batch time; {MIN_SAMPLES} is the least")
    if any(s.seconds <= 0 for s in samples):
        raise ValueError("every sample must have taken some time")


def _terms_worth_it(samples: Sequence[Sample]) -> tuple[int, bool]:
    """How many pieces, and whether mixed batches need terms of their own: the fewest that predict well."""
    kept = stream(0, "kept aside").random(len(samples)) < 0.2
    train, test = _only(samples, ~kept), _only(samples, kept)
    seconds, weights = np.array([s.seconds for s in test]), _weights(test)
    errors = {
        (pieces, mixed): float(np.mean(weights * np.abs(predict(model, test) / seconds - 1)))
        for mixed in (False, True)
        for pieces, model in enumerate(_grow(train, MAX_PIECES, partial(_our_columns, mixed=mixed), _our_model), 1)
    }
    good = [terms for terms, error in errors.items() if GAIN * error <= min(errors.values())]
    return min(good, key=lambda terms: (terms[0] + terms[1], terms))


Columns = tuple[Array, Array, tuple[int, ...]]  # [n, s] of all pieces, [n, f] of each, corners of the curve


def _grow(
    samples: Sequence[Sample],
    pieces: int,
    columns_of: Callable[[Sequence[Sample]], Columns],
    model_of: Callable[[Array, Array, tuple[int, ...]], BatchTime],
) -> list[BatchTime]:
    """The models with 1, 2, ... pieces."""
    shared, own, corners = columns_of(samples)
    seconds = np.array([s.seconds for s in samples])
    whole = Problem(shared, own, seconds, _weights(samples), len(corners))
    if len(samples) <= GROW_SAMPLES:
        found = grow(whole, pieces)
    else:
        some = np.sort(stream(0, "grow").permutation(len(samples))[:GROW_SAMPLES])
        part = Problem(shared[some], own[some], seconds[some], whole.weights[some], len(corners))
        found = [refine(whole, solution) for solution in grow(part, pieces)]
    return [model_of(solution.shared, solution.own, corners) for solution in found]


def _weights(samples: Sequence[Sample]) -> Array:
    """[n] with mean 1."""
    kinds = np.array([stratum(s.batch) for s in samples])
    weights = np.ones(len(samples))
    for kind in STRATA:
        weights[kinds == kind] /= np.sqrt(max(1, np.sum(kinds == kind)))
    return weights / weights.mean()


def _our_columns(samples: Sequence[Sample], *, mixed: bool) -> Columns:
    batches = [s.batch for s in samples]
    tokens = np.array([b.prefill_tokens + b.draft_tokens + b.decodes for b in batches])
    powers = (1 << k for k in range(30))
    corners = (0, *(p for p in powers if max(tokens.min(), FIRST_CORNER_TOKENS) <= p <= tokens.max() / 2))
    starts = np.array(corners)
    segments = np.clip(tokens[:, None] - starts, 0, np.array([*corners[1:], np.inf]) - starts)
    several = any(b.decodes and len(b.chunks) > 1 for b in batches)
    rest = [(b.draft_steps, several * (len(b.chunks) + b.decodes)) for b in batches]
    own = [
        (
            1.0,
            b.prefill_tokens + b.draft_tokens,
            b.decodes,
            b.kv_tokens,
            b.attention_pairs,
            b.context_tokens,
            mixed * bool(b.chunks) * b.kv_tokens,
            mixed * bool(b.chunks) * b.kv_tokens / max(1, b.decodes),
        )
        for b in batches
    ]
    return np.column_stack([segments, np.array(rest)]), np.array(own, dtype=np.float64), corners


def _our_model(shared: Array, own: Array, corners: tuple[int, ...]) -> BatchTime:
    *slopes, draft_step_s, sequence_s = shared.tolist()
    curve = tuple(zip(corners, slopes, strict=True))
    pieces = tuple(Piece(*piece) for piece in own.tolist())
    return BatchTime(pieces, cpu_sequence_s=sequence_s, draft_step_s=draft_step_s, curve=curve)


def _paper_columns(samples: Sequence[Sample]) -> Columns:
    shared = np.array([[s.batch.draft_steps] for s in samples], dtype=np.float64)
    own = [(1, s.batch.prefill_tokens + s.batch.draft_tokens + s.batch.decodes) for s in samples]
    return shared, np.array(own, dtype=np.float64), ()


def _paper_model(shared: Array, own: Array, corners: tuple[int, ...]) -> BatchTime:
    pieces = tuple(Piece(base_s, token_s, token_s, 0.0, 0.0) for base_s, token_s in own.tolist())
    return BatchTime(pieces, draft_step_s=float(shared[0]))
