"""One dimension of a space: an integer, a float or a choice, active always or under one condition.

    encode: legal value -> [0, 1]      decode: [0, 1] -> legal value      legal: is it one of the knob's values?
    accepts: can it be placed at all?  fit: accepted value -> the nearest legal one

Integers own equal slices of the unit interval (of its logarithm with `log`): value v fills [v - 0.5, v + 0.5], so a
uniform draw is a uniform integer. Choices own equal slices too. A condition is data, never code: `when=(name, value)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from sloguard.errors import SpecError
from sloguard.trial import Value

Condition = tuple[str, Value]

FLOAT_DIGITS = 4  # significant digits of a float knob: finer steps are below any engine's noise and hard to read


def same(a: Value, b: Value) -> bool:
    """Whether two values of a knob are the same; True is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@dataclass(frozen=True, slots=True)
class Int:
    """An integer in [low, high]; `log` gives every factor, not every step, the same weight."""

    name: str
    low: int
    high: int
    log: bool = False
    when: Condition | None = None

    def __post_init__(self) -> None:
        for bound, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise SpecError(f"{self.name}.{bound}", value, "an int knob needs whole bounds", "Write e.g. 16")
        _check_range(self.name, self.low, self.high, 1 if self.log else None)

    @property
    def count(self) -> int:
        return self.high - self.low + 1

    def outermost(self) -> tuple[Value, ...]:
        """Who takes these values takes all of the range."""
        return self.low, self.high

    def encode(self, value: Value) -> float:
        return _to_unit(_number(value), self.low - 0.5, self.high + 0.5, self.log)

    def decode(self, unit: float) -> int:
        return _clip(round(_from_unit(unit, self.low - 0.5, self.high + 0.5, self.log)), self.low, self.high)

    def accepts(self, value: Value) -> bool:
        return _is_number(value)

    def fit(self, value: Value) -> int:
        return _clip(round(_number(value)), self.low, self.high)

    def legal(self, value: Value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def values(self) -> Sequence[Value]:
        return range(self.low, self.high + 1)


@dataclass(frozen=True, slots=True)
class Float:
    """A number in [low, high], proposed with four significant digits."""

    name: str
    low: float
    high: float
    log: bool = False
    when: Condition | None = None

    def __post_init__(self) -> None:
        for bound, value in (("low", self.low), ("high", self.high)):
            if not _is_number(value):
                raise SpecError(f"{self.name}.{bound}", value, "a float knob needs finite bounds", "Write e.g. 0.9")
        _check_range(self.name, self.low, self.high, 5e-324 if self.log else None)

    @property
    def count(self) -> int | None:
        return 1 if self.low == self.high else None

    def outermost(self) -> tuple[Value, ...]:
        """Who takes these values takes all of the range."""
        return float(self.low), float(self.high)

    def encode(self, value: Value) -> float:
        return _to_unit(_number(value), self.low, self.high, self.log)

    def decode(self, unit: float) -> float:
        return self.fit(_from_unit(unit, self.low, self.high, self.log))

    def accepts(self, value: Value) -> bool:
        return _is_number(value)

    def fit(self, value: Value) -> float:
        number = _number(value)
        if self.low < number < self.high:  # the bounds themselves keep all their digits
            number = float(f"{number:.{FLOAT_DIGITS}g}")
        return min(max(number, float(self.low)), float(self.high))

    def legal(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def values(self) -> Sequence[Value]:
        """The one value of a degenerate range; a real range can't be listed. Raises ValueError for that."""
        if self.low != self.high:
            raise ValueError(f"{self.name} is continuous")
        return (self.low,)


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of several values with no order between them."""

    name: str
    choices: tuple[Value, ...]
    when: Condition | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise SpecError(f"{self.name}.choices", self.choices, "no choice is given", "Give at least one")
        for index, choice in enumerate(self.choices):
            if any(same(choice, other) for other in self.choices[:index]):
                raise SpecError(f"{self.name}.choices", choice, "the choice is listed twice", "List each value once")

    @property
    def count(self) -> int:
        return len(self.choices)

    def outermost(self) -> tuple[Value, ...]:
        return self.choices

    def index(self, value: Value) -> int:
        """Position of `value` among the choices. Raises ValueError where it is none of them."""
        for position, choice in enumerate(self.choices):
            if same(choice, value):
                return position
        raise ValueError(f"{value!r} is no choice of {self.name}")

    def encode(self, value: Value) -> float:
        return (self.index(value) + 0.5) / len(self.choices)

    def decode(self, unit: float) -> Value:
        return self.choices[_clip(int(unit * len(self.choices)), 0, len(self.choices) - 1)]

    def accepts(self, value: Value) -> bool:
        return self.legal(value)

    def fit(self, value: Value) -> Value:
        return self.choices[self.index(value)]

    def legal(self, value: Value) -> bool:
        return any(same(choice, value) for choice in self.choices)

    def values(self) -> Sequence[Value]:
        return self.choices


Knob = Int | Float | Categorical


def _check_range(name: str, low: float, high: float, floor: float | None) -> None:
    if low > high:
        raise SpecError(f"{name}.low", low, f"it is above high = {high}", "Swap the bounds")
    if floor is not None and low < floor:
        raise SpecError(f"{name}.low", low, "a log scale needs a positive lower bound", "Raise low or drop log")


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Value) -> float:
    assert _is_number(value), f"{value!r} can't be placed on a numeric knob"
    return float(value)


def _clip(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def _to_unit(value: float, low: float, high: float, log: bool) -> float:
    if low == high:
        return 0.5
    value = min(max(value, low), high)
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _from_unit(unit: float, low: float, high: float, log: bool) -> float:
    unit = min(max(unit, 0.0), 1.0)
    return low * (high / low) ** unit if log else low + unit * (high - low)
