"""Knob values, and pairs of them, that failed three times running are left alone for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sloguard.space.knobs import Categorical
from sloguard.space.space import Space
from sloguard.trial import Config, Trial, Value

STRIKES = 3  # consecutive crashes or infeasible trials that list a value or a pair
COOL_DOWN_TRIALS = 8  # after so many trials it may be tried again

Setting = tuple[str, bool, Value]  # knob, whether the value is a bool (True is not 1), value


@dataclass(frozen=True, slots=True)
class Blacklist:
    listed: frozenset[frozenset[Setting]]

    def hits(self, config: Config, space: Space) -> bool:
        return bool(self.listed) and any(group in self.listed for group in _groups(config, space))


def blacklist(history: Sequence[Trial], space: Space) -> Blacklist:
    """What is listed after `history`. A trial it has hit while listed doesn't lengthen the listing."""
    strikes: dict[frozenset[Setting], int] = {}
    listed_at: dict[frozenset[Setting], int] = {}
    for index, trial in enumerate(history):
        for group in _groups(trial.config, space):
            strikes[group] = 0 if trial.feasible else strikes.get(group, 0) + 1
            if trial.feasible:
                listed_at.pop(group, None)
            elif strikes[group] == STRIKES:
                listed_at[group] = index
                strikes[group] = 0
    now = len(history) - 1
    return Blacklist(frozenset(group for group, index in listed_at.items() if now - index < COOL_DOWN_TRIALS))


def _groups(config: Config, space: Space) -> list[frozenset[Setting]]:
    """The values of the choices that can be avoided (two or more choices), alone and in pairs."""
    settings: list[Setting] = [
        (knob.name, isinstance(config[knob.name], bool), config[knob.name])
        for knob in space.knobs
        if isinstance(knob, Categorical) and len(knob.choices) > 1 and knob.name in config
    ]
    return [frozenset(group) for size in (1, 2) for group in combinations(settings, size)]
