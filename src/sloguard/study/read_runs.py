"""Reads what is to be compared: study directories, and trials in the JSONL that SLO-Guard's authors published.

    DIR with study.jsonl    that study (study/log.py)
    DIR of such             each study one level down
    FILE                    a JSON object a line: trial, seed, optimizer, config, status (feasible, infeasible, crash),
                            avg_latency_ms, goodput_tps, total_tokens, eval_time_s. Lines without an optimizer are taken
                            together by the file that they say they are from (`_source_file`), else by this one

A study is labelled by its optimizer, and by how else its search differed from that of the others. The same label and
seed from two places are told apart by where they lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sloguard.errors import SpecError
from sloguard.study.confirm import explored
from sloguard.study.header import read_header
from sloguard.study.log import LOG_NAME, StudyLog
from sloguard.study.prior import SIMULATION
from sloguard.study.published import read_published
from sloguard.study.results import Results
from sloguard.study.runs import StudyRun, TrialRun
from sloguard.study.spec import StudySpec
from sloguard.trial import Crashed, Measured, Trial

FIELD = "DIR"

# How a search differed, in words; "" is how it is by default.
METHOD: dict[str, Callable[[Any], str]] = {
    "priors": lambda names: f"prior {'+'.join(n if n == SIMULATION else 'study' for n in names)}" if names else "",
    "race": lambda on: "" if on else "no race",
    "try_default": lambda on: "" if on else "no default",
    "budget_s": lambda limit_s: "" if limit_s is None else f"{limit_s / 60:g} min",
    "lanes": lambda lanes: f"{lanes} at a time" if lanes else "",
}
# What may differ between studies of one task: who searched and how, how long, and where the files lay.
FREE = {*METHOD, "optimizer", "seed", "budget", "rechecks", "engine_python", "inputs"}
FREE_OF_ENGINE = {"python"}


@dataclass(frozen=True, slots=True)
class Found:
    """A study at `path`; `task` is what all that are compared have to agree on, `method` how it was searched, `version`
    the sloguard that made it.
    """

    path: Path
    run: StudyRun
    task: Mapping[str, object]
    method: Mapping[str, object]
    version: str | None = None


def read_runs(paths: Sequence[Path]) -> tuple[list[StudyRun], list[str]]:
    """The studies at `paths`, in order, and what a reader of the figures must know of how they were read.

    Raises SpecError where there is none, or where they are not of one task; LogError for a study that can't be read.
    """
    found: list[Found] = []
    notes: list[str] = []
    for path in dict.fromkeys(place for given in paths for place in _studies(given.resolve())):
        if path.is_file():
            runs, told = read_published(path)
            found += [Found(path, run, {"trials": "published"}, {}) for run in runs]
            notes += told
        else:
            found.append(_study(path))
    empty = [one for one in found if not one.run.trials]
    notes += [f"{one.run.name} holds no trial and is left out" for one in empty]
    found = [one for one in found if one.run.trials]
    if not found:
        raise SpecError(FIELD, " ".join(map(str, paths)), "holds no trial", "Name studies that have some.")
    _check_one_task(found)
    if len({one.path for one in found}) > 1 and "trials" in found[0].task:
        notes.append(
            "published trials don't say their model, GPU and limits: that they have them in common is taken on trust"
        )
    versions = sorted({one.version for one in found if one.version is not None})
    if len(versions) > 1:
        notes.append(f"made by different versions of sloguard: {', '.join(versions)}")
    return _told_apart(_by_method(found)), notes


def _studies(path: Path) -> list[Path]:
    """A file of trials, or each directory of a study."""
    if not path.exists():
        raise SpecError(FIELD, str(path), "is not there", "Name directories of studies, or files of published trials.")
    if path.is_file() or StudyLog(path).exists():
        return [path]
    inside = sorted(log.parent for log in path.glob(f"*/{LOG_NAME}") if StudyLog(log.parent).exists())
    if not inside:
        raise SpecError(FIELD, str(path), "holds no study", f"Name the --out of `sloguard tune` ({LOG_NAME} is in it).")
    return inside


def _study(directory: Path) -> Found:
    log = StudyLog(directory)
    header = read_header(log)
    spec = header.spec
    results = Results(log.trials(), spec.goal, spec.try_default)
    again = next((one for one in results.confirmed if one.trial is results.best), None)
    run = StudyRun(
        label=spec.optimizer,
        seed=spec.seed,
        trials=tuple(_trial(trial, spec) for trial in explored(results.trials)),
        objective=spec.objective,
        name=directory.name,
        held_out=None if again is None else again.mean,
        simulated=header.simulated,
        warned=header.warned,
    )
    written = {**spec.to_json(), "lanes": header.lanes}
    task = {name: value for name, value in written.items() if name not in FREE}
    for name in ("space", "workload"):  # a file is what it held, wherever it lay
        task[name] = spec.inputs.get(str(task[name]), task[name])
    task |= {f"engine {name}": value for name, value in header.engine.items() if name not in FREE_OF_ENGINE}
    return Found(directory, run, task, {name: written[name] for name in METHOD}, header.sloguard)


def _trial(trial: Trial, spec: StudySpec) -> TrialRun:
    summary = trial.outcome.summary if isinstance(trial.outcome, Measured) else None
    dropped = trial.capacity is not None and trial.capacity.dropped
    return TrialRun(
        feasible=trial.feasible and not dropped,
        score=None if dropped else spec.goal.score(trial),
        crashed=isinstance(trial.outcome, Crashed),
        dropped=dropped,
        cost_s=trial.cost_s,
        config=trial.config,
        requests=None if summary is None or dropped else summary.offered,
    )


def _check_one_task(found: Sequence[Found]) -> None:
    """Raises SpecError naming the first thing that two studies were asked or run on differently."""
    first = found[0]
    for other in found[1:]:
        for name in dict.fromkeys((*first.task, *other.task)):
            mine, theirs = (one.task.get(name) for one in (first, other))
            if mine != theirs:
                problem = (
                    f"{_place(other.path)} has that, {_place(first.path)} has {mine!r}: they are of different tasks"
                )
                raise SpecError(name, theirs, problem, "Compare studies of one task at a time.")


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _by_method(found: Sequence[Found]) -> list[Found]:
    """Labels that say what is not the same in all."""
    differ = [name for name in METHOD if len({repr(one.method.get(name)) for one in found}) > 1]
    named: list[Found] = []
    for one in found:
        words = [word for name in differ if (word := METHOD[name](one.method[name]))]
        named.append(replace(one, run=replace(one.run, label=", ".join([one.run.label, *words]))))
    return named


def _told_apart(found: Sequence[Found]) -> list[StudyRun]:
    """Labels that say where a study is from, where the same seed comes more than once. Raises SpecError where it comes
    more than once from the same place.
    """
    twice = _twice(found)
    if not twice:
        return [one.run for one in found]
    apart: list[Found] = []
    labels = {label for label, _ in twice}
    shared = _shared_parts([one.path for one in found if one.run.label in labels])
    for one in found:
        if one.run.label in labels and len(one.path.parts) > shared:
            one = replace(one, run=replace(one.run, label=f"{one.run.label} ({one.path.parts[shared]})"))
        apart.append(one)
    sizes = Counter(one.run.label for one in apart)
    alone = all(
        sizes[one.run.label] == 1 for one, before in zip(apart, found, strict=True) if before.run.label in labels
    )
    if alone or _twice(apart):
        label, seed = twice[0]
        where = " and ".join(_place(one.path) for one in found if (one.run.label, one.run.seed) == twice[0])
        fix = "Leave one of them out, or put repetitions into directories of their own."
        raise SpecError(FIELD, where, f"hold the same: {label} with seed {seed}", fix)
    return [one.run for one in apart]


def _twice(found: Sequence[Found]) -> list[tuple[str, int | None]]:
    """Labels and seeds that come more than once."""
    counts = Counter((one.run.label, one.run.seed) for one in found if one.run.seed is not None)
    return [key for key, count in counts.items() if count > 1]


def _shared_parts(paths: Sequence[Path]) -> int:
    """How many leading parts all have in common."""
    return next(
        (
            depth
            for depth, parts in enumerate(zip(*(path.parts for path in paths), strict=False))
            if len(set(parts)) > 1
        ),
        min(len(path.parts) for path in paths),
    )
