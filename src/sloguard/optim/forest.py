"""A random forest that guesses how good a config is, asked only while its out-of-bag score says that it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from sloguard.optim.base import CRASH_VIOLATION, Goal, place, violation
from sloguard.space.space import Space
from sloguard.trial import Config, Trial

OOB_GATE = 0.3  # out-of-bag R² below which the forest is not consulted
MIN_TRIALS = 8
TREES = 64  # a sample is in the bag of all of them with chance 0.63^64, so each has an out-of-bag guess


@dataclass(frozen=True, slots=True)
class Forest:
    space: Space
    model: RandomForestRegressor

    def guess(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """[n] expected merit: above 0 is feasible, -1 a crash."""
        guess: NDArray[np.float64] = self.model.predict(_features(configs, self.space))  # pyright: ignore[reportAssignmentType]
        return guess


def trusted_forest(trials: Sequence[Trial], space: Space, goal: Goal, rng: np.random.Generator) -> Forest | None:
    """A forest fitted to `trials`; None with fewer than 8, with one kind of outcome, or with a score below the gate."""
    seed = int(rng.integers(2**31))  # drawn in any case: what follows must not depend on the gate
    target = merits(trials, goal)
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
    return np.array(
        [
            0.5 + 0.5 * ((s - low) / spread if spread else 1.0) if s is not None else -violation(t) / CRASH_VIOLATION
            for s, t in zip(scores, trials, strict=True)
        ]
    )


def _features(configs: Sequence[Config], space: Space) -> NDArray[np.float64]:
    """[n, 2 d]: the encoded knobs, then whether each is active."""
    return np.array([np.concatenate(space.encode(config)) for config in configs])
