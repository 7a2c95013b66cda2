"""The study log: JSON lines (`study.jsonl`), a header and then a line a trial, on disk before the next trial starts.

line 1      {"kind": "header", "schema": 1, "spec": {...}, "spec_digest": ..., "sloguard": ..., "engine": {...}}
line 2...   {"kind": "trial", "number": 1, "proposed": {...}, "config": {...}, "outcome": {...}, "cost_s": ...}
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloguard.errors import LogError
from sloguard.study.jsonl import JsonLog
from sloguard.trial import Trial

SCHEMA = 1
LOG_NAME = "study.jsonl"


@dataclass(frozen=True, slots=True)
class StudyLog:
    """The log in `directory`. Reading needs no lock; writing happens inside `writer()`."""

    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / LOG_NAME

    @property
    def _log(self) -> JsonLog:
        return JsonLog(self.path, SCHEMA)

    def exists(self) -> bool:
        """Whether a header was ever written."""
        return self._log.exists()

    def header(self) -> dict[str, Any]:
        """The first line. Raises LogError where it isn't a header this version reads."""
        header = self._log.header()
        for name in ("spec", "engine"):
            if not isinstance(header.get(name), dict):
                raise LogError(f"{self.path}, line 1: has no {name!r}. Restore the file from a copy.")
        return header

    def trials(self) -> list[Trial]:
        """All complete trials, numbered 1, 2, ... Raises LogError naming the first line that is wrong."""
        self.header()
        return [self._trial(number, record) for number, record in enumerate(self._log.records(), start=1)]

    def _trial(self, number: int, record: dict[str, Any]) -> Trial:
        where = f"{self.path}, line {number + 1}"
        try:
            trial = Trial.from_json(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LogError(f"{where}: is not a trial record ({error!r}). Restore the file from a copy.") from error
        if trial.number != number:
            raise LogError(f"{where}: holds trial {trial.number}, expected {number}. A line is missing or doubled.")
        return trial

    def writer(self) -> AbstractContextManager[None]:
        """Holds the study's lock and drops an unfinished last line. Raises LogError if another process writes."""
        return self._log.writer()

    def clear(self) -> None:
        """Removes a log that holds no trial."""
        self._log.clear()

    def append_header(self, header: dict[str, Any]) -> None:
        self._log.append_header(header)

    def append(self, trial: Trial) -> None:
        self._log.append("trial", trial.to_json())
