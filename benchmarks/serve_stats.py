"""What the runs of benchmarks/serve_pairs.py say: attainment, capacity, and how sure that is.

Attainment at a rate is pooled over its pairs: requests that kept their promises over those offered. Capacity is where
the attainment falls through `TARGET`, between rates by a straight line, after noise that would make it rise with the
rate is averaged away (isotonic regression). Intervals are of 95 %, by drawing whole pairs again, at each rate apart and
for all arms at once, so that what the arrivals do to all of them cancels in the ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from sloguard.rng import stream
from sloguard.slo import TpotRule

TARGET = 0.9
DRAWS = 2000
INTERVAL = (2.5, 97.5)
SCOPES = {"requests with a promise": True, "all requests": False}  # a best-effort one is met when it completes
STOCK, PRIORITY = "best stock", "same budget by priority"
KINDS = {"stock": STOCK, "priority": PRIORITY}  # by the first word of an arm; the plugin's go by their own names


class Runs:
    """Of one record."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._runs = {key_of(record): record for record in records}

    def __contains__(self, key: object) -> bool:
        return key in self._runs

    def add(self, record: dict[str, Any]) -> None:
        self._runs[key_of(record)] = record

    def of(self, phase: str, rate: float, arm: str) -> dict[int, dict[str, Any]]:
        """By seed."""
        return {key[2]: run for key, run in self._runs.items() if (key[0], key[1], key[3]) == (phase, rate, arm)}

    def arms(self, phase: str, rate: float) -> list[str]:
        return list(dict.fromkeys(key[3] for key in self._runs if key[:2] == (phase, rate)))

    def rates(self, phase: str) -> list[float]:
        return sorted({key[1] for key in self._runs if key[0] == phase})

    def attainment(self, phase: str, rate: float, arm: str, rule: TpotRule, promised: bool = True) -> float:
        met, offered = np.sum([kept(run, rule, promised) for run in self.of(phase, rate, arm).values()], axis=0)
        return float(met / offered)

    def all(self) -> list[dict[str, Any]]:
        return list(self._runs.values())


def key_of(record: Mapping[str, Any]) -> tuple[str, float, int, str]:
    return record["phase"], record["rate"], record["seed"], record["arm"]


def kept(run: Mapping[str, Any], rule: TpotRule, promised: bool) -> tuple[int, int]:
    """(met, offered) of the requests with a promise, or of all."""
    rows = [row for row in run["requests"] if row["promised"] or not promised]
    return sum(row["met"][rule.value] for row in rows), len(rows)


def best_budgets(runs: Runs, rates: Sequence[float], rule: TpotRule) -> dict[float, int]:
    """Of the stock arms screened at each rate; where promises are kept alike, who served more."""
    found: dict[float, int] = {}
    for rate in rates:

        def merit(arm: str, rate: float = rate) -> tuple[float, ...]:
            shares = [runs.attainment("screen", rate, arm, rule, promised) for promised in SCOPES.values()]
            speeds = [run["output_throughput"] for run in runs.of("screen", rate, arm).values()]
            return (*shares, float(np.mean(speeds)))

        found[rate] = int(max(runs.arms("screen", rate), key=merit).split()[1])
    return found


@dataclass(frozen=True, slots=True)
class Series:
    """A line of the figure: an arm at each rate, and its runs there by seed."""

    name: str
    arms: dict[float, str]
    runs: dict[float, dict[int, dict[str, Any]]]


def all_series(runs: Runs) -> list[Series]:
    """The plugin's first. Only pairs that are complete."""
    arms: dict[str, dict[float, str]] = {}
    for rate in runs.rates("pair"):
        for arm in sorted(runs.arms("pair", rate)):
            arms.setdefault(KINDS.get(arm.split()[0], arm), {})[rate] = arm
    whole = [rate for rate in runs.rates("pair") if all(rate in of for of in arms.values())]
    found = {name: {rate: runs.of("pair", rate, of[rate]) for rate in whole} for name, of in arms.items()}
    seeds = {rate: set.intersection(*(set(by_rate[rate]) for by_rate in found.values())) for rate in whole}
    order = sorted(found, key=lambda name: (name == PRIORITY, name == STOCK))
    return [
        Series(
            name,
            {rate: arms[name][rate] for rate in whole if seeds[rate]},
            {rate: {s: found[name][rate][s] for s in sorted(seeds[rate])} for rate in whole if seeds[rate]},
        )
        for name in order
    ]


@dataclass(frozen=True, slots=True)
class Curves:
    """Attainment [rates, series] and the same drawn again [draws, rates, series]."""

    rates: NDArray[np.float64]
    offered: NDArray[np.float64]  # [rates]
    found: NDArray[np.float64]
    drawn: NDArray[np.float64]

    def interval(self) -> NDArray[np.float64]:
        """[2, rates, series]"""
        return np.percentile(self.drawn, INTERVAL, axis=0)

    def capacities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[series], and drawn again [draws, series]; 0 and infinite where no rate tried is below or above."""
        return self._capacity(self.found), np.array([self._capacity(one) for one in self.drawn])

    def _capacity(self, attainment: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([capacity(self.rates, column, self.offered) for column in attainment.T])


def curves(series: Sequence[Series], rule: TpotRule, promised: bool) -> Curves:
    rates = list(series[0].runs)
    found, drawn, offered = [], [], []
    for rate in rates:
        pairs = np.array([[kept(run, rule, promised) for run in one.runs[rate].values()] for one in series])
        sums = pairs.sum(axis=1)  # [series, (met, offered)]
        found.append(sums[:, 0] / sums[:, 1])
        offered.append(sums[0, 1])
        n = pairs.shape[1]
        again = stream(0, "pairs", f"{rate:g}").integers(n, size=(DRAWS, n))
        redrawn = pairs[:, again].sum(axis=2)  # [series, draws, (met, offered)]
        drawn.append((redrawn[:, :, 0] / redrawn[:, :, 1]).T)
    return Curves(np.array(rates), np.array(offered, float), np.array(found), np.stack(drawn, axis=1))


def capacity(rates: NDArray[np.float64], attainment: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Requests/s at which [rates] attainment falls below the target; 0 or infinite where that is not among them."""
    falling = isotonic_regression(attainment, weights=weights, increasing=False).x
    enough = np.flatnonzero(falling >= TARGET - 1e-9)
    if not len(enough):
        return 0.0
    last = int(enough[-1])
    if last == len(rates) - 1:
        return inf
    share = (falling[last] - TARGET) / (falling[last] - falling[last + 1])
    return float(rates[last] + share * (rates[last + 1] - rates[last]))
