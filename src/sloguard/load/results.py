"""Reads the result files of load tests, whichever tool made them, into figures that can stand side by side.

The format is told by a file's content, compression by its first bytes. What is read of each, and how its definitions
differ from ours: docs/interop.md.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloguard.errors import SpecError
from sloguard.load.aiperf_results import read_aiperf, read_aiperf_records
from sloguard.load.guidellm_results import read_guidellm
from sloguard.load.own_results import read_own
from sloguard.load.result_parts import unreadable
from sloguard.load.run_figures import RunFigures
from sloguard.load.vllm_results import read_vllm

AIPERF_SUMMARY, AIPERF_RECORDS = "_aiperf.json", ".jsonl"  # the ends of names that AIPerf gives one run's files


def read_results(path: Path, field: str = "result file") -> list[RunFigures]:
    """The runs of a file, at least one.

    Raises SpecError, one line that names the file and what is missing in it; `field` is the flag that named the file.
    """
    try:
        documents = _documents(path)
        known = _format(documents)
        if known is None:
            names = "; ".join(f"{f.name}: {', '.join(sorted(f.fields))}" for f in FORMATS)
            raise unreadable(str(path), f"is of no known tool. Its fields are not those of any ({names})")
        return known.read(path, documents)
    except SpecError as error:
        raise SpecError(field, error.value, error.problem, error.fix) from error


def is_result(path: Path) -> bool:
    """Whether a file is of a tool that is known here."""
    try:
        return path.is_file() and _format(_documents(path)) is not None
    except SpecError:
        return False


@dataclass(frozen=True, slots=True)
class Format:
    """`fields` are in every file of the format, and tell it from the others."""

    name: str
    fields: frozenset[str]
    read: Callable[[Path, Sequence[Any]], list[RunFigures]]


def _aiperf(path: Path, documents: Sequence[Any]) -> list[RunFigures]:
    """With the records beside it, where they are."""
    stem = path.name.removesuffix(".gz").removesuffix(AIPERF_SUMMARY)
    beside = [path.with_name(f"{stem}{AIPERF_RECORDS}{packed}") for packed in ("", ".gz")]
    records = next((file for file in beside if file != path and file.is_file()), None)
    return read_aiperf(str(path), documents, None if records is None else _documents(records))


FORMATS = (
    Format("sloguard bench", frozenset({"settings", "summary", "requests"}), lambda p, d: read_own(str(p), d)),
    Format("guidellm", frozenset({"metadata", "benchmarks"}), lambda p, d: read_guidellm(str(p), d)),
    Format("aiperf", frozenset({"schema_version", "input_config"}), _aiperf),
    Format("aiperf records", frozenset({"metadata", "metrics"}), lambda p, d: read_aiperf_records(str(p), d)),
    Format("vllm bench serve", frozenset({"model_id", "completed"}), lambda p, d: read_vllm(str(p), d)),
)


def _format(documents: Sequence[dict[str, Any]]) -> Format | None:
    return next((f for f in FORMATS if f.fields <= documents[0].keys()), None)


def _documents(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, gzipped or not: one in all, or one a line."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise unreadable(str(path), f"can't be read: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        return [_object(path, text)]
    except SpecError:
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):
            raise
    return [_object(path, line, f", line {number}") for number, line in lines]


def _object(path: Path, text: str, where: str = "") -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise unreadable(str(path), f"is no JSON{where}: {reason}") from error
    if not isinstance(found, dict):
        raise unreadable(str(path), f"holds no JSON object{where}")
    return found
