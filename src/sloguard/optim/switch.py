"""TBA-TPE: annealing explores until good and bad are both known, then TPE learns from all of it, crashes included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sloguard.optim.base import Problem, taught
from sloguard.optim.tba import ThermalAnnealing
from sloguard.optim.tpe import Tpe
from sloguard.trial import Config, Trial

INITIAL = 3  # random trials before the annealer walks


@dataclass(frozen=True, slots=True)
class AnnealThenTpe:
    problem: Problem

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        if handed_over(history, self.problem.budget):
            return Tpe(self.problem, random_first=0, wary=True).propose(history, rng)
        return ThermalAnnealing(self.problem, INITIAL).propose(history, rng)


def handed_over(history: Sequence[Trial], budget: int) -> bool:
    """After at least a fifth of the budget, when both kinds of trial are known; at the latest after two fifths.

    Only grows with the log, so a study that has handed over stays so.
    """
    trials = taught(history)
    feasible = sum(trial.feasible for trial in trials)
    bad = len(trials) - feasible
    known = feasible >= max(2, budget / 6) and bad >= max(1, budget / 10)
    return len(trials) >= max(3, budget / 5) and (known or len(trials) >= max(5, 0.4 * budget))
