"""Uniform random search: the baseline that needs no history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sloguard.optim.base import Problem
from sloguard.optim.fresh import first_fresh
from sloguard.trial import Config, Trial


@dataclass(frozen=True, slots=True)
class RandomSearch:
    problem: Problem

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        return first_fresh(self.problem, history, rng, draws=())  # uniform draws follow by themselves
