"""What may be said of the best: it and its rivals are measured again, from fresh starts and under arrivals held out.

The best of many noisy measurements is too good to be true, so the last word has what was measured afterwards:

    doubt        while the search goes on, a best that none comes near is measured once more, and counts by its mean
    candidates   the two best configs and the default, as far as they keep the contract
    rounds       each round measures every candidate once, under arrivals of its own
    noise        what is left of log scores once each candidate's mean and each round's is taken out, beside what runs
                 of one config are known to differ by: few rounds say little of it
    verdict      of the candidates that the noise can't tell from the best, the one that changes the least: the default,
                 or, where the best beats that, one that does too
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # what scipy.stats calls, without half a second of imports

from sloguard.optim.base import Goal, best, measurements, standing
from sloguard.trial import Ask, Proposal, Trial

BEST = 2  # of the configs tried, beside the default
DOUBT = 3  # configs that lost the race against the best before it is measured a second time
CONFIDENCE = 0.95
RUN_TO_RUN_NOISE = 0.069  # spread reported over six identical vLLM runs (arXiv 2604.17627)
NOISE, NOISE_WORTH = 0.03, 4  # what that makes of log scores, and in degrees of freedom


def explored(history: Sequence[Trial]) -> list[Trial]:
    """The trials that found something out, less those that measured again what others had found."""
    return [trial for trial in history if trial.recheck is None]


def candidates(history: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The best first, then the default if it keeps the contract and is not among them."""
    ranked = [trial for _, trial in standing(explored(history), goal)]
    return ranked[:BEST] + [trial for trial in ranked[BEST:] if not trial.proposed]


def doubted(history: Sequence[Trial], pending: Sequence[Proposal], goal: Goal) -> Proposal | None:
    """The best so far once more, where none of the last few came near it: it may have been lucky, and then nothing is
    found any more that is truly better.
    """
    leader = best(history, goal)
    if leader is None or leader.capacity is None or len(measurements(leader, history)) > 1:
        return None
    lost = [t for t in history if t.number > leader.number and t.capacity is not None and t.capacity.dropped]
    if len(lost) < DOUBT or any(made.run == leader.overrides for made in pending):
        return None
    return Proposal(leader.proposed, leader.config, leader.repairs, ask=Ask(near=leader.capacity.low, again=1))


def next_recheck(history: Sequence[Trial], pending: Sequence[Proposal], goal: Goal, rounds: int) -> Proposal | None:
    """The next measurement of a candidate; None once each has `rounds`. With one candidate there is nothing to tell
    apart, but its own score is still too good to be true.
    """
    done = [trial.recheck for trial in history] + [made.recheck for made in pending]
    for turn in range(1, rounds + 1):
        for trial in candidates(history, goal):
            if done.count(trial.number) < turn:
                ask = Ask(near=trial.capacity.low if trial.capacity else None, turn=turn)
                return Proposal(trial.proposed, trial.config, trial.repairs, ask=ask, recheck=trial.number)
    return None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A candidate measured again. `scores` are by round, None where a round lost the contract or the engine."""

    trial: Trial
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Geometric where scores are positive; None where a round failed."""
        known = [score for score in self.scores if score is not None]
        if not known or len(known) < len(self.scores):
            return None
        return _unscaled(float(np.mean([_scaled(score) for score in known])), known[0])

    @property
    def worst(self) -> float | None:
        return None if self.mean is None else min(score for score in self.scores if score is not None)


def confirmed(history: Sequence[Trial], goal: Goal) -> list[Confirmed]:
    """The candidates that were measured again as often as any, in order of their means, failed ones last."""
    found = [
        Confirmed(trial, tuple(goal.score(t) if t.feasible else None for t in history if t.recheck == trial.number))
        for trial in candidates(history, goal)
    ]
    rounds = max((len(one.scores) for one in found), default=0)
    whole = [one for one in found if one.scores and len(one.scores) == rounds]
    return sorted(whole, key=lambda one: -math.inf if one.mean is None else one.mean, reverse=True)


def chosen(found: Sequence[Confirmed], default: Trial | None) -> Trial | None:
    """Of those within noise of the best the one with the fewest overrides; the default has none. Where the best beats
    the default beyond noise, so does whoever is chosen.
    """
    sound = [one for one in found if one.mean is not None]
    if not sound:
        return None
    near = [one for one in sound if one is sound[0] or _tied(sound[0], one, sound)]
    own = next((one for one in sound if one.trial is default), None)
    if own is not None and own not in near:
        near = [one for one in near if not _tied(one, own, sound)]
    base = default.config if default is not None else None

    def changes(one: Confirmed) -> int:
        values = one.trial.overrides
        return sum(base is None or base.get(name) != value for name, value in values.items())

    return min(near, key=lambda one: (changes(one), -(one.mean or 0.0))).trial


def gain_interval(found: Sequence[Confirmed], best: Trial, default: Trial) -> tuple[float, float] | None:
    """95 % interval of best / default - 1 from what was measured again; None without enough of it."""
    pair = [next((one for one in found if one.trial.number == t.number), None) for t in (best, default)]
    if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
        return None
    interval = _difference(pair[0], pair[1], found)
    if interval is None:
        return None
    low, high = interval
    score = pair[1].scores[0] or 0.0
    if score > 0:
        return math.expm1(low), math.expm1(high)
    return low / abs(score), high / abs(score)


def _tied(best: Confirmed, other: Confirmed, found: Sequence[Confirmed]) -> bool:
    interval = _difference(best, other, found)
    return interval is None or interval[0] <= 0


def _difference(a: Confirmed, b: Confirmed, found: Sequence[Confirmed]) -> tuple[float, float] | None:
    """95 % interval of the mean difference of (log) scores, with the noise pooled over all candidates (two-way layout
    without repetition: Montgomery, Design and Analysis of Experiments, section 4.1) and over what is known of it
    beforehand (a scaled inverse chi-squared prior: Gelman et al., Bayesian Data Analysis, section 2.6).
    """
    table = np.array([[_scaled(s) for s in one.scores if s is not None] for one in found if one.mean is not None])
    if a.mean is None or b.mean is None:
        return None
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    known = NOISE * (1.0 if a.mean > 0 else abs(b.mean))
    freedom = NOISE_WORTH + (table.shape[0] - 1) * (table.shape[1] - 1)
    variance = (NOISE_WORTH * known**2 + float((rest**2).sum())) / freedom
    error = math.sqrt(variance * 2 / table.shape[1])
    gap = float(np.mean([_scaled(x) - _scaled(y) for x, y in zip(a.scores, b.scores, strict=True) if x and y]))
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    return gap - half, gap + half


def _scaled(score: float) -> float:
    """Rates and goodputs compare as ratios; latencies (negative scores) as they are."""
    return math.log(score) if score > 0 else score


def _unscaled(value: float, like: float) -> float:
    return math.exp(value) if like > 0 else value
