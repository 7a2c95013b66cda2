"""The set of configs a study may try: knobs, the conditions between them, and the only encoder of the project.

A config is *inside* a space when it holds exactly the active knobs, each with a legal value. A knob is active when its
condition names a knob that has the required value (so a knob under an inactive one is inactive too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sloguard.errors import SpecError
from sloguard.space.knobs import Categorical, Float, Int, Knob, same
from sloguard.space.parse import knobs_from_toml
from sloguard.trial import Config, Value

COUNT_LIMIT = 10**6  # beyond this many configs a space is not listed, and counts as unbounded

Units = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Space:
    """Knobs in order; a knob comes after the categorical one its condition names. Raises SpecError otherwise."""

    knobs: tuple[Knob, ...]

    def __post_init__(self) -> None:
        seen: dict[str, Knob] = {}
        for knob in self.knobs:
            if knob.name in seen:
                raise SpecError(knob.name, knob.name, "the knob is given twice", "Keep one of them")
            _check_condition(knob, seen)
            seen[knob.name] = knob

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in self.knobs)

    def knob(self, name: str) -> Knob:
        """Raises KeyError where there is none of that name."""
        for knob in self.knobs:
            if knob.name == name:
                return knob
        raise KeyError(name)

    @property
    def size(self) -> int | None:
        """How many configs are inside; None above a million or with a continuous knob."""
        product = 1
        for knob in self.knobs:
            if knob.when is None:
                count = self._count(knob)
                if count is None:
                    return None
                product *= count
        return product if product <= COUNT_LIMIT else None

    def configs(self) -> Iterator[Config]:
        """Every config inside, in a fixed order. Raises ValueError where a knob is continuous."""
        return (Config(values) for values in self._expand({}, self.knobs))

    def contains(self, config: Mapping[str, Value]) -> bool:
        active = [knob for knob in self.knobs if is_active(knob, config)]
        return len(active) == len(config) and all(k.name in config and k.legal(config[k.name]) for k in active)

    def sample(self, rng: np.random.Generator) -> Config:
        """A uniform draw (of the logarithm on log knobs). Uses one number per knob, whatever is active."""
        return self.decode(rng.random(len(self.knobs)))

    def activate(self, config: Mapping[str, Value]) -> Config:
        """Drops what is no active knob or no choice of it, clips and rounds numbers; adds nothing. Idempotent."""
        kept: dict[str, Value] = {}
        for knob in self.knobs:
            if knob.name in config and is_active(knob, kept) and knob.accepts(config[knob.name]):
                kept[knob.name] = knob.fit(config[knob.name])
        return Config(kept)

    def complete(self, config: Mapping[str, Value], rng: np.random.Generator) -> Config:
        """`activate`, then a random value for each active knob that is missing. Uses one number per knob."""
        given = self.activate(config)
        filled: dict[str, Value] = {}
        for knob, unit in zip(self.knobs, rng.random(len(self.knobs)), strict=True):
            if is_active(knob, filled):
                filled[knob.name] = given[knob.name] if knob.name in given else knob.decode(float(unit))
        return Config(filled)

    def neighbour(self, config: Mapping[str, Value], rng: np.random.Generator, sigma: float, p_struct: float) -> Config:
        """One knob moved: a categorical one with probability `p_struct`, else a number by N(0, sigma) in the unit cube.

        Where only one kind can move, that kind moves; where nothing can, the config itself comes back. Missing knobs
        are filled at random.
        """
        full = self.complete(config, rng)
        movable = [knob for knob in self.knobs if knob.name in full and knob.count != 1]
        choices = [knob for knob in movable if isinstance(knob, Categorical)]
        numbers = [knob for knob in movable if not isinstance(knob, Categorical)]
        if choices and (not numbers or rng.random() < p_struct):
            knob = choices[rng.integers(len(choices))]
            others = [c for c in knob.choices if not same(c, full[knob.name])]
            return self.complete(full.replace(**{knob.name: others[rng.integers(len(others))]}), rng)
        if not numbers:
            return full
        knob = numbers[rng.integers(len(numbers))]
        return full.replace(**{knob.name: _moved(knob, full[knob.name], float(rng.normal(0.0, sigma)))})

    def encode(self, config: Mapping[str, Value]) -> tuple[Units, Mask]:
        """(unit [d], active [d]), one dimension per knob in order. Numbers outside the range are clipped; a knob that
        is missing, inactive or has a value that can't be placed reads (0.5, False).
        """
        placed = self.activate(config)
        active = np.array([knob.name in placed for knob in self.knobs], dtype=np.bool_)
        unit = [knob.encode(placed[knob.name]) if knob.name in placed else 0.5 for knob in self.knobs]
        return np.array(unit, dtype=np.float64), active

    def decode(self, unit: Units) -> Config:
        """The config at `unit` [d]; coordinates of inactive knobs are ignored, those beyond the cube are clipped."""
        values: dict[str, Value] = {}
        for knob, u in zip(self.knobs, unit, strict=True):
            if is_active(knob, values):
                values[knob.name] = knob.decode(float(u))
        return Config(values)

    def without(self, pinned: Mapping[str, Value]) -> Space:
        """The space that is left when the user fixes some knobs; conditions on them are resolved by the fixed value.

        Names that are no knob of this space are ignored.
        """
        gone: dict[str, Value] = dict(pinned)
        never: set[str] = set()  # knobs whose condition can't hold any more
        left: list[Knob] = []
        for knob in self.knobs:
            parent, value = knob.when or (None, None)
            if knob.name in gone:
                continue
            if parent in never or (parent in gone and not same(gone[parent], value)):
                never.add(knob.name)
            else:
                left.append(replace(knob, when=None) if parent in gone else knob)
        return Space(tuple(left))

    @staticmethod
    def from_toml(text: str, source: str) -> Space:
        """Reads the format of `parse.py`; `source` names the text in errors. Raises SpecError: knob, field and fix."""
        try:
            return Space(knobs_from_toml(text))
        except SpecError as error:
            raise SpecError(f"{source}: {error.field}", error.value, error.problem, error.fix) from error

    def _count(self, knob: Knob) -> int | None:
        """Configs of `knob` and of what depends on it."""
        children = [k for k in self.knobs if k.when is not None and k.when[0] == knob.name]
        if not children:
            return knob.count
        total = 0
        for value in knob.values():
            product = 1
            for child in children:
                assert child.when is not None
                count = self._count(child) if same(child.when[1], value) else 1
                if count is None:
                    return None
                product *= count
            total += product
        return total

    def _expand(self, values: dict[str, Value], knobs: tuple[Knob, ...]) -> Iterator[dict[str, Value]]:
        if not knobs:
            yield values
            return
        knob, *rest = knobs
        if not is_active(knob, values):
            yield from self._expand(values, tuple(rest))
            return
        for value in knob.values():
            yield from self._expand({**values, knob.name: value}, tuple(rest))


def is_active(knob: Knob, values: Mapping[str, Value]) -> bool:
    """Whether the condition of `knob` holds, given the values of the knobs before it."""
    return knob.when is None or (knob.when[0] in values and same(values[knob.when[0]], knob.when[1]))


def _check_condition(knob: Knob, before: Mapping[str, Knob]) -> None:
    if knob.when is None:
        return
    name, value = knob.when
    field = f"{knob.name}.when"
    parent = before.get(name)
    if not isinstance(parent, Categorical):
        raise SpecError(
            field, name, "it names no categorical knob listed before this one", f"Move {name} up, or fix it"
        )
    if not parent.legal(value):
        raise SpecError(field, value, f"{name} never has that value", f"Use one of {list(parent.choices)}")


def _moved(knob: Int | Float, value: Value, step: float) -> Value:
    """`value` moved by `step` in the unit interval, mirrored at its ends; an integer always moves by at least one."""
    unit = (knob.encode(value) + step) % 2.0
    moved = knob.decode(min(unit, 2.0 - unit))
    if not isinstance(knob, Int) or moved != value:
        return moved
    assert isinstance(value, int)
    up = value < knob.high and (step > 0 or value == knob.low)
    return value + 1 if up else value - 1
