"""Never twice: the first draw whose repaired form was not tried, else one found systematically."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from sloguard.optim.base import Exhausted, Problem, tried
from sloguard.trial import Config, Trial

RANDOM_DRAWS = 256  # in a space too large to list, one where all of these were tried counts as used up


def first_fresh(
    problem: Problem, history: Sequence[Trial], rng: np.random.Generator, draws: Iterable[Config]
) -> Config:
    """The first of the optimizer's draws that is new, else of uniform ones, else of all configs in order.

    Raises `Exhausted` where nothing new is left (in a space too large to list: where chance found nothing new).
    """
    seen = tried(history, problem.space)
    uniform = (problem.space.sample(rng) for _ in range(RANDOM_DRAWS))
    listed = () if problem.space.size is None else problem.space.configs()
    for config in chain(draws, uniform, listed):
        if problem.repair(config) not in seen:
            return config
    raise Exhausted(f"all configs of the space were tried ({len(seen)} distinct ones in {len(history)} trials)")
