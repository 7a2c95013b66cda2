"""Random forests that guess how a config will do, asked only while their out-of-bag score says that they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from sloguard.optim.base import CRASH_VIOLATION, Goal, place, violation
from sloguard.space.space import Space
from sloguard.trial import Config, Measured, Trial

OOB_GATE = 0.3  # out-of-bag R² below which the forest is not consulted
MIN_TRIALS = 8
CRASH_CHANCE = 0.25  # what a proposal may risk: a crash costs a restart and tells less than a measurement
TREES = 40  # a sample is in the bag of all of them with chance 0.63^40, so each has an out-of-bag guess


@dataclass(frozen=True, slots=True)
class Forest:
    space: Space
    model: RandomForestRegressor

    def guess(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """[n] what the forest was fitted to, at each config."""
        guess: Any = self.model.predict(_features(configs, self.space))
        return guess


def merit_forest(trials: Sequence[Trial], space: Space, goal: Goal, rng: np.random.Generator) -> Forest | None:
    """Guesses `merits`; None where it can't be trusted."""
    return _trusted(trials, merits(trials, goal), space, rng)


def crash_forest(trials: Sequence[Trial], space: Space, rng: np.random.Generator) -> Forest | None:
    """Guesses the chance of a crash; None where it can't be trusted."""
    crashed = np.array([not isinstance(trial.outcome, Measured) for trial in trials], dtype=np.float64)
    return _trusted(trials, crashed, space, rng)


def _trusted(
    trials: Sequence[Trial], target: NDArray[np.float64], space: Space, rng: np.random.Generator
) -> Forest | None:
    """A fitted forest; None with fewer than 8 trials, with nothing to tell apart, or with a score below the gate."""
    seed = int(rng.integers(2**31))  # drawn in any case: what follows must not depend on the gate
    if len(trials) < MIN_TRIALS or np.ptp(target) == 0:
        return None
    model = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=2, oob_score=True, random_state=seed)
    model.fit(_features([place(trial, space) for trial in trials], space), target)
    return Forest(space, model) if model.oob_score_ >= OOB_GATE else None


def merits(trials: Sequence[Trial], goal: Goal) -> NDArray[np.float64]:
    """[n] feasible: 0.5 to 1 by score; missed: 0 down to -0.9 by violation; crashed: -1."""
    scores = [goal.score(t) if t.feasible else None for t in trials]
    known = [s for s in scores if s is not None]
    low, spread = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    merit: list[float] = []
    for trial, score in zip(trials, scores, strict=True):
        if score is None:
            merit.append(-violation(trial) / CRASH_VIOLATION)
        else:
            merit.append(0.5 + 0.5 * (score - low) / spread if spread else 1.0)
    return np.array(merit, dtype=np.float64)


def _features(configs: Sequence[Config], space: Space) -> NDArray[np.float64]:
    """[n, 2 d]: the encoded knobs, then whether each is active."""
    encoded = [space.encode(config) for config in configs]
    return np.array([np.concatenate([unit, active.astype(np.float64)]) for unit, active in encoded])
