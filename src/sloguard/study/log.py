"""The study log: JSON lines, a header and then a line a trial, each flushed and fsynced before the next trial starts.

    line 1      {"kind": "header", "schema": 1, "spec": {...}, "spec_digest": ..., "sloguard": ..., "engine": {...}}
    line 2...   {"kind": "trial", "number": 1, "proposed": {...}, "config": {...}, "outcome": {...}, "cost_s": ...}

A line is complete when it ends in a newline. Only an unfinished last line, which a killed writer leaves, is dropped;
anything else that doesn't parse is an error that names the line. A lock keeps a second writer out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sloguard.errors import LogError
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

    def exists(self) -> bool:
        """Whether a header was ever written."""
        return self.path.is_file() and bool(_complete_lines(_read(self.path)))

    def header(self) -> dict[str, Any]:
        """The first line. Raises LogError where it isn't a header this version reads."""
        lines = _complete_lines(_read(self.path))
        if not lines:
            raise LogError(f"{self.path}: is empty. It is no study; choose another directory.")
        header = _parse(self.path, 1, lines[0])
        if header.get("kind") != "header":
            raise LogError(f"{self.path}, line 1: is not a study header. Was the file edited or truncated?")
        if header.get("schema") != SCHEMA:
            found = header.get("schema")
            raise LogError(f"{self.path}, line 1: schema {found!r}, but this sloguard reads schema {SCHEMA}.")
        for name in ("spec", "engine"):
            if not isinstance(header.get(name), dict):
                raise LogError(f"{self.path}, line 1: has no {name!r}. Restore the file from a copy.")
        return header

    def trials(self) -> list[Trial]:
        """All complete trials, numbered 1, 2, ... Raises LogError naming the first line that is wrong."""
        self.header()
        return [self._trial(number, line) for number, line in enumerate(_complete_lines(_read(self.path))[1:], start=1)]

    def _trial(self, number: int, line: bytes) -> Trial:
        where = f"{self.path}, line {number + 1}"
        data = _parse(self.path, number + 1, line)
        try:
            trial = Trial.from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LogError(f"{where}: is not a trial record ({error!r}). Restore the file from a copy.") from error
        if trial.number != number:
            raise LogError(f"{where}: holds trial {trial.number}, expected {number}. A line is missing or doubled.")
        return trial

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Holds the study's lock and drops an unfinished last line. Raises LogError if another process writes."""
        with ExitStack() as held:
            with self._writing():
                self.directory.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.directory / "study.lock").acquire(timeout=0))
                if self.path.is_file():
                    _drop_unfinished_line(self.path)
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What fails here is the study's own disk, not whatever the caller does between two writes."""
        try:
            yield
        except Timeout as error:
            busy = "another sloguard is writing this study. Wait for it or stop it."
            raise LogError(f"{self.directory}: {busy}") from error
        except OSError as error:
            problem = f"can't be written ({error.strerror or error}). Choose another --out, or make room."
            raise LogError(f"{self.directory}: {problem}") from error

    def clear(self) -> None:
        """Removes a log that holds no trial."""
        with self._writing():
            self.path.unlink(missing_ok=True)

    def append_header(self, header: dict[str, Any]) -> None:
        self._append({"kind": "header", "schema": SCHEMA, **header})
        _fsync_directory(self.directory)

    def append(self, trial: Trial) -> None:
        self._append({"kind": "trial", **trial.to_json()})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._writing(), self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: can't be read ({error.strerror or error}).") from error


def _complete_lines(content: bytes) -> Sequence[bytes]:
    return content.split(b"\n")[:-1]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LogError(f"{path}, line {number}: is not JSON ({error}). Restore the file from a copy.") from error
    if not isinstance(record, dict):
        raise LogError(f"{path}, line {number}: is not a JSON object. Restore the file from a copy.")
    return record


def _drop_unfinished_line(path: Path) -> None:
    content = _read(path)
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
            os.fsync(file.fileno())


def _fsync_directory(directory: Path) -> None:
    """Makes the new file's name durable, not only its content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
