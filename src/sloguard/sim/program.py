"""A linear or mixed-integer program as it is put together: columns from 0 to their bounds, rows A x <= b."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse  # pyright: ignore[reportMissingTypeStubs]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Program:
    """Columns and rows are handed out as arrays of their numbers, in the shape of their bounds."""

    def __init__(self) -> None:
        self._upper: list[Floats] = []
        self._integer: list[NDArray[np.bool_]] = []
        self._bounds: list[Floats] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._columns = self._rows = 0

    def columns(self, upper: Floats, *, integer: bool = False) -> Ints:
        self._upper.append(upper.ravel())
        self._integer.append(np.full(upper.size, integer))
        self._columns += upper.size
        return np.arange(self._columns - upper.size, self._columns).reshape(upper.shape)

    def rows(self, bound: Floats) -> Ints:
        self._bounds.append(bound.ravel())
        self._rows += bound.size
        return np.arange(self._rows - bound.size, self._rows).reshape(bound.shape)

    def add(self, rows: Ints, columns: Ints | np.int64, values: Floats | float) -> None:
        """Adds entries, of arrays that broadcast together; entries at one place add up."""
        at, of, value = np.broadcast_arrays(rows, columns, values)
        self._entries.append((at.ravel(), of.ravel(), value.ravel()))

    def maximum(self, wanted: Ints) -> float:
        """The greatest sum of these columns that the rows allow."""
        cost = np.zeros(self._columns)
        cost[wanted] = -1.0
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        matrix = sparse.coo_array((values, (rows, columns)), shape=(self._rows, self._columns)).tocsc()
        solver: Any = optimize
        found = solver.milp(
            cost,
            integrality=np.concatenate(self._integer),
            bounds=solver.Bounds(0.0, np.concatenate(self._upper)),
            constraints=solver.LinearConstraint(matrix, -inf, np.concatenate(self._bounds)),
        )
        if found.status:
            raise ArithmeticError(found.message)
        return -float(found.fun)
