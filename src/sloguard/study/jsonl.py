"""A durable log: JSON lines, a header and then a line a record, each flushed and fsynced before work goes on.

A line is complete when it ends in a newline. Only an unfinished last line, which a killed writer leaves, is dropped;
anything else that doesn't parse is an error that names the line. A lock keeps a second writer out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sloguard.errors import LogError


@dataclass(frozen=True, slots=True)
class JsonLog:
    """The log at `path`, of version `schema`. Reading needs no lock; writing happens inside `writer()`."""

    path: Path
    schema: int = 1

    def exists(self) -> bool:
        """Whether a header was ever written."""
        return self.path.is_file() and bool(self._lines())

    def header(self) -> dict[str, Any]:
        """The first line. Raises LogError where it isn't a header this version reads."""
        lines = self._lines()
        if not lines:
            raise LogError(f"{self.path}: is empty, so there is nothing to go on with. Choose another directory.")
        header = self._parse(1, lines[0])
        if header.get("kind") != "header":
            raise LogError(f"{self.path}, line 1: is not a header. Was the file edited or truncated?")
        if header.get("schema") != self.schema:
            found = header.get("schema")
            raise LogError(f"{self.path}, line 1: schema {found!r}, but this sloguard reads schema {self.schema}.")
        return header

    def records(self) -> list[dict[str, Any]]:
        """All complete lines after the header. Raises LogError naming the first that is wrong."""
        self.header()
        return [self._parse(number, line) for number, line in enumerate(self._lines()[1:], start=2)]

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Holds the lock and drops an unfinished last line. Raises LogError if another process writes."""
        with ExitStack() as held:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.path.with_suffix(".lock")).acquire(timeout=0))
                if self.path.is_file():
                    self._drop_unfinished_line()
            yield

    def append_header(self, header: dict[str, Any]) -> None:
        self._append({"kind": "header", "schema": self.schema, **header})
        _fsync_directory(self.path.parent)

    def append(self, kind: str, record: dict[str, Any]) -> None:
        self._append({"kind": kind, **record})

    def clear(self) -> None:
        with self._writing():
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What fails here is the log's own disk, not whatever the caller does between two writes."""
        try:
            yield
        except Timeout as error:
            busy = "another sloguard is writing here. Wait for it or stop it."
            raise LogError(f"{self.path.parent}: {busy}") from error
        except OSError as error:
            problem = f"can't be written ({error.strerror or error}). Choose another --out, or make room."
            raise LogError(f"{self.path.parent}: {problem}") from error

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._writing(), self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[bytes]:
        return self._read().split(b"\n")[:-1]

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise LogError(f"{self.path}: can't be read ({error.strerror or error}).") from error

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            where = f"{self.path}, line {number}"
            raise LogError(f"{where}: is not JSON ({error}). Restore the file from a copy.") from error
        if not isinstance(record, dict):
            raise LogError(f"{self.path}, line {number}: is not a JSON object. Restore the file from a copy.")
        return record

    def _drop_unfinished_line(self) -> None:
        content = self._read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            with self.path.open("r+b") as file:
                file.truncate(complete)
                os.fsync(file.fileno())


def _fsync_directory(directory: Path) -> None:
    """Makes the new file's name durable, not only its content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
