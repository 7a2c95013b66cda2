"""Reads recorded workloads. The format is told by the file's first line, compression by its first bytes.

| format | first line | times |
|---|---|---|
| ours (CSV) | `arrival_s,input_tokens,output_tokens` | seconds from the start of the run |
| lengths (CSV) | `input_tokens,output_tokens` | none: lengths to draw from |
| Azure LLM inference traces (CSV) | `TIMESTAMP,ContextTokens,GeneratedTokens` | clock time; counted from the first |
| Mooncake (JSONL) | `{"timestamp": ..., "input_length": ..., "output_length": ..., "hash_ids": [...]}` | ms |

Ours may also have `slo_class`, `slo_ttft_s`, `slo_tpot_s` and `slo_e2el_s`; an empty cell is no limit. Other columns
are left alone, unless they begin with `slo`: a misspelt promise must not vanish.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sloguard.errors import SpecError
from sloguard.request import Prefix
from sloguard.slo import NO_SLO, StageSLO

MOONCAKE_BLOCK_TOKENS = 512  # tokens that one of Mooncake's `hash_ids` stands for (README of its FAST'25 traces)
MAX_TOKENS = 100_000_000  # beyond any context window: a larger count is a mistake
SLO_LIMITS = {"slo_ttft_s": "ttft_s", "slo_tpot_s": "tpot_s", "slo_e2el_s": "e2el_s"}
DEFAULT_CLASS = "default"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """One recorded request. `arrival_s` is None in a file of lengths alone."""

    arrival_s: float | None
    input_tokens: int
    output_tokens: int
    prefix: Prefix | None = None
    slo_class: str = DEFAULT_CLASS
    slo: StageSLO = NO_SLO


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """At least one recorded request; their arrivals, where there are any, are sorted."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def timed(self) -> bool:
        return self.rows[0].arrival_s is not None

    @property
    def has_slos(self) -> bool:
        return any(row.slo != NO_SLO or row.slo_class != DEFAULT_CLASS for row in self.rows)

    def begun_at(self, share: float) -> Trace:
        """The recording played in a loop, from where `share` (0 to 1) of its requests are over; only of a timed trace.

        The gap before the request that is now first is kept, and that from the start of the run to the first recorded.
        """
        at = int(share * len(self.rows))
        if at == 0:
            return self
        recorded_s: list[float] = self.arrival_s().tolist()
        looped_s = [*recorded_s[at:], *(at_s + recorded_s[-1] for at_s in recorded_s[:at])]
        rows = zip((*self.rows[at:], *self.rows[:at]), looped_s, strict=True)
        return Trace(self.path, tuple(row._replace(arrival_s=at_s - recorded_s[at - 1]) for row, at_s in rows))

    def arrival_s(self) -> NDArray[np.float64]:
        """[n] seconds; only of a timed trace."""
        return np.array([row.arrival_s for row in self.rows], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file by field name, and the way to say what is wrong with it."""

    path: Path
    line: int
    values: Mapping[str, Any]

    def error(self, field: str, problem: str, fix: str) -> SpecError:
        return SpecError(f"{self.path}:{self.line} {field}", self.values.get(field), problem, fix)

    def seconds(self, field: str) -> float:
        """A finite number, of text or JSON."""
        value = self.values[field]
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(field, "not a finite number", "Correct or remove the line.")
        return number

    def tokens(self, field: str) -> int:
        """A whole number >= 1, of text or JSON."""
        value = self.values[field]
        try:
            count = int(value) if isinstance(value, str) or type(value) is int else 0
        except ValueError:
            count = 0
        if not 1 <= count <= MAX_TOKENS:
            fix = "A request has at least 1 token each way: remove the line, or correct it."
            raise self.error(field, "not a whole number of at least 1 token", fix)
        return count

    def instant_s(self, field: str) -> float:
        """Seconds since 1970 of an ISO 8601 timestamp, UTC where it names no zone."""
        try:
            moment = datetime.fromisoformat(self.values[field])
        except (TypeError, ValueError):
            raise self.error(
                field, "not a timestamp like 2023-11-16 18:17:03.97", "Correct or remove the line."
            ) from None
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH).total_seconds()


def _our_row(record: Record) -> Row:
    slo_class = (record.values.get("slo_class") or "").strip() or DEFAULT_CLASS
    limits: dict[str, float] = {}
    for column, limit in SLO_LIMITS.items():
        if (record.values.get(column) or "").strip():
            limits[limit] = record.seconds(column)
            if limits[limit] <= 0:
                raise record.error(column, "not a positive number of seconds", "Leave it empty for no limit.")
    arrival_s = record.seconds("arrival_s") if "arrival_s" in record.values else None
    lengths = record.tokens("input_tokens"), record.tokens("output_tokens")
    return Row(arrival_s, *lengths, None, slo_class, StageSLO(**limits))


def _azure_row(record: Record) -> Row:
    return Row(record.instant_s("TIMESTAMP"), record.tokens("ContextTokens"), record.tokens("GeneratedTokens"))


def _mooncake_row(record: Record) -> Row:
    prompt_tokens = record.tokens("input_length")
    ids = record.values.get("hash_ids", [])
    if not isinstance(ids, list) or not all(type(i) is int for i in cast(list[object], ids)):
        raise record.error("hash_ids", "not a list of whole numbers", "Correct or remove the line.")
    blocks = tuple(cast(list[int], ids))
    if len(blocks) > math.ceil(prompt_tokens / MOONCAKE_BLOCK_TOKENS):
        problem = f"more blocks of {MOONCAKE_BLOCK_TOKENS} tokens than a prompt of {prompt_tokens} has"
        raise record.error("hash_ids", problem, "Correct or remove the line.")
    prefix = Prefix(blocks, MOONCAKE_BLOCK_TOKENS) if blocks else None
    return Row(record.seconds("timestamp") / 1000, prompt_tokens, record.tokens("output_length"), prefix)


@dataclass(frozen=True, slots=True)
class Format:
    """`fields` tell the format; `time` is the one that holds the arrival, counted from the first row if `relative`."""

    fields: tuple[str, ...]
    parse: Callable[[Record], Row]
    time: str | None = None
    relative: bool = False


FORMATS = (
    Format(("arrival_s", "input_tokens", "output_tokens"), _our_row, "arrival_s"),
    Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure_row, "TIMESTAMP", relative=True),
    Format(("timestamp", "input_length", "output_length"), _mooncake_row, "timestamp"),
    Format(("input_tokens", "output_tokens"), _our_row),
)
EXPECTED = "Its first line must have the fields " + ", or ".join(",".join(f.fields) for f in FORMATS) + "."


def read_trace(path: Path, limit: int | None = None, flag: str = "--workload") -> Trace:
    """All requests of a file, or the first `limit` where they are timed: a week's trace need not be read for a minute.

    Raises FileNotFoundError where there is no such file, else SpecError naming file, line and field, or the flag.
    """
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            binary: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if gzipped else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                rows = tuple(_rows(path, text, limit))
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError(flag, str(path), f"can't be read: {problem}", "Name a readable file.") from error
    except UnicodeDecodeError as error:
        raise SpecError(flag, str(path), "is no text file", EXPECTED) from error
    if not rows:
        raise SpecError(flag, str(path), "has no requests", "Add one line for each. " + EXPECTED)
    return Trace(path, rows)


def _rows(path: Path, text: Iterable[str], limit: int | None) -> Iterator[Row]:
    """Rows in order, each checked; times not negative and never earlier than the row before."""
    records = _records(path, text)
    first = next(records, None)
    if first is None:
        return
    known = next((f for f in FORMATS if set(f.fields) <= first.values.keys()), None)
    if known is None:
        raise SpecError(f"{path}:1", ",".join(first.values), "no workload format has these fields", EXPECTED)
    start_s = known.parse(first).arrival_s if known.relative else 0.0
    last_s = 0.0
    timed_limit = limit if known.time else None
    for record in itertools.islice(itertools.chain([first], records), timed_limit):
        missing = [field for field in known.fields if field not in record.values]
        if missing:
            raise record.error(missing[0], "missing", "Correct or remove the line.")
        row = known.parse(record)
        if known.time is not None and row.arrival_s is not None and start_s is not None:
            at_s = round(row.arrival_s - start_s, 6) if known.relative else row.arrival_s
            if at_s < last_s:
                before = f"is before the row above ({last_s:g} s)" if last_s else "is negative"
                raise record.error(
                    known.time, before, "Arrivals must start at 0 or later and rise: sort the file by time."
                )
            last_s = at_s
            row = row._replace(arrival_s=at_s)
        yield row


def _records(path: Path, text: Iterable[str]) -> Iterator[Record]:
    lines = iter(text)
    first = next(lines, "")
    whole = itertools.chain([first], lines)
    return _json_records(path, whole) if first.lstrip().startswith("{") else _csv_records(path, whole)


def _json_records(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise SpecError(f"{path}:{number}", line.strip()[:80], "not a JSON object", "Correct or remove the line.")
        yield Record(path, number, cast(dict[str, Any], values))


def _csv_records(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    reader = csv.reader(lines)
    try:
        header = [name.strip() for name in next(reader, cast(list[str], []))]
        if unknown := [n for n in header if n.startswith("slo") and n not in SLO_LIMITS and n != "slo_class"]:
            raise SpecError(f"{path}:1", unknown[0], "no such SLO column", f"Use slo_class, {', '.join(SLO_LIMITS)}.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells under {len(header)} columns"
                raise SpecError(
                    f"{path}:{reader.line_num}", ",".join(cells)[:80], problem, "Correct or remove the line."
                )
            yield Record(path, reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise SpecError(f"{path}:{reader.line_num}", "", f"not CSV ({error})", "Correct or remove the line.") from error
