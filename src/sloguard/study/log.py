"""The study log: JSON lines (`study.jsonl`), a header and then a line a trial, on disk before the next trial starts.

line 1      {"kind": "header", "schema": 1, "spec": {...}, "spec_digest": ..., "sloguard": ..., "model": ...,
             "engine": {...}}
line 2...   {"kind": "trial", "number": 1, "proposed": {...}, "config": {...}, "outcome": {...}, "cost_s": ...}

Where several trials run at a time, a line with its proposal comes before each starts, and trials come as they end:

            {"kind": "proposal", "number": 2, "lane": 1, "proposed": {...}, "config": {...}, ...}
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloguard.errors import LogError
from sloguard.study.jsonl import JsonLog
from sloguard.trial import Proposal, Trial

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
        """All complete trials as they ended: 1, 2, ... where one ran at a time. Raises LogError naming the first line
        that is wrong.
        """
        self.header()
        proposed: set[int] = set()
        found: dict[int, Trial] = {}
        for line, record in enumerate(self._log.records(), start=2):
            if record.get("kind") == "proposal":
                proposed.add(self._proposal(line, record)[0])
                continue
            trial = self._trial(line, record)
            known = trial.number in proposed if proposed else trial.number == len(found) + 1
            if not known or trial.number in found:
                expected = "one that was proposed and has not ended" if proposed else len(found) + 1
                problem = f"holds trial {trial.number}, expected {expected}. A line is missing or doubled."
                raise LogError(f"{self.path}, line {line}: {problem}")
            found[trial.number] = trial
        return list(found.values())

    def proposals(self) -> dict[int, tuple[int, Proposal]]:
        """Lane and proposal by the trial's number, of those that are written down before they run."""
        records = enumerate(self._log.records(), start=2)
        found = (self._proposal(line, record) for line, record in records if record.get("kind") == "proposal")
        return {number: (lane, proposal) for number, lane, proposal in found}

    def _trial(self, line: int, record: dict[str, Any]) -> Trial:
        try:
            return Trial.from_json(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._no_record("trial", line, error) from error

    def _proposal(self, line: int, record: dict[str, Any]) -> tuple[int, int, Proposal]:
        try:
            return int(record["number"]), int(record["lane"]), Proposal.from_json(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._no_record("proposal", line, error) from error

    def _no_record(self, kind: str, line: int, error: Exception) -> LogError:
        return LogError(f"{self.path}, line {line}: is not a {kind} record ({error!r}). Restore the file from a copy.")

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

    def append_proposal(self, number: int, lane: int, proposal: Proposal) -> None:
        """Before the trial starts, where it is not the only one."""
        self._log.append("proposal", {"number": number, "lane": lane, **proposal.to_json()})
