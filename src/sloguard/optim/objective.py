"""What a study may optimise, and how its scores are told. A score is to be maximised, in the natural unit: of what is
minimised it is the negative.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Objective:
    """`figure` is what is measured, in `unit`; people read it `factor` times that, in `read_in`, with `digits`."""

    figure: str
    unit: str
    read_in: str
    factor: float = 1.0
    digits: int = 1
    minimised: bool = False

    def natural(self, score: float) -> float:
        """In `unit`; the same the other way round."""
        return -score if self.minimised else score

    def shown(self, score: float) -> float:
        """In `read_in`."""
        return self.natural(score) * self.factor

    def number(self, natural: float, sign: str = "") -> str:
        """Of a figure in `unit`, or a difference of two (`sign` as in a format), as it is read, without its unit."""
        return f"{natural * self.factor:{sign}.{self.digits}f}"

    def text(self, score: float) -> str:
        return f"{self.number(self.natural(score))} {self.read_in}"


OBJECTIVES = {
    "capacity": Objective("capacity", "requests/s", "req/s", digits=2),
    "goodput": Objective("goodput", "tokens/s", "tok/s"),
    "latency": Objective("mean latency", "s", "ms", factor=1000.0, digits=2, minimised=True),
}
