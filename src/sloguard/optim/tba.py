"""Thermal Budget Annealing: feasible first, then better, at the pace of the budget (arXiv 2604.17627, section 4).

    T0 = 1              temperature at the start; every T is a multiple of it
    energy              feasibility phase: `violation` (a crash above any miss); optimisation phase: -score
    scale               what counts as a step of energy: a tenth of a limit, or of the spread of the feasible scores
    walk                current point, temperature, patience: a fold over the log, so that nothing is kept between calls

A worse point is accepted with chance exp(-delta / (T scale)). The draw for that comes from the trial itself, so the
fold gives the same walk each time it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sloguard.optim.base import Goal, Problem, place, taught, violation
from sloguard.optim.blacklist import blacklist
from sloguard.optim.forest import CRASH_CHANCE, crash_forest, merit_forest
from sloguard.optim.fresh import first_fresh
from sloguard.optim.kde import Kde, good_and_rest
from sloguard.rng import stream
from sloguard.space.space import Space
from sloguard.trial import Config, Measured, Trial

T0 = 1.0
T_OPTIMISE = 0.7 * T0
T_REHEAT_MAX = 0.8 * T0
COOLING = {False: 0.95, True: 0.92}  # on improvement; by phase: feasible yet?
PATIENCE = {False: 4, True: 5}  # trials without improvement before a reheat
REHEAT = 2.5
SIGMA = 0.3  # step of a number in the unit cube, times T
P_STRUCT = (0.5, 0.15)  # chance to move a choice instead of a number: from the first trial to the last
MISS_SCALE = 0.1  # violations are relative, so a tenth of a limit is 0.1
ELITE_EVERY, ELITE_UNTIL = 12, 0.7  # back to the best point every 12 trials, within this share of the budget
KDE_FEASIBLE = 8  # feasible trials from which densities of good and other points are worth having
KDE_SHARE = 0.5  # of the proposals that they rank: densities alone would never leave the place they know
POOL = 32  # candidates a proposal chooses from
KEPT_SHARE = 0.25  # of the pool that a trusted forest lets through


@dataclass(frozen=True, slots=True)
class Walk:
    """Where the annealer stands after a log. `best` has the least violation, then the highest score."""

    temperature: float = T0
    stale: int = 0
    current: Trial | None = None
    best: Trial | None = None
    scores: tuple[float, ...] = ()  # of the feasible trials

    @property
    def feasible(self) -> bool:
        return bool(self.scores)


def walk(history: Sequence[Trial], goal: Goal, budget: int) -> Walk:
    state = Walk()
    for step, trial in enumerate(taught(history), start=1):
        state = _after(state, trial, goal, step, budget)
    return state


def _after(state: Walk, trial: Trial, goal: Goal, step: int, budget: int) -> Walk:
    score = goal.score(trial) if trial.feasible else None
    scores = state.scores if score is None else (*state.scores, score)
    if scores and not state.scores:
        return Walk(T_OPTIMISE, 0, trial, trial, scores)
    improved = state.best is None or _energy(trial, goal, state.feasible) < _energy(state.best, goal, state.feasible)
    best = trial if improved else state.best
    accepted = state.current is None or _accepts(state, trial, goal)
    current = trial if accepted else state.current
    if step % ELITE_EVERY == 0 and step < ELITE_UNTIL * budget:
        current = best
    temperature, stale = state.temperature, 0 if improved else state.stale + 1
    if improved:
        temperature *= COOLING[state.feasible]
    elif stale >= PATIENCE[state.feasible]:
        temperature, stale = max(temperature, min(temperature * REHEAT, T_REHEAT_MAX)), 0
    return Walk(temperature, stale, current, best, scores)


def _energy(trial: Trial, goal: Goal, feasible: bool) -> float:
    """To be lowered. Once something is feasible, what isn't has no energy that could be accepted."""
    if not feasible:
        return violation(trial)
    score = goal.score(trial) if trial.feasible else None
    return math.inf if score is None else -score


def _accepts(state: Walk, trial: Trial, goal: Goal) -> bool:
    assert state.current is not None
    delta = _energy(trial, goal, state.feasible) - _energy(state.current, goal, state.feasible)
    if delta <= 0:
        return True
    scale = (max(state.scores) - min(state.scores)) / 10 if state.scores else MISS_SCALE
    if delta == math.inf or scale == 0:
        return False
    draw = stream(trial.number, "accept", repr(trial.config)).random()
    return draw < math.exp(-delta / (state.temperature * scale))


@dataclass(frozen=True, slots=True)
class ThermalAnnealing:
    """The first `initial` trials are random (the engine's default counts as one), the rest follow the walk."""

    problem: Problem
    initial: int = 5

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        trials = taught(history)
        if len(trials) < self.initial:
            return first_fresh(self.problem, history, rng, ())
        return first_fresh(self.problem, history, rng, self._ranked(trials, len(history), rng))

    def _ranked(self, trials: Sequence[Trial], step: int, rng: np.random.Generator) -> list[Config]:
        """Candidates, the most wanted first: not blacklisted and thought to run, good as guessed, by density ratio."""
        space, goal = self.problem.space, self.problem.goal
        forest, crashes = merit_forest(trials, space, goal, rng), crash_forest(trials, space, rng)
        densities = _densities(trials, space, goal) if rng.random() < KDE_SHARE else None
        state = walk(trials, goal, self.problem.budget)
        pool: list[Config] = []
        if state.current is not None and isinstance(state.current.outcome, Measured):
            start, sigma = place(state.current, space), SIGMA * state.temperature
            chance = p_struct(step, self.problem.budget)
            pool += [space.neighbour(start, rng, sigma, chance) for _ in range(POOL)]
        if forest is not None or not pool:  # a forest sees further than one step; a crash is no place to walk from
            pool += [space.sample(rng) for _ in range(POOL)]
        if densities is not None:
            pool += [densities[0].sample(rng) for _ in range(POOL)]
        ran = [self.problem.repair(config) for config in pool]
        listed = blacklist(trials, space)
        rank = np.array([listed.hits(config, space) for config in ran], dtype=np.float64)
        if crashes is not None:
            rank += 2 * (crashes.guess(ran) > CRASH_CHANCE)  # a guessed crash weighs more than a guessed poor result
        if forest is not None:
            guess = forest.guess(ran)
            rank += guess < np.quantile(guess, 1 - KEPT_SHARE)
        wanted = np.zeros(len(pool))
        if densities is not None:
            good, rest = densities
            wanted = good.log_density(ran) - rest.log_density(ran)
        return [pool[i] for i in np.lexsort((np.arange(len(pool)), -wanted, rank))]


def p_struct(step: int, budget: int) -> float:
    """Chance to move a choice, falling linearly over the budget."""
    first, last = P_STRUCT
    return first + (last - first) * min(1.0, step / max(1, budget))


def _densities(trials: Sequence[Trial], space: Space, goal: Goal) -> tuple[Kde, Kde] | None:
    """Of the good and the other feasible trials, once there are enough of them."""
    scored = [(place(t, space), score) for t in trials if t.feasible and (score := goal.score(t)) is not None]
    if len(scored) < KDE_FEASIBLE:
        return None
    return good_and_rest([config for config, _ in scored], [score for _, score in scored], space)
