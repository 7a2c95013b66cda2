"""What a study came to: `summary.json` for machines, `best.yaml` for `vllm serve --config`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sloguard.contract import Check
from sloguard.optim.base import Goal, best
from sloguard.study.confirm import Confirmed, chosen, confirmed, explored, gain_interval
from sloguard.trial import Config, Crashed, Measured, Refused, Trial, Value

EQUAL = {("quantization", "fp16", None)}  # (knob, asked, ran): the paper's word for "not quantised"


@dataclass(frozen=True)
class Results:
    """Figures of a finished or interrupted study, all derived from its log."""

    trials: Sequence[Trial]
    goal: Goal
    try_default: bool

    @property
    def explored(self) -> list[Trial]:
        return explored(self.trials)

    @cached_property
    def confirmed(self) -> list[Confirmed]:
        return confirmed(self.trials, self.goal)

    @cached_property
    def best(self) -> Trial | None:
        """What to deploy: by what was measured again, where anything was."""
        return chosen(self.confirmed, self.default) or best(self.explored, self.goal)

    def score(self, trial: Trial) -> float | None:
        """As measured again, else as found."""
        again = next((one.mean for one in self.confirmed if one.trial.number == trial.number), None)
        return self.goal.score(trial) if again is None else again

    @property
    def rival(self) -> Trial | None:
        """Where the default is kept: the best other of those that were measured again."""
        others = [one for one in self.confirmed if one.mean is not None and one.trial is not self.default]
        if self.best is None or self.best is not self.default:
            return None
        return max(others, key=lambda one: one.mean or 0.0).trial if others else None

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """95 % interval of `gain`, where it was measured often enough."""
        return self.interval_of(self.best)

    def interval_of(self, trial: Trial | None) -> tuple[float, float] | None:
        """As `gain_interval`, of another than the best."""
        return None if trial is None or self.default is None else gain_interval(self.confirmed, trial, self.default)

    @property
    def default(self) -> Trial | None:
        """Trial 1, which need not be the first to end."""
        return next((t for t in self.explored if self.try_default and t.number == 1), None)

    @property
    def closest(self) -> Trial | None:
        """Where nothing is feasible: the measured trial that misses least."""
        measured = [t for t in self.explored if isinstance(t.outcome, Measured)]
        return min(measured, key=lambda t: (_distance(t), t.number), default=None)

    @property
    def feasible(self) -> int:
        return sum(t.feasible for t in self.explored)

    @property
    def dropped(self) -> int:
        """Configs that were given up because they could not beat the best before them."""
        return sum(t.capacity is not None and t.capacity.dropped for t in self.explored)

    @property
    def crashes(self) -> dict[str, int]:
        """Crashed trials by "category/cause"."""
        found = (t.outcome.crash for t in self.trials if isinstance(t.outcome, Crashed))
        return dict(Counter(f"{crash.category}/{crash.cause}" for crash in found))

    @property
    def wasted_s(self) -> float:
        """Time that went into trials that crashed."""
        return sum(t.cost_s for t in self.trials if isinstance(t.outcome, Crashed))

    @property
    def avoided(self) -> int:
        """Configs that the guard kept from crashing an engine."""
        return sum(len(t.avoided) + isinstance(t.outcome, Refused) for t in self.trials)

    def ran_instead(self, name: str) -> tuple[Value, Value] | None:
        """What was asked of a knob of `not_applied`, and what ran, the first time."""
        return next(((asked, ran) for knob, asked, ran in self._overridden() if knob == name), None)

    @property
    def not_applied(self) -> dict[str, int]:
        """Knobs that the engine overrode, with the number of trials: what was asked for is not what ran."""
        return dict(Counter(name for name, _, _ in self._overridden()))

    def _overridden(self) -> Iterator[tuple[str, Value, Value]]:
        """Knob, value asked and value that ran, trial by trial."""
        for trial in self.trials:
            ran = trial.outcome.effective if isinstance(trial.outcome, Measured) else Config()
            for name, asked in trial.config.items():
                if name in ran and not _same(name, asked, ran[name]):
                    yield name, asked, ran[name]

    @property
    def notes(self) -> dict[str, int]:
        """What a reader of the figures must know, with the number of trials it holds for."""
        measured = (t.outcome for t in self.trials if isinstance(t.outcome, Measured))
        return dict(Counter(note for outcome in measured for note in outcome.notes))

    @property
    def client_limited(self) -> int:
        """Trials whose figures say as much about the load client as about the engine."""
        return sum(isinstance(t.outcome, Measured) and t.outcome.summary.client_limited for t in self.trials)

    @property
    def gain(self) -> float | None:
        """Best over default as a ratio minus 1 (rate or goodput gained, or latency saved); None without a feasible
        default.
        """
        return self.gain_of(self.best)

    def gain_of(self, trial: Trial | None) -> float | None:
        """As `gain`, of another than the best."""
        if trial is None or self.default is None or not self.default.feasible:
            return None
        mine, theirs = self.score(trial), self.score(self.default)
        if mine is None or not theirs:
            return None
        return (mine - theirs) / abs(theirs)

    def to_json(self, wall_s: float) -> dict[str, Any]:
        return {
            "best": self._brief(self.best),
            "default": self._brief(self.default),
            "closest": None if self.best else self._brief(self.closest),
            "binding": None if self.best else _binding(self.closest),
            "objective": self.goal.objective,
            "gain_over_default": self.gain,
            "gain_interval": self.gain_interval,
            "confirmed": [
                {"number": one.trial.number, "scores": one.scores, "mean": one.mean, "worst": one.worst}
                for one in self.confirmed
            ],
            "trials": len(self.explored),
            "rechecks": len(self.trials) - len(self.explored),
            "dropped": self.dropped,
            "crashes": sum(self.crashes.values()),
            "crashes_by_cause": self.crashes,
            "crashes_avoided": self.avoided,
            "feasible": self.feasible,
            "cost_s": sum(t.cost_s for t in self.trials),
            "wasted_s": self.wasted_s,
            "not_applied": self.not_applied,
            "notes": self.notes,
            "client_limited": self.client_limited,
            "wall_s": wall_s,
        }

    def _brief(self, trial: Trial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        record = trial.to_json()
        return {
            "number": trial.number,
            "config": record["config"],
            "feasible": trial.feasible,
            "score": self.score(trial),
            "capacity": trial.capacity.to_json() if trial.capacity else None,
            "summary": record["outcome"].get("summary"),
            "outcome": record["outcome"]["kind"],
        }


def _same(name: str, asked: Value, ran: Value) -> bool:
    if isinstance(asked, float) and isinstance(ran, int | float):
        return abs(asked - ran) < 1e-6
    return asked == ran or (name, asked, ran) in EQUAL


def _distance(trial: Trial) -> tuple[int, float]:
    """How far from feasible: promises that lost requests broke altogether, then how far the others are missed."""
    checks = trial.outcome.verdict.checks if isinstance(trial.outcome, Measured) else ()
    missed = [check.excess for check in checks if check.excess > 0]
    return missed.count(float("inf")), sum(excess for excess in missed if excess < float("inf"))


def binding_check(trial: Trial | None) -> Check | None:
    """The promise that a measured trial is furthest from keeping."""
    return trial.outcome.verdict.binding if trial and isinstance(trial.outcome, Measured) else None


def _binding(trial: Trial | None) -> dict[str, Any] | None:
    check = binding_check(trial)
    if check is None:
        return None
    lost = check.measured_s == float("inf")
    return {
        "slo": str(check.limit),
        "measured_ms": None if lost or check.measured_s is None else check.measured_s * 1000,
    }
