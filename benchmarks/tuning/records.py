"""What is on record of the studies: incumbents by trial and by the clock, and what they are truly worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from loop import BUDGET, on_record
from numpy.typing import NDArray
from optimum import seek_optimum
from tasks import TASKS
from truth import Worlds, fingerprint, key_of

from sloguard.report.files import write_text_atomic
from sloguard.trial import Config

TOP = 3  # incumbents that the search for the optimum begins with
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One study. `trials` are the lines of its record, less those that measured again; `deployed` is the trial that the
    study ended with, once the best had been measured again.
    """

    task: str
    way: str
    seed: int
    trials: Sequence[dict[str, Any]]

    @property
    def deployed(self) -> dict[str, Any] | None:
        return next((trial for trial in self.trials if trial["deployed"]), None)

    @cached_property
    def incumbents(self) -> list[dict[str, Any] | None]:
        """[BUDGET] the best after each trial; a study that ended early keeps its last."""
        by_number = {trial["number"]: trial for trial in self.trials}
        found = [by_number.get(trial["leader"]) for trial in self.trials]
        return [*found, *found[-1:] * (BUDGET - len(found))][:BUDGET]

    @cached_property
    def ends_s(self) -> Array:
        """[BUDGET] the clock when each trial had ended."""
        costs = [trial["cost_s"] for trial in self.trials][:BUDGET]
        return np.cumsum([*costs, *[0.0] * (BUDGET - len(costs))])

    @property
    def crashes(self) -> int:
        return sum(trial["kind"] == "crashed" for trial in self.trials)

    @property
    def wasted(self) -> float:
        """Share of the clock that went into trials that crashed."""
        wasted_s = sum(trial["cost_s"] for trial in self.trials if trial["kind"] == "crashed")
        return wasted_s / max(float(self.ends_s[-1]), 1e-9)


def read_runs(out: Path) -> list[Run]:
    found: list[Run] = []
    for path in sorted((out / "runs").glob("*.jsonl")):
        task, way, seed = path.stem.split(".")
        if task not in TASKS or on_record(path, fingerprint(TASKS[task])):
            lines = path.read_text(encoding="utf-8").splitlines()
            found.append(Run(task, way, int(seed), [t for t in map(json.loads, lines) if t["recheck"] is None]))
    return sorted(found, key=lambda run: (run.task, run.way, run.seed))


@dataclass(frozen=True)
class Worth:
    """What incumbents are truly worth: `rates` and `starts` by (task, overrides), `optima` by task."""

    rates: dict[tuple[str, str], float]
    starts: dict[tuple[str, str], float]
    optima: dict[str, float]

    def share(self, run: Run, trial: dict[str, Any] | None) -> float:
        """Of the optimum, from 0 to 1; 0 while there is no incumbent."""
        if trial is None:
            return 0.0
        rate = trial["truth"] if "truth" in trial else self.rates[run.task, _key(trial)]
        return rate / self.optima[run.task] if self.optima[run.task] else 0.0

    def shares(self, run: Run) -> Array:
        """[BUDGET] after each trial."""
        return np.array([self.share(run, trial) for trial in run.incumbents])

    def starting(self, run: Run) -> float:
        """How often the winner starts."""
        last = run.incumbents[-1]
        return 0.0 if last is None else self.starts.get((run.task, _key(last)), 1.0)


def _key(trial: dict[str, Any]) -> str:
    return key_of(Config(trial["overrides"]))


def worth(out: Path, runs: Sequence[Run], jobs: int) -> Worth:
    """Finds what is not known yet, in `jobs` processes."""
    simulated = [run for run in runs if run.task in TASKS]
    asked = {(r.task, _key(t)): t["overrides"] for r in simulated for t in (*r.incumbents, r.deployed) if t is not None}
    known = _known(out, {run.task for run in simulated})
    missing = [(task, overrides) for (task, key), overrides in asked.items() if (task, key) not in known]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        list(executor.map(_find, *zip(*((out, *pair) for pair in missing), strict=True)) if missing else ())
        known = _known(out, {run.task for run in simulated})
        tops = [(out, task, _top(task, asked, known)) for task in sorted({task for task, _ in asked})]
        optima = dict(executor.map(_optimum, *zip(*tops, strict=True))) if tops else {}
    known = _known(out, {run.task for run in simulated})
    for (task, _), (rate, _) in known.items():  # an earlier search, or the survey, may have found better
        optima[task] = max(optima[task], rate)
    optima |= {run.task: max(trial["optimum"] for trial in run.trials) for run in runs if run.task not in TASKS}
    rates = {at: truth[0] for at, truth in known.items()}
    return Worth(rates, {at: truth[1] for at, truth in known.items()}, dict.fromkeys(TASKS, 0.0) | optima)


def _known(out: Path, tasks: Iterable[str]) -> dict[tuple[str, str], tuple[float, float]]:
    worlds = Worlds(out / "worlds")
    return {(t, key): (truth.rate, truth.starts) for t in tasks for key, truth in worlds.known(TASKS[t]).items()}


def _find(out: Path, task: str, overrides: dict[str, Any]) -> None:
    Worlds(out / "worlds").truth(TASKS[task], Config(overrides))


def _top(
    task: str, asked: dict[tuple[str, str], dict[str, Any]], known: dict[tuple[str, str], tuple[float, float]]
) -> list[dict[str, Any]]:
    mine = sorted(at for at in asked if at[0] == task)
    return [asked[at] for at in sorted(mine, key=lambda at: known[at][0], reverse=True)[:TOP]]


def _optimum(out: Path, task: str, around: list[dict[str, Any]]) -> tuple[str, float]:
    """The largest true rate of the task's incumbents, and of a search around them, made anew when they change."""
    path = out / "optima" / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = {"world": fingerprint(TASKS[task]), "around": around}
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if record.get("asked") != asked:
        best, truth = seek_optimum(TASKS[task], Worlds(out / "worlds"), [Config(overrides) for overrides in around])
        record = {"asked": asked, "rate": truth.rate, "config": dict(best)}
        write_text_atomic(path, json.dumps(record, indent=1) + "\n")
    return task, record["rate"]
