"""Named random streams: the same seed and names give the same numbers, whatever else was drawn."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for one use, e.g. `stream(seed, "arrivals", trial)`.

    Names are hashed with their types and lengths, so `("a", "b")` and `("ab",)` differ, and so do `1` and `"1"`.
    """
    # int() because numpy's integers print by version, as 1 or as np.int64(1)
    exact = tuple(name if isinstance(name, str) else int(name) for name in names)
    key = hashlib.sha256(repr((int(seed), exact)).encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "big"))))
