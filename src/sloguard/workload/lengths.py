"""How long requests are: prompt (input) and output tokens, drawn before any clock starts.

A `Marginal` is one length as an inverse distribution function; `Independent` makes pairs of two of them, `Conditional`
pairs whose output depends on the prompt, `Empirical` draws whole recorded pairs. Each request takes the same number of
draws, so a longer run begins with the shorter one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sloguard.errors import SpecError

Tokens = NDArray[np.int64]

# Percentiles that a `Quantiles` table lists; 0 and 100 are the smallest and largest length. The fine ones are for
# lengths with several peaks.
LEVELS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
FINE_LEVELS = (0, 1, 5, *range(10, 100, 10), 95, 99, 100)


class Marginal(Protocol):
    @property
    def largest(self) -> int:
        """The largest length in tokens."""
        ...

    def quantile(self, u: NDArray[np.float64]) -> Tokens:
        """[n] lengths in tokens, >= 1, at probabilities u [n] in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range("uniform lengths", self.low, self.high)

    @property
    def largest(self) -> int:
        return self.high

    def quantile(self, u: NDArray[np.float64]) -> Tokens:
        return self.low + np.floor(u * (self.high - self.low + 1)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(N(mu, sigma)) tokens, truncated (not clipped: no heap at the ends) to [low, high] and rounded."""

    mu: float
    sigma: float
    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range("log-normal lengths", self.low, self.high)
        if not (math.isfinite(self.mu) and 0 < self.sigma < math.inf):
            raise SpecError(
                "log-normal lengths", (self.mu, self.sigma), "mu, sigma must be finite, sigma > 0", "Refit them."
            )
        below, upto = self._probabilities()
        if not below < upto:
            raise SpecError("log-normal lengths", (self.low, self.high), "no probability in this range", "Widen it.")

    @staticmethod
    def of(mean: float, p50: float, low: int, high: int) -> LogNormal:
        """From the mean and median before truncation: mu = ln p50, sigma^2 = 2 ln(mean / p50)."""
        if not 0 < p50 < mean < math.inf:
            raise SpecError(
                "log-normal lengths", (mean, p50), "needs 0 < p50 < mean", "For other shapes use percentiles."
            )
        return LogNormal(math.log(p50), math.sqrt(2 * math.log(mean / p50)), low, high)

    @property
    def largest(self) -> int:
        return self.high

    def quantile(self, u: NDArray[np.float64]) -> Tokens:
        below, upto = self._probabilities()
        p = np.clip(below + u * (upto - below), np.finfo(float).tiny, 1 - 2**-53)  # the open interval inv_cdf takes
        log_tokens = np.fromiter(map(NormalDist(self.mu, self.sigma).inv_cdf, p.tolist()), np.float64, len(p))
        # Clipped before exp, which could overflow; the half token at each end rounds into the range.
        bounded = np.clip(log_tokens, math.log(self.low), math.log(self.high))
        return np.rint(np.exp(bounded)).astype(np.int64)

    def _probabilities(self) -> tuple[float, float]:
        """Of a length that rounds below `low`, and of one that rounds to at most `high`."""
        cdf = NormalDist(self.mu, self.sigma).cdf
        return cdf(math.log(self.low - 0.5)), cdf(math.log(self.high + 0.5))


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The lengths at the percentiles `levels`, log-linear in between: for real lengths that no log-normal fits."""

    tokens: tuple[int, ...]
    levels: tuple[int, ...] = LEVELS

    def __post_init__(self) -> None:
        _check_range("percentiles", self.tokens[0] if self.tokens else 0, self.largest)
        if len(self.tokens) != len(self.levels) or list(self.tokens) != sorted(self.tokens):
            needed = f"needs {len(self.levels)} rising lengths"
            raise SpecError("percentiles", self.tokens, needed, f"One for each of {self.levels}.")

    @property
    def largest(self) -> int:
        return self.tokens[-1] if self.tokens else 0

    def quantile(self, u: NDArray[np.float64]) -> Tokens:
        return np.rint(np.exp(np.interp(u * 100, self.levels, np.log(self.tokens)))).astype(np.int64)


class Lengths(Protocol):
    def draw(self, rng: np.random.Generator, n: int) -> Tokens:
        """[n, 2] prompt and output tokens, each >= 1."""
        ...


@dataclass(frozen=True, slots=True)
class Independent:
    """Prompt and output drawn apart. An output that would pass `max_total_tokens` is cut there, as an engine would."""

    prompt: Marginal
    output: Marginal
    max_total_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_total_tokens is not None and self.prompt.largest >= self.max_total_tokens:
            raise SpecError(
                "max_total_tokens",
                self.max_total_tokens,
                f"prompts of {self.prompt.largest} tokens leave no room",
                "Shorten the prompts.",
            )

    def draw(self, rng: np.random.Generator, n: int) -> Tokens:
        u = rng.random((n, 2))
        prompt, output = self.prompt.quantile(u[:, 0]), self.output.quantile(u[:, 1])
        if self.max_total_tokens is not None:
            output = np.minimum(output, self.max_total_tokens - prompt)
        return np.stack([prompt, output], axis=1)


@dataclass(frozen=True, slots=True)
class Conditional:
    """An output that depends on the prompt: `outputs[k]` is that of the k-th of equal shares of the prompts, from the
    shortest to the longest. Not cut at any window: whoever has one drops what is too long.
    """

    prompt: Marginal
    outputs: tuple[Marginal, ...]

    def draw(self, rng: np.random.Generator, n: int) -> Tokens:
        return self.pairs(rng.random((n, 2)))

    def pairs(self, u: NDArray[np.float64]) -> Tokens:
        """[n, 2] prompt and output tokens at probabilities u [n, 2] in [0, 1)."""
        share = (u[:, 0] * len(self.outputs)).astype(np.int64)
        output = np.choose(share, [marginal.quantile(u[:, 1]) for marginal in self.outputs])
        return np.stack([self.prompt.quantile(u[:, 0]), output], axis=1)


def _check_range(field: str, low: int, high: int) -> None:
    if not 1 <= low <= high:
        raise SpecError(field, (low, high), "not a range of at least 1 token", "Give 1 <= low <= high.")
