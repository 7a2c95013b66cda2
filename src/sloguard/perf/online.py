"""A batch time that learns from the steps it predicted.

    x       log(actual / prior) of one step
    bias    weighted mean of x: a step weighs 1/n until that is WEIGHT, so a wrong prior is mended within a few steps,
            a change of the machine within a hundred. It moves by at most CLIP times that, so one stall is no lesson
    margin  the quantile QUANTILE of actual / corrected prediction, by stochastic approximation (Robbins, Monro, 1951):
            a step above it raises it by RATE * QUANTILE of the usual scatter, one below lowers it by the rest of RATE

Deterministic, no clock, O(1) a step.
"""

from __future__ import annotations

from math import exp, log

from sloguard.perf.batch_time import Batch, StepTime

WEIGHT = 0.02
CLIP = 0.25
QUANTILE = 0.9
RATE = 0.1
FIRST_MARGIN = 0.05  # log of the margin before anything is known: what a fitted model is off by
LEAST_SCATTER = 1e-3  # so that a margin learnt without noise can still move


class OnlineTime:
    """`prior` times what was observed."""

    def __init__(self, prior: StepTime) -> None:
        self.prior = prior
        self._steps = 0
        self._bias = 0.0
        self._factor = 1.0
        self._quantile = FIRST_MARGIN
        self._scatter = FIRST_MARGIN

    @property
    def bias(self) -> float:
        """Actual step time as a multiple of the prior's."""
        return self._factor

    @property
    def margin(self) -> float:
        """`seconds(batch) * margin` is more than nine steps of ten take; never below 1."""
        return exp(max(0.0, self._quantile))

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learns from a step. One that took no time, or should have, says nothing about a factor."""
        predicted_s = self.prior.seconds(batch)
        if predicted_s <= 0 or seconds <= 0:
            return
        self._steps += 1
        weight = max(WEIGHT, 1 / self._steps)
        off = log(seconds / predicted_s) - self._bias
        clipped = min(max(off, -CLIP), CLIP)
        self._bias += weight * clipped
        self._factor = exp(self._bias)
        if self._steps * WEIGHT < 0.2:  # the first ten settle the bias
            return
        step = RATE * max(self._scatter, LEAST_SCATTER)
        self._quantile += step * (QUANTILE if off > self._quantile else QUANTILE - 1)
        self._scatter += weight * (abs(clipped) - self._scatter)

    def start_from(self, prior: StepTime) -> None:
        """Another prior, which is not off as far as is known; the margin stays."""
        self.prior = prior
        self._bias, self._factor = 0.0, 1.0

    def seconds(self, batch: Batch) -> float:
        return self._factor * self.prior.seconds(batch)

    def inverse(
        self,
        budget_s: float,
        *,
        decodes: int = 0,
        kv_tokens: int = 0,
        context_tokens: int = 0,
        draft_tokens: int = 0,
        draft_steps: int = 0,
    ) -> int:
        return self.prior.inverse(
            budget_s / self._factor,
            decodes=decodes,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            draft_tokens=draft_tokens,
            draft_steps=draft_steps,
        )
