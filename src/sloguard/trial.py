"""A point of the space (`Config`), what came of trying it (`Outcome`) and the record of both (`Trial`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sloguard.contract import Attained, Check, Limit, Metric, Verdict
from sloguard.crash import Crash
from sloguard.metrics import Summary
from sloguard.slo import Judgement

Value = bool | int | float | str | None
Answer = tuple[int, ...]  # token ids
Answers = tuple[Answer, ...]  # to the questions of study/quality.py


class Config(Mapping[str, Value]):
    """An immutable, hashable set of knob values, ordered by name so that equal configs print alike.

    True and 1 are different values of a knob, so they make different configs.
    """

    __slots__ = ("_items",)

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._items: dict[str, Value] = dict(sorted((values or {}).items()))

    def __getitem__(self, name: str) -> Value:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _key(self) -> tuple[tuple[str, bool, Value], ...]:
        return tuple((name, isinstance(value, bool), value) for name, value in self._items.items())

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._key() == other._key()

    def __repr__(self) -> str:
        return "Config(" + ", ".join(f"{k}={v!r}" for k, v in self._items.items()) + ")"

    def replace(self, **changes: Value) -> Config:
        return Config({**self._items, **changes})


@dataclass(frozen=True, slots=True)
class Leg:
    """One rate [requests/s] offered to a started engine. One that failed may have been ended early, as soon as it could
    not pass any more. `excess` is by how much the promise furthest from kept was missed: dimensionless, <= 0 when met.
    """

    rate: float
    passed: bool
    met: int
    offered: int
    drained: bool
    excess: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the search for the largest rate that keeps the contract found within one start: its legs, in order.

    `to_beat` is the rate that it had to keep at the least, for the best config so far does; `tolerance` how narrow the
    bracket was to become.
    """

    legs: tuple[Leg, ...]
    tolerance: float
    to_beat: float | None = None

    @property
    def low(self) -> float:
        """The largest rate that passed, 0 where none did."""
        return max((leg.rate for leg in self.legs if leg.passed), default=0.0)

    @property
    def high(self) -> float:
        """The smallest rate that failed, inf where none did."""
        return min((leg.rate for leg in self.legs if not leg.passed), default=math.inf)

    @property
    def estimate(self) -> float:
        """Between `low` and `high`, where the log excess would be nought if it rose evenly with the log rate; `low`
        where one of them is missing.
        """
        if not self.low or self.high == math.inf:
            return self.low
        passed = next(leg.excess for leg in self.legs if leg.rate == self.low)
        failed = next(leg.excess for leg in self.legs if leg.rate == self.high)
        share = passed / (passed - failed) if passed < 0 < failed < math.inf else 0.0
        return self.low * (self.high / self.low) ** share

    @property
    def dropped(self) -> bool:
        """Given up as worse than the best so far: what it would have kept is not known."""
        return self.to_beat is not None and self.high <= self.to_beat

    @property
    def resolved(self) -> bool:
        return self.low > 0 and self.high <= self.low * (1 + self.tolerance) * (1 + 1e-9)

    def to_json(self) -> dict[str, Any]:
        legs = [{**asdict(leg), "excess": None if leg.excess == math.inf else leg.excess} for leg in self.legs]
        high = None if self.high == math.inf else self.high
        told = {
            "low": self.low,
            "high": high,
            "estimate": self.estimate,
            "dropped": self.dropped,
            "resolved": self.resolved,
        }  # for readers
        return {**told, "to_beat": self.to_beat, "tolerance": self.tolerance, "legs": legs}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Capacity:
        legs: list[dict[str, Any]] = [dict(leg) for leg in data["legs"]]
        for leg in legs:
            leg["excess"] = math.inf if leg["excess"] is None else leg["excess"]
        return Capacity(tuple(Leg(**leg) for leg in legs), data["tolerance"], data["to_beat"])


@dataclass(frozen=True, slots=True)
class Measured:
    """The engine started and was loaded; `verdict` says whether the contract held.

    `effective` is what the engine said it runs, where it said so; `notes` what a reader of the figures must know. Where
    a `capacity` was searched for, summary and verdict are those of the largest rate that passed, or of the smallest
    that was tried where none did. `answers` are those that others are held against.
    """

    summary: Summary
    verdict: Verdict
    startup_s: float
    effective: dict[str, Value] = field(default_factory=dict[str, Value])
    notes: tuple[str, ...] = ()
    capacity: Capacity | None = None
    answers: Answers = ()


@dataclass(frozen=True, slots=True)
class Crashed:
    """The engine did not start or stopped serving."""

    crash: Crash


@dataclass(frozen=True, slots=True)
class Refused:
    """Given no load: the guard proved that it cannot start, or its answers are not the default's."""

    reason: str


Outcome = Measured | Crashed | Refused


@dataclass(frozen=True, slots=True)
class Avoided:
    """A config the optimizer asked for before this trial's, and why the guard kept it from crashing an engine."""

    proposed: Config
    config: Config
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"proposed": dict(self.proposed), "config": dict(self.config), "reason": self.reason}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Avoided:
        return Avoided(Config(dict(data["proposed"])), Config(dict(data["config"])), str(data["reason"]))


@dataclass(frozen=True, slots=True)
class Ask:
    """What a trial is asked beyond its config. `to_beat` is the rate [requests/s] that it has to keep at the least,
    `near` where to begin a search without one, `turn` which arrivals are offered: 0 those that every config meets, the
    others are held out for measuring again. `again` is how often the same was measured under these arrivals before, so
    that a simulated engine has luck of its own each time. `reference` are the answers with which the engine's are to
    agree, empty where its own are to be those; None where it isn't asked.
    """

    to_beat: float | None = None
    near: float | None = None
    turn: int = 0
    again: int = 0
    reference: Answers | None = None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Ask:
        reference = data.get("reference")
        answers = None if reference is None else _answers(reference)
        return Ask(data.get("to_beat"), data.get("near"), data.get("turn", 0), data.get("again", 0), answers)


def _answers(data: Iterable[Iterable[int]]) -> Answers:
    return tuple(map(tuple, data))


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to try next. `config` is recorded and learnt from; `run` is what the engine is given. `recheck` is the
    number of the trial that is measured again.
    """

    proposed: Config
    config: Config
    repairs: tuple[str, ...] = ()
    avoided: tuple[Avoided, ...] = ()
    refused: str | None = None
    ask: Ask = Ask()
    recheck: int | None = None

    @property
    def run(self) -> Config:
        """The default is whatever the engine does when nothing is asked of it."""
        return self.config if self.proposed else Config()

    def to_json(self) -> dict[str, Any]:
        return {
            "proposed": dict(self.proposed),
            "config": dict(self.config),
            "repairs": list(self.repairs),
            "avoided": [avoided.to_json() for avoided in self.avoided],
            "refused": self.refused,
            "ask": asdict(self.ask),
            "recheck": self.recheck,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Proposal:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where `data` is not such a record."""
        return Proposal(
            Config(dict(data["proposed"])),
            Config(dict(data["config"])),
            tuple(data["repairs"]),
            tuple(map(Avoided.from_json, data["avoided"])),
            data["refused"],
            Ask.from_json(data.get("ask", {})),
            data.get("recheck"),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """`proposed` is what was asked for (nothing, when the engine's default is tried), `config` what ran after repair;
    optimizers learn from `config`.

    `cost_s` is what the trial took: virtual seconds on a simulated engine, wall clock on a real one. `repairs` says
    what was changed and why; `avoided` what was refused before this trial, at no cost; `recheck` is the number of the
    trial that was measured again, under other arrivals.
    """

    number: int
    proposed: Config
    config: Config
    outcome: Outcome
    cost_s: float
    repairs: tuple[str, ...] = ()
    avoided: tuple[Avoided, ...] = ()
    recheck: int | None = None

    @property
    def feasible(self) -> bool:
        return isinstance(self.outcome, Measured) and self.outcome.verdict.met

    @property
    def capacity(self) -> Capacity | None:
        return self.outcome.capacity if isinstance(self.outcome, Measured) else None

    @property
    def overrides(self) -> Config:
        """What a user must set to get this config: nothing where the engine was left to its own defaults."""
        return self.config if self.proposed else self.proposed

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "proposed": dict(self.proposed),
            "config": dict(self.config),
            "outcome": _outcome_to_json(self.outcome),
            "cost_s": self.cost_s,
            "repairs": list(self.repairs),
            "avoided": [avoided.to_json() for avoided in self.avoided],
            **({} if self.recheck is None else {"recheck": self.recheck}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trial:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where `data` is not such a record."""
        return Trial(
            number=int(data["number"]),
            proposed=Config(dict(data["proposed"])),
            config=Config(dict(data["config"])),
            outcome=_outcome_from_json(data["outcome"]),
            cost_s=float(data["cost_s"]),
            repairs=tuple(data["repairs"]),
            avoided=tuple(map(Avoided.from_json, data["avoided"])),
            recheck=data.get("recheck"),
        )


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Measured():
            return {
                "kind": "measured",
                "status": outcome.verdict.judgement.value,
                "summary": outcome.summary.to_json(),
                "checks": [_check_to_json(check) for check in outcome.verdict.checks],
                "startup_s": outcome.startup_s,
                "effective": outcome.effective,
                "notes": list(outcome.notes),
                **({"attained": asdict(attained)} if (attained := outcome.verdict.attained) else {}),
                **({"capacity": outcome.capacity.to_json()} if outcome.capacity else {}),
                **({"answers": outcome.answers} if outcome.answers else {}),
            }
        case Crashed():
            return {"kind": "crashed", **asdict(outcome.crash)}
        case Refused():
            return {"kind": "refused", "reason": outcome.reason}


def _outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    match data["kind"]:
        case "measured":
            summary = Summary.from_json(dict(data["summary"]))
            checks = tuple(_check_from_json(check) for check in data["checks"])
            attained = Attained(**data["attained"]) if "attained" in data else None
            verdict = Verdict(checks, summary.completed, attained)
            capacity = Capacity.from_json(data["capacity"]) if "capacity" in data else None
            answers, notes = _answers(data.get("answers", ())), tuple(data["notes"])
            return Measured(summary, verdict, data["startup_s"], data["effective"], notes, capacity, answers)
        case "crashed":
            return Crashed(Crash(**{k: v for k, v in data.items() if k != "kind"}))
        case "refused":
            return Refused(data["reason"])
        case kind:
            raise ValueError(f"unknown outcome kind {kind!r}")


def _check_to_json(check: Check) -> dict[str, Any]:
    lost = check.measured_s == float("inf")
    return {
        "metric": check.limit.metric.value,
        "quantile": check.limit.quantile,
        "limit_s": check.limit.limit_s,
        "measured_s": None if lost else check.measured_s,
        "lost": lost,
        "judgement": check.judgement.value,
    }


def _check_from_json(data: Mapping[str, Any]) -> Check:
    limit = Limit(Metric(data["metric"]), data["quantile"], data["limit_s"])
    measured_s = float("inf") if data["lost"] else data["measured_s"]
    return Check(limit, measured_s, Judgement(data["judgement"]))
