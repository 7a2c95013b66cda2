"""Guided Bayesian optimisation: few trials, most configs crash, and earlier studies may know where to look.

    score       log score, one belief (`sources.py`) over trials whose score is known or known to be low
    starts      +1 where the engine started, -1 where not; survives: the same for the load, of those that started
    misses      log(measured / limit) of each SLO; under `capacity` the SLOs are inside the score

The next config has the largest expected improvement (of the log score) times its chances to start, to survive and to
keep the SLOs, less the price of a crash, among configs drawn over the space, around the best ones, around the best of
each source and around the engine's default. One that is more likely to crash than not comes after all others. Where
memory ran out (`edges.py`) that is taken as the reason, and the beliefs in starting and surviving are of other crashes.
Where no source knows a score, or none turns out to be right about it, the first configs are drawn over the space: a
search from the default stays near it, and one that was misled near where that led.
Expected improvement settles near the best by itself: a gain of less than a crash's price is not worth a risk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from sloguard.optim.base import Problem, constraints, place, taught
from sloguard.optim.edges import edges, is_understood, units
from sloguard.optim.fresh import first_fresh
from sloguard.optim.gp import Array, Gp, Points, Scales
from sloguard.optim.lessons import Lesson, costs, misses, starts, survives, values
from sloguard.optim.sources import Belief, Question, belief, learnt
from sloguard.space.knobs import Categorical, Knob
from sloguard.space.space import Space
from sloguard.trial import Config, Measured, Trial, Value

SCORE = Question(Scales(spread=0.4, noise=0.03, shift=0.4))
RUNS = Question(Scales(spread=0.7, noise=0.3, shift=0.4, joint=0.7), level=0.2, prior=0.8)
MISS = Question(Scales(spread=0.7, noise=0.1, shift=0.7), level=3.0)  # a little slower, and a queue misses by 30 times
COST = Question(Scales(spread=0.3, noise=0.1, shift=0.5))
LABEL_SD = 0.4  # how sharply a label's process tells failing from running
LEAST_CHANCE = 0.5  # of running; less comes after all others

DRAWN = 7  # trials, the default's included, until the search begins where no source is right about the score
MISLED = 0.8  # the chance that none is, above which none is followed
UNIFORM, NEAR, FINALISTS = 200, 40, 48
CLIMBS, CLIMBERS, STEPS_OUT = 3, 6, 8  # rounds uphill, from how many configs, to how many around each
MOST_MOVES = 4  # knobs at a time
CAUTION = 2.0  # power of the chance to run: where it is learnt from few trials it is overrated
CRASH_PRICE = 0.02  # log score that one would give to be spared a crash
CENTRES = 3  # of the best configs so far, and of every source
STEPS = 5  # values of a number that are tried with all else kept
SIGMA, STRUCT = 0.2, 0.5
Scorer = Callable[[Sequence[Config]], Array]


@dataclass(frozen=True, slots=True)
class Guided:
    """The sources' processes depend on the problem alone, so they are fitted once."""

    problem: Problem
    sources: dict[str, list[Gp]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, list[Gp]] = {}
        for source in self.problem.earlier:
            trials = taught(source.trials)
            at = [place(trial, self.problem.space) for trial in trials]
            asked = self._asked(trials)
            asked.pop("cost", None)  # its clock is another
            for name, (question, lessons) in asked.items():
                process = learnt(at, lessons, question, self.problem.space)
                found.setdefault(name, []).extend([] if process is None else [process])
        object.__setattr__(self, "sources", found)

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        trials = taught(history)
        at = [place(trial, self.problem.space) for trial in trials]
        beliefs = {
            name: belief(at, lessons, question, self.problem.space, self.sources.get(name, []))
            for name, (question, lessons) in self._asked(trials).items()
        }
        to_beat = self._to_beat(trials, beliefs)
        memory = edges(trials, [taught(source.trials) for source in self.problem.earlier], self.problem.space)

        def scored(configs: Sequence[Config]) -> Array:
            at = units(configs, self.problem.space)
            suffices = np.prod([np.ones(len(configs)), *(edge.keeps(at) for edge in memory)], axis=0)
            return _worth(Points.of(configs, self.problem.space), beliefs, to_beat, suffices)

        draws = len(trials) < DRAWN and not self._is_led(beliefs["score"])
        ranked = self._drawn(rng, scored) if draws else self._ranked(trials, rng, scored)
        return first_fresh(self.problem, history, rng, ranked)

    def _is_led(self, scores: Belief) -> bool:
        """Whether a source may know the score. One score condemns none: it may be right about all but the level."""
        told = len(scores.processes[0].x)
        return bool(self.sources.get("score")) and (told < 2 or scores.weights[0] <= MISLED)

    def _asked(self, trials: Sequence[Trial]) -> dict[str, tuple[Question, list[Lesson]]]:
        goal = self.problem.goal
        understood = {i for i, trial in enumerate(trials) if is_understood(trial, self.problem.space)}
        asked = {
            "score": (SCORE, values(trials, goal)),
            "starts": (RUNS, [lesson for lesson in starts(trials) if lesson.trial not in understood]),
            "survives": (RUNS, [lesson for lesson in survives(trials) if lesson.trial not in understood]),
        }
        if goal.objective != "capacity":
            counts = [len(constraints(t)) - 1 for t in trials if isinstance(t.outcome, Measured)]
            asked |= {f"miss {i}": (MISS, misses(trials, i)) for i in range(max(counts, default=0))}
        if self.problem.timed:
            asked["cost"] = (COST, costs(trials))
        return asked

    def _to_beat(self, trials: Sequence[Trial], beliefs: dict[str, Belief]) -> float | None:
        """The best log score among feasible trials, as far as noise lets one tell."""
        lessons = [v for v in values(trials, self.problem.goal) if trials[v.trial].feasible and not v.extra]
        if not lessons:
            return None
        at = Points.of([place(trials[v.trial], self.problem.space) for v in lessons], self.problem.space)
        mean, _ = beliefs["score"].predict(at)
        return float((beliefs["score"].weights @ mean).max())

    def _ranked(self, trials: Sequence[Trial], rng: np.random.Generator, scored: Scorer) -> Iterator[Config]:
        """Candidates, best first: the finalists as they would be repaired, then all others."""
        space = self.problem.space
        pool = [space.sample(rng) for _ in range(UNIFORM)]
        for centre in [space.complete(config, rng) for config in self._centres(trials)]:
            pool += [*_sweeps(centre, space, rng), *_moved(centre, space, rng, NEAR)]
        pool = list(dict.fromkeys(pool))
        worth = scored(pool)
        for _ in range(CLIMBS):  # from where the worth is largest, uphill
            tops = [pool[i] for i in _order(worth)[:CLIMBERS]]
            new = list(dict.fromkeys(c for top in tops for c in _moved(top, space, rng, STEPS_OUT)))
            pool, worth = [*pool, *new], np.concatenate([worth, scored(new)])
        order = _order(worth)
        finalists = list(dict.fromkeys(self.problem.repair(pool[i]) for i in order[:FINALISTS]))
        yield from (finalists[i] for i in _order(scored(finalists)))
        yield from (pool[i] for i in order[FINALISTS:])

    def _drawn(self, rng: np.random.Generator, scored: Scorer) -> Iterator[Config]:
        """Those that rather run, as they were drawn; then the others."""
        drawn = [self.problem.repair(self.problem.space.sample(rng)) for _ in range(NEAR)]
        yield from (drawn[i] for i in np.argsort(scored(drawn) < -1.0, kind="stable"))

    def _centres(self, trials: Sequence[Trial]) -> list[Config]:
        """The best configs so far, where the study began, and the best of every source."""
        space, goal = self.problem.space, self.problem.goal

        def top(among: Sequence[Trial]) -> list[Config]:
            scores = [(goal.score(t), t) for t in among if isinstance(t.outcome, Measured)]
            known = sorted((t.feasible, s, -t.number, i) for i, (s, t) in enumerate(scores) if s is not None)
            return [place(scores[i][1], space) for *_, i in reversed(known[-CENTRES:])]

        centres = [*top(trials), *(place(t, space) for t in trials[:1])]
        return list(dict.fromkeys([*centres, *(c for source in self.problem.earlier for c in top(source.trials))]))


def _order(worth: Array) -> list[int]:
    return [int(i) for i in np.argsort(-worth, kind="stable")]


def _worth(at: Points, beliefs: dict[str, Belief], to_beat: float | None, suffices: Array) -> Array:
    """[m] what trying each point is worth, in log score; below -1 where it rather crashes. `suffices` [m] is the chance
    that memory does.
    """
    runs = suffices
    for name in ("starts", "survives"):
        runs = runs * _chance(beliefs[name], at, 0.0, LABEL_SD, above=True)
    keeps = np.ones(len(at))
    for name, model in beliefs.items():
        if name.startswith("miss"):
            keeps = keeps * _chance(model, at, 0.0, 0.1, above=False)
    model = beliefs["score"]
    means, sds = model.predict(at)
    bar = float((model.weights @ means).mean()) if to_beat is None else to_beat
    z = (means - bar) / sds
    gain = model.weights @ (sds * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * ndtr(z)))
    worth = runs**CAUTION * keeps * gain - CRASH_PRICE * (1 - runs)
    if "cost" in beliefs:
        worth = worth / np.exp(beliefs["cost"].predict(at)[0][0])
    return np.where(runs < LEAST_CHANCE, runs - 2.0 - CRASH_PRICE, worth)


def _chance(model: Belief, at: Points, bar: float, sharpness: float, *, above: bool) -> Array:
    """[m] the chance to lie above (or below) the bar."""
    means, sds = model.predict(at)
    z = (means - bar) / np.sqrt(sds**2 + sharpness**2)
    return model.weights @ ndtr(z if above else -z)


def _moved(config: Config, space: Space, rng: np.random.Generator, count: int) -> list[Config]:
    """`count` configs with one to `MOST_MOVES` knobs moved."""
    found: list[Config] = []
    for _ in range(count):
        moved = config
        for _ in range(int(rng.integers(1, MOST_MOVES + 1))):
            moved = space.neighbour(moved, rng, SIGMA, STRUCT)
        found.append(moved)
    return found


def _sweeps(config: Config, space: Space, rng: np.random.Generator) -> list[Config]:
    """Every choice, and a grid of every number, with all other knobs kept."""
    moved = [config.replace(**{k.name: v}) for k in space.knobs if k.name in config for v in _grid(k)]
    return [space.complete(c, rng) for c in moved if c != config]


def _grid(knob: Knob) -> Sequence[Value]:
    if isinstance(knob, Categorical):
        return knob.choices
    return [knob.decode(float(u)) for u in np.linspace(0, 1, STEPS)]
