"""Where memory runs out: what a crash, or a start that worked, says of configs that ask for more or for less.

An edge is a threshold on a demand, and what is known of both is which way a knob moves it, read in vLLM 0.32: memory is
checked against gpu_memory_utilization before anything is loaded; activations grow with the tokens of a step and with
its sequences; CUDA graphs take memory beside the budget; what is left of the budget is the KV cache.

    demand = sum over knobs of weight * (their place from 0 to 1, or minus it);  it runs out where demand > threshold

Weights and thresholds are drawn once and then weighed by how well they explain the trials (importance sampling). A
source, such as a simulation, has the same weights, and its own threshold somewhere near.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sloguard.optim.base import place
from sloguard.optim.gp import Array
from sloguard.rng import stream
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Measured, Trial

DRAWS, KEPT = 4000, 300  # thresholds and weights that are weighed, and those that are asked
WEIGHT_SD = 0.8  # log, of a knob's usual part
USUAL, USUAL_SD = 0.8, 1.1  # the threshold, in standard deviations of the demand over the space
SOURCE_SD = 1.0  # how far a source's threshold is off
SOURCE_TRIALS = 12.0  # what a source's trials count for together
SOFT = 0.12  # width of an edge, in standard deviations of the demand
BLIND = 0.02  # share of outcomes that no edge explains


@dataclass(frozen=True, slots=True)
class _Row:
    """`asks` gives for each knob its usual part of the demand; below 0 less of it asks for more."""

    cause: str
    line: re.Pattern[str]
    asks: Mapping[str, float]


_SHARE, _TOKENS, _SEQS = "gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs"
_EAGER, _GRAPHS, _LENGTH = "enforce_eager", "max_cudagraph_capture_size", "max_model_len"
_BESIDE: dict[str, float] = {_TOKENS: 0.4, _SEQS: 0.3, _LENGTH: 0.3, _EAGER: -0.2, _GRAPHS: 0.1}
_ROWS = (
    _Row("gpu_memory", re.compile("desired .*memory utilization", re.IGNORECASE), {_SHARE: 1.0}),
    _Row("gpu_memory", re.compile(""), {_SHARE: 1.0, **_BESIDE}),
    _Row("kv_cache_too_small", re.compile(""), {_SHARE: -1.0, **_BESIDE}),
)


@dataclass(frozen=True, slots=True)
class Edge:
    """Equally likely draws: `weights` [draws, knobs] have the signs; `middles`, `widths`, `thresholds` [draws]."""

    columns: NDArray[np.int64]
    weights: Array
    middles: Array
    widths: Array
    thresholds: Array

    def keeps(self, at: Array) -> Array:
        """[n] the chance that memory suffices at `at` [n, d], in units of the space."""
        return 1 - _crashing(_demand(self, at), self.thresholds).mean(axis=1)


def edges(trials: Sequence[Trial], sources: Sequence[Sequence[Trial]], space: Space) -> list[Edge]:
    """One for each row that a trial, or one of a source, has crashed by."""
    found = [_edge(row, trials, sources, space) for row in _ROWS]
    return [edge for edge in found if edge is not None]


def is_understood(trial: Trial, space: Space) -> bool:
    """Whether an edge says why it crashed, so that nothing else is to be blamed."""
    return any(_asks(row, space) and _is_by(trial, row) for row in _ROWS)


def units(configs: Sequence[Config], space: Space) -> Array:
    """[n, d]; what a config doesn't say lies in the middle."""
    return np.array([space.encode(config)[0] for config in configs]).reshape(len(configs), len(space.knobs))


def _edge(row: _Row, trials: Sequence[Trial], sources: Sequence[Sequence[Trial]], space: Space) -> Edge | None:
    asks = _asks(row, space)
    groups = [[t for t in group if _is_by(t, row) or isinstance(t.outcome, Measured)] for group in (trials, *sources)]
    if not asks or not any(_is_by(trial, row) for group in groups for trial in group):
        return None
    rng = stream(0, "edges", row.cause, row.line.pattern)
    usual = np.array(list(asks.values()))
    weights = usual * np.exp(WEIGHT_SD * rng.standard_normal((DRAWS, len(usual))))
    thresholds = USUAL + USUAL_SD * rng.standard_normal(DRAWS)
    columns = np.array([space.names.index(name) for name in asks], dtype=np.int64)
    widths = np.sqrt((weights**2).sum(axis=1) / 12)  # of the demand, over a space that is filled evenly
    every = Edge(columns, weights, weights.sum(axis=1) / 2, widths, thresholds)
    fit = _fit(every, groups[0], row, space, thresholds)
    for group in groups[1:]:
        own = thresholds + SOURCE_SD * rng.standard_normal(DRAWS)
        fit = fit + min(1.0, SOURCE_TRIALS / max(len(group), 1)) * _fit(every, group, row, space, own)
    odds = np.cumsum(np.exp(fit - fit.max()))
    kept = np.searchsorted(odds, odds[-1] * (np.arange(KEPT) + 0.5) / KEPT)  # each as often as it is likely
    return Edge(columns, weights[kept], every.middles[kept], widths[kept], thresholds[kept])


def _fit(edge: Edge, trials: Sequence[Trial], row: _Row, space: Space, thresholds: Array) -> Array:
    """[draws] the log likelihood of what became of `trials`."""
    if not trials:
        return np.zeros(len(thresholds))
    crashed = np.array([_is_by(trial, row) for trial in trials])
    chance = _crashing(_demand(edge, units([place(trial, space) for trial in trials], space)), thresholds)
    return np.log(np.where(crashed[:, None], chance, 1 - chance)).sum(axis=0)


def _demand(edge: Edge, at: Array) -> Array:
    """[n, draws] in standard deviations from the middle of the space."""
    return (at[:, edge.columns] @ edge.weights.T - edge.middles) / edge.widths


def _crashing(demand: Array, thresholds: Array) -> Array:
    return BLIND + (1 - 2 * BLIND) * expit((demand - thresholds) / SOFT)


def _asks(row: _Row, space: Space) -> dict[str, float]:
    return {name: part for name, part in row.asks.items() if name in space.names}


def _is_by(trial: Trial, row: _Row) -> bool:
    """Whether it crashed by this row, and by none before it."""
    crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    if crash is None:
        return False
    return next((r for r in _ROWS if r.cause == crash.cause and r.line.search(crash.line)), None) is row
