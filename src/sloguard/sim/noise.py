"""Noise of step times: what makes two runs of one engine differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def jitter(rng: np.random.Generator, spread: float) -> Iterator[float]:
    """Factors of successive steps, without end: one draw of a log-normal for the run, times one for each step."""
    run = float(rng.lognormal(0.0, spread))
    while True:
        yield from (run * rng.lognormal(0.0, spread, size=1024)).tolist()
