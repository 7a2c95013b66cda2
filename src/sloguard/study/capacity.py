"""Capacity of many deployments: searches driven side by side, each rate tried in a process of its own.

    row     one (scenario, policy, router): one search (`sim.capacity`) over rates per GPU
    probe   one rate of one row, all seeds one after the other; a function of the row and the rate alone

So the outcome does not depend on how many processes there are or in which order they end, and a search that is resumed
replays what is on record: it equals one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any

from sloguard.contract import allowed_misses
from sloguard.errors import LogError
from sloguard.sim.capacity import Bracket, Misses, drained, search
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import first_guess, requests_of, run, step_times
from sloguard.study.workers import workers

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every row. `rates` are per GPU: the least and the greatest to look at."""

    target: float
    seeds: int
    tolerance: float
    rates: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate of one row. Where it `ended_early` it had failed already: `attainment` is then an upper bound. `drained`
    is None where too many promises were missed before it could be seen.
    """

    row: str
    rate_per_gpu: float
    attainment: float
    drained: bool | None
    ended_early: bool
    requests: int

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Probe:
        """The inverse of `asdict`. Raises LogError where `record` is none."""
        try:
            return Probe(**{f.name: record[f.name] for f in fields(Probe)})
        except KeyError as error:
            raise LogError(
                f"the record of a search has a line without {error}. Restore the file from a copy."
            ) from error

    def passed(self, target: float) -> bool:
        return self.drained is True and self.attainment >= target


@dataclass(frozen=True, slots=True)
class Capacity:
    """The end of one search. `probes` in order of asking."""

    spec: SimSpec
    bracket: Bracket
    probes: tuple[Probe, ...]

    @property
    def per_gpu(self) -> float:
        """The largest rate that passed, requests/s; 0 where none did."""
        return self.bracket.low

    @property
    def ends(self) -> list[float | None]:
        """Of the bracket, as JSON has them: an open end is null."""
        return [self.bracket.low, None if self.bracket.high == inf else self.bracket.high]

    @property
    def at_capacity(self) -> Probe | None:
        return next((probe for probe in self.probes if probe.rate_per_gpu == self.bracket.low), None)


def probe(spec: SimSpec, rate_per_gpu: float, question: Question) -> Probe:
    """Serves the row's requests at this rate, seed after seed, until the target is out of reach."""
    left, met, total = None, 0, 0
    for seed in range(question.seeds):
        requests = requests_of(spec, rate_per_gpu * spec.gpus, seed).requests
        left = allowed_misses(len(requests) * question.seeds, question.target) if left is None else left
        misses = Misses(left, spec.tpot_rule)
        ran = run(spec, requests, seed, stop_when=misses.stop)
        total += len(requests)
        met += len(requests) - misses.missed
        left -= misses.missed
        steady = None if left < 0 else drained(ran.timelines)
        if not steady:
            unasked = (question.seeds - seed - 1) * len(requests)
            attainment = (met + unasked) / (total + unasked)
            return Probe(spec.name, rate_per_gpu, attainment, steady, steady is None or unasked > 0, total)
    return Probe(spec.name, rate_per_gpu, met / total, True, False, total)


@dataclass(slots=True)
class _Search:
    spec: SimSpec
    asking: Generator[float, bool, Bracket]
    probes: list[Probe] = field(default_factory=list[Probe])
    rate: float = 0.0

    def advance(self, answer: bool | None) -> Capacity | None:
        """Feeds an answer; the capacity once the search has ended, else None and `rate` is what to try next."""
        try:
            self.rate = next(self.asking) if answer is None else self.asking.send(answer)
        except StopIteration as ended:
            return Capacity(self.spec, ended.value, tuple(self.probes))
        return None


def find_capacities(
    rows: Sequence[SimSpec],
    question: Question,
    *,
    jobs: int | None = 1,
    ray_address: str | None = None,
    known: Mapping[tuple[str, float], Probe] | None = None,
    on_probe: Callable[[Probe], None] = lambda probe: None,
    on_row: Callable[[Capacity], None] = lambda capacity: None,
) -> list[Capacity]:
    """The capacity of each row, in the order given. `jobs` and `ray_address` are as in `workers`. `known` are probes on
    record: they are not run again.

    `on_probe` is told of each probe that was run, as it ends; `on_row` of each row.
    """
    found: dict[str, Capacity] = {}
    waiting = list(reversed(rows))
    running: dict[Future[Probe], _Search] = {}

    def go_on(one: _Search, answer: bool | None) -> None:
        """Answers from the record for as long as it knows; then asks a process, or the row is done."""
        while (ended := one.advance(answer)) is None:
            recorded = (known or {}).get((one.spec.name, one.rate))
            if recorded is None:
                running[executor.submit(probe, one.spec, one.rate, question)] = one
                return
            one.probes.append(recorded)
            answer = recorded.passed(question.target)
        found[one.spec.name] = ended
        on_row(ended)

    with workers(jobs, ray_address) as (executor, most):
        while waiting or running:
            while waiting and len(running) < most:  # rows are finished one after another, not all at the end
                spec = waiting.pop()
                asking = search(first_guess(spec), rates=question.rates, tolerance=question.tolerance)
                go_on(_Search(spec, asking), None)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                result = future.result()
                on_probe(result)
                one.probes.append(result)
                go_on(one, result.passed(question.target))
    return [found[spec.name] for spec in rows]


def to_json(capacity: Capacity, question: Question) -> dict[str, Any]:
    """One row of the result. Rates are per GPU and second; a bracket's open end is null."""
    spec, at = capacity.spec, capacity.at_capacity
    return {
        **spec.to_json(),
        "scenario": spec.workload,
        "engines": spec.engines,
        "gpus": spec.gpus,
        "step_times": step_times(spec),
        "seeds": question.seeds,
        "target": question.target,
        "capacity_per_gpu": capacity.per_gpu,
        "bracket": capacity.ends,
        "attainment": at.attainment if at else None,
        "requests": at.requests if at else None,
        "probes": [{k: v for k, v in asdict(p).items() if k != "row"} for p in capacity.probes],
    }
