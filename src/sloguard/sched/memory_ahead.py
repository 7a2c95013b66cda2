"""Whether KV memory will hold a set of jobs to their ends.

All jobs of a batch gain a token a step, and each gives back all of its KV when it ends. With jobs in order of the
tokens they have left, r_1 <= r_2 <= .., and k_i the tokens job i holds now, memory is fullest at one of these ends:

    after r_i steps     sum over j >= i of (k_j + r_i)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, int]  # tokens left, tokens held


class MemoryAhead:
    """The jobs that are to stay. Each method is O(jobs), vectorised."""

    def __init__(self, rows: Iterable[Row]) -> None:
        ordered = np.array(sorted(rows), dtype=np.int64).reshape(-1, 2)
        self._left: NDArray[np.int64] = ordered[:, 0]
        self._held: NDArray[np.int64] = ordered[:, 1]
        self._work_out()

    def __len__(self) -> int:
        return len(self._left)

    def add(self, row: Row) -> None:
        at = int(np.searchsorted(self._left, row[0]))
        self._left = _inserted(self._left, at, row[0])
        self._held = _inserted(self._held, at, row[1])
        self._work_out()

    def peak_tokens(self, row: Row | None = None) -> int:
        """The most that will be held at once, with one more job if `row` is given."""
        if row is None:
            return int(self._level.max(initial=0))
        left, held = row
        during = int(np.searchsorted(self._left, left, side="right"))  # ends while the new job is there
        own = held + left + self._staying(during) + left * (len(self) - during)
        with_it = int((self._level[:during] + self._left[:during]).max(initial=0)) + held
        return max(own, with_it if during else 0, int(self._level[during:].max(initial=0)))

    def _staying(self, at: int) -> int:
        """Held now by the jobs from `at` on."""
        return int(self._from[at]) if at < len(self) else 0

    def _work_out(self) -> None:
        self._from = np.cumsum(self._held[::-1])[::-1]
        self._level = self._from + self._left * np.arange(len(self._left), 0, -1)


def _inserted(values: NDArray[np.int64], at: int, value: int) -> NDArray[np.int64]:
    """`np.insert`, whose generality takes five times as long as all else here."""
    longer = np.empty(len(values) + 1, dtype=np.int64)
    longer[:at], longer[at], longer[at + 1 :] = values[:at], value, values[at:]
    return longer
