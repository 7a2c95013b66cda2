"""When requests come: the instants are drawn before any clock starts.

Every process keeps one convention, that of `vllm bench serve` (vLLM 0.32): the clock starts at 0, the first request
comes after one gap, and the gaps are stretched so that the last of n requests is due at exactly n / rate. So the rate
asked for is the rate offered, whatever the seed; the shape is untouched (a Poisson process whose n-th arrival is known
is still Poisson before it, and a coefficient of variation does not depend on scale); and another rate gives the same
pattern, faster or slower. An infinite rate offers everything at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sloguard.errors import SpecError

Seconds = NDArray[np.float64]
SLOWEST_RATE = 1e-6  # requests/s; one in twelve days is a slip
MAX_BURSTINESS = 1e6  # gaps within 0.1 % of each other: constant


class Arrivals(Protocol):
    """`rate` is in requests per second, positive, and may be infinite."""

    @property
    def rate(self) -> float: ...

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        """[n] instants in seconds from the start of the run, sorted."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent users: exponential gaps (coefficient of variation 1)."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate, "rate")

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        return _paced(rng.standard_exponential(n), self.rate)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps of shape `burstiness`, as `vllm bench serve --burstiness`: their coefficient of variation is
    1 / sqrt(burstiness). 1 is Poisson, below 1 burstier, above 1 more even.
    """

    rate: float
    burstiness: float

    def __post_init__(self) -> None:
        check_rate(self.rate, "rate")
        if not 0 < self.burstiness <= MAX_BURSTINESS:
            raise SpecError(
                "burstiness",
                self.burstiness,
                "not a positive number",
                "1 is Poisson, 0.25 bursty; for even gaps use constant arrivals.",
            )

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        return _paced(rng.standard_gamma(self.burstiness, n), self.rate)


@dataclass(frozen=True, slots=True)
class Constant:
    """Equal gaps. Draws nothing from the stream."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate, "rate")

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        return _paced(np.ones(n), self.rate)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Bursts: Poisson for `on_s` seconds, silence for `off_s`, and so on, starting with a burst.

    `rate` is the average over whole cycles, so within a burst it is rate x (on_s + off_s) / on_s.
    """

    rate: float
    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        check_rate(self.rate, "rate")
        for name, value in (("on_s", self.on_s), ("off_s", self.off_s)):
            if not 0 < value < np.inf:
                raise SpecError(
                    name, value, "not a positive number of seconds", "Give the length of a burst and of a pause."
                )

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        duty = self.on_s / (self.on_s + self.off_s)
        burst_time_s = _paced(rng.standard_exponential(n), self.rate / duty)  # a clock that stands still in pauses
        return burst_time_s + np.floor(burst_time_s / self.on_s) * self.off_s


@dataclass(frozen=True, slots=True)
class Hyperexponential:
    """Clusters within bursts within pauses: each gap is of one of several kinds, exponential within its kind.

    `kinds` lists (share of the gaps, their mean); only the ratios of the means count. Unlike gamma gaps of the same
    coefficient of variation, whose shortest gaps are all but 0, it can be as uneven as recorded at every time scale.
    """

    rate: float
    kinds: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        check_rate(self.rate, "rate")
        if not (all(share > 0 and 0 < mean < np.inf for share, mean in self.kinds) and abs(self._shares - 1) < 1e-6):
            raise SpecError(
                "kinds of gaps", self.kinds, "not shares that sum to 1 with positive means", "Correct or refit them."
            )

    @property
    def _shares(self) -> float:
        return sum(share for share, _ in self.kinds)

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        upto = np.cumsum([share for share, _ in self.kinds])[:-1]
        means = np.array([mean for _, mean in self.kinds])[np.searchsorted(upto, rng.random(n), side="right")]
        return _paced(means * rng.standard_exponential(n), self.rate)


class Scaling(StrEnum):
    """How a recorded trace is brought to another rate; reports name which was used.

    - `stretch`: every instant times one factor. Keeps every request and the shape; bursts last longer or shorter.
    - `thin`: each request kept with the same probability. Keeps real time and the length of bursts; slows down only.
    """

    STRETCH = "stretch"
    THIN = "thin"


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Recorded instants [m], sorted, in seconds from the start of the run; as recorded where `rate` is None.

    `rate_flag` is what the user calls the rate.
    """

    recorded_s: Seconds
    rate: float | None = None
    scaling: Scaling = Scaling.STRETCH
    rate_flag: str = "--request-rate"

    def __post_init__(self) -> None:
        if self.rate is not None:
            check_rate(self.rate, "rate")

    def times(self, rng: np.random.Generator, n: int) -> Seconds:
        """[n] instants. Raises SpecError where the recording is too short for n."""
        return self.pick(rng, n)[1]

    def pick(self, rng: np.random.Generator, n: int | None) -> tuple[NDArray[np.int64], Seconds]:
        """Which recorded requests are offered, [n] indices, and when, [n] seconds. All that there are where n is None.

        Stretching uses the first n and ends at n / rate; thinning draws over the whole recording.
        """
        thinned = self.rate is not None and self.scaling is Scaling.THIN
        index = self._thinned(rng, self.rate) if thinned and self.rate is not None else np.arange(len(self.recorded_s))
        if n is not None and n > len(index):
            left = f"{len(index)} requests" + (f" after thinning to {self.rate:g} req/s" if thinned else "")
            raise SpecError("--num-requests", n, f"the trace has {left}", f"Ask for at most {len(index)}.")
        index = index[:n]
        times_s = self.recorded_s[index]
        if self.rate is None or thinned:
            return index, times_s
        if self.rate < np.inf and (len(times_s) < 2 or times_s[-1] == times_s[0]):
            raise SpecError(
                self.rate_flag, self.rate, "the trace offers all at once, so it has no rate", "Leave it out."
            )
        return index, _stretched(times_s, self.rate)

    def _thinned(self, rng: np.random.Generator, rate: float) -> NDArray[np.int64]:
        recorded_rate = len(self.recorded_s) / self.recorded_s[-1] if self.recorded_s[-1] > 0 else np.inf
        if rate > recorded_rate:
            raise SpecError(
                self.rate_flag,
                rate,
                f"thinning can't go above the recorded {recorded_rate:.4g} req/s",
                "Use stretch to speed a trace up.",
            )
        return np.flatnonzero(rng.random(len(self.recorded_s)) < rate / recorded_rate)


def check_rate(rate: float, field: str, slowest: float = 0.0) -> None:
    """Raises SpecError, naming `field`, unless `rate` is positive and at least `slowest`; infinite is allowed."""
    if not rate > 0:  # also catches NaN
        raise SpecError(field, rate, "not a positive number", "Give requests per second, or inf to offer all at once.")
    if rate < slowest:
        raise SpecError(field, rate, f"below {slowest:g} requests per second", "Give a higher rate.")


def _paced(gaps: Seconds, rate: float) -> Seconds:
    """[n] instants from gaps [n] of any scale, the last at n / rate."""
    return _stretched(np.cumsum(gaps), rate)


def _stretched(times: Seconds, rate: float) -> Seconds:
    n = len(times)
    if not n or rate == np.inf:
        return np.zeros(n)
    if times[-1] == 0:
        # Nothing to stretch: one recorded request, or gamma gaps of tiny shape that all underflowed to 0.
        return np.full(n, n / rate)
    return times / times[-1] * (n / rate)
