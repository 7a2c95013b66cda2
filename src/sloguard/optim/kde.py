"""A small Parzen estimator over the encoded space: where the good trials are, against where the others are.

    l(x), g(x)   mixtures of product kernels over the good and the other trials, each with one uniform component
    ratio        log l(x) - log g(x): what TPE maximises (Bergstra et al. 2011, NeurIPS, section 4)

Numeric dimensions have Gaussian kernels, choices the Aitchison-Aitken kernel; a knob inactive in both agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sloguard.space.knobs import Categorical
from sloguard.space.space import Space
from sloguard.trial import Config

GOOD_SHARE = 0.3
MIN_BANDWIDTH = 0.2  # of the unit interval: few trials that happen to agree are no proof that the rest is bad
KEEP_CHOICE = 0.8  # weight a choice kernel leaves on its own value


@dataclass(frozen=True, slots=True)
class Kde:
    """`units`, `active` [n, d] are the trials the density stands on."""

    space: Space
    units: NDArray[np.float64]
    active: NDArray[np.bool_]
    bandwidth: NDArray[np.float64]  # [d]

    @staticmethod
    def of(configs: Sequence[Config], space: Space) -> Kde:
        pairs = [space.encode(config) for config in configs]
        units, active = np.array([u for u, _ in pairs]), np.array([a for _, a in pairs])
        scott = len(configs) ** (-1 / (len(space.knobs) + 4))
        return Kde(space, units, active, np.maximum(units.std(axis=0) * scott, MIN_BANDWIDTH))

    def sample(self, rng: np.random.Generator) -> Config:
        """A draw from the kernel of one of the trials; a knob inactive there is drawn uniformly."""
        row = rng.integers(len(self.units))
        near = np.clip(self.units[row] + rng.normal(0.0, self.bandwidth), 0.0, 1.0)
        kept = np.where(rng.random(len(near)) < KEEP_CHOICE, self.units[row], rng.random(len(near)))
        anywhere = rng.random(len(near))
        return self.space.decode(np.where(self.active[row], np.where(self._choices, kept, near), anywhere))

    def log_density(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """[m] log of the mixture at each config."""
        pairs = [self.space.encode(config) for config in configs]
        x, on = np.array([u for u, _ in pairs])[:, None, :], np.array([a for _, a in pairs])[:, None, :]
        both = on & self.active  # [m, n, d]; where neither is active the knob agrees, where one is it is as uniform
        gap = x - self.units
        gauss = -0.5 * (gap / self.bandwidth) ** 2 - np.log(self.bandwidth * np.sqrt(2 * np.pi))
        counts = np.array([k.count if isinstance(k, Categorical) else 2 for k in self.space.knobs], dtype=np.float64)
        other = (1 - KEEP_CHOICE) / counts  # KEEP_CHOICE of the mass stays, the rest is spread over all choices
        choice = np.log(counts * np.where(np.abs(gap) < 1e-9, KEEP_CHOICE + other, other))
        log_kernel = np.where(both, np.where(self._choices, choice, gauss), 0.0).sum(axis=2)  # [m, n]
        uniform = np.zeros((len(log_kernel), 1))  # log density of the uniform component
        return np.logaddexp.reduce(np.hstack([log_kernel, uniform]), axis=1) - np.log(len(self.units) + 1)

    @property
    def _choices(self) -> NDArray[np.bool_]:
        return np.array([isinstance(knob, Categorical) for knob in self.space.knobs])


def good_and_rest(configs: Sequence[Config], scores: Sequence[float], space: Space) -> tuple[Kde, Kde]:
    """Densities of the best 30 % of `configs` [n >= 2] (at least one) and of the others."""
    order = sorted(range(len(configs)), key=lambda i: (-scores[i], i))
    cut = max(1, round(GOOD_SHARE * len(configs)))
    good, rest = order[:cut], order[cut:]
    return Kde.of([configs[i] for i in good], space), Kde.of([configs[i] for i in rest], space)
