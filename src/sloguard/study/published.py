"""The trials that SLO-Guard's authors published (github.com/Chrislysen/SLO-Guard, results/), as studies to compare."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sloguard.errors import SpecError
from sloguard.study.runs import StudyRun, TrialRun
from sloguard.trial import Config

FIELD = "FILE"
STATUSES = ("feasible", "infeasible", "crash")
WHOLE = 0.05  # how near to a whole number a quotient of measured figures has to come
Row = dict[str, Any]


def read_published(path: Path) -> tuple[list[StudyRun], list[str]]:
    """The studies in a file (format: read_runs.py), and what a reader must know of how they were told apart.

    Raises SpecError naming the first line that is wrong.
    """
    groups: dict[tuple[str, int | None], list[Row]] = {}
    nameless: set[str] = set()
    for number, row in _rows(path):
        if row.get("optimizer") is None:  # then a seed, where there is one, is of a trial: the study's is not known
            label, seed = str(row.get("_source_file", path.name)), None
            nameless.add(label)
        else:
            label, seed = str(row["optimizer"]), row.get("seed")
        rows = groups.setdefault((label, seed), [])
        if any(row["trial"] == other["trial"] for other in rows):
            raise _wrong(path, number, f"trial {row['trial']} of {label}, seed {seed}, comes twice", "Remove one.")
        rows.append(row)
    runs = [_run(label, seed, rows) for (label, seed), rows in groups.items()]
    if not nameless:
        return runs, []
    files = ", ".join(sorted(nameless))
    return runs, [
        f"{path.name} names no optimizer: all trials of {files} are taken for one study each, of unknown seed"
    ]


def _run(label: str, seed: int | None, rows: Sequence[Row]) -> StudyRun:
    ordered = sorted(rows, key=lambda row: row["trial"])
    counts = [_requests(row) for row in ordered]
    known = [count for count in counts if count is not None]
    # Requests that overlap make a quotient of no meaning, and one that is whole in every trial would be a wonder.
    one_at_a_time = bool(known) and all(abs(count - round(count)) <= WHOLE for count in known)
    trials = tuple(
        _trial(row, round(count) if count and one_at_a_time else None)
        for row, count in zip(ordered, counts, strict=True)
    )
    return StudyRun(label, seed, trials, "latency", label, one_at_a_time=one_at_a_time)


def _requests(row: Row) -> float | None:
    """Tokens / (tokens/s * mean latency): the requests of a load whose requests came one after another."""
    tokens, rate, latency_ms = (row.get(name) for name in ("total_tokens", "goodput_tps", "avg_latency_ms"))
    return tokens / (rate * latency_ms / 1000) if tokens and rate and latency_ms else None


def _trial(row: Row, requests: int | None) -> TrialRun:
    latency_ms = row.get("avg_latency_ms")
    return TrialRun(
        feasible=row["status"] == "feasible",
        score=None if latency_ms is None else -latency_ms / 1000,
        crashed=row["status"] == "crash",
        cost_s=row.get("eval_time_s"),
        config=Config(row["config"]) if "config" in row else None,
        requests=requests,
    )


def _rows(path: Path) -> list[tuple[int, Row]]:
    """Line numbers and objects. Raises SpecError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(FIELD, str(path), "can't be read as text", "Give trials as JSON, one a line.") from error
    return [(number, _row(path, number, line)) for number, line in enumerate(lines, start=1) if line.strip()]


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _wrong(path, number, "is not JSON", "Give trials as JSON, one a line.") from error
    if not isinstance(row, dict) or not _is_count(row.get("trial")):
        raise _wrong(path, number, "is no trial with a number", 'Write {"trial": 1, ...}.')
    if row.get("status") not in STATUSES:
        raise _wrong(path, number, f"status is {row.get('status')!r}", f"Use one of {', '.join(STATUSES)}.")
    if row.get("seed") is not None and not _is_count(row["seed"]):
        raise _wrong(path, number, f"seed is {row['seed']!r}", "Give a whole number.")
    config = row.get("config", {})
    if not isinstance(config, dict) or any(isinstance(value, dict | list) for value in config.values()):
        raise _wrong(path, number, "config is no object of plain values", 'Write {"max_num_seqs": 8, ...}.')
    for name in ("avg_latency_ms", "goodput_tps", "total_tokens", "eval_time_s"):
        value = row.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise _wrong(path, number, f"{name} is {value!r}", "Give a number, 0 or more.")
    return row


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong(path: Path, number: int, problem: str, fix: str) -> SpecError:
    return SpecError(FIELD, f"{path.name}, line {number}", problem, fix)
