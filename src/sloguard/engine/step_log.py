"""Steps of a live engine, as sloguard's scheduler writes them: one JSON object a line.

    {"chunks": [[tokens, context], ...], "decodes": n, "kv_tokens": n, "draft_tokens": n, "draft_steps": n,
     "seconds": s}

are the fields of `Batch` and the step's seconds, CPU and GPU together. A line is complete when it ends in a newline:
an unfinished last one, which an engine that was killed leaves, is dropped. Anything else that is wrong is an error.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from sloguard.errors import LogError
from sloguard.perf.batch_time import Batch
from sloguard.perf.fit import Sample

COUNTS = ("decodes", "kv_tokens", "draft_tokens", "draft_steps")
FIELDS = {"chunks", *COUNTS, "seconds"}


def read_step_log(path: Path) -> list[Sample]:
    """All complete steps, in order. Raises LogError for a file that can't be read, and for a line that is no step."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise LogError(f"{path}: can't be read ({error.strerror or error}).") from error
    samples: list[Sample] = []
    for number, line in enumerate(lines, start=1):
        try:
            samples.append(_sample(json.loads(line)))
        except ValueError as error:
            raise LogError(f"{path}, line {number}: is no step of an engine ({error}).") from error
    return samples


def _sample(row: Any) -> Sample:
    """Raises ValueError saying what is wrong."""
    if not isinstance(row, dict) or row.keys() != FIELDS:
        raise ValueError(f"it needs the fields {', '.join(sorted(FIELDS))}")
    seconds = row["seconds"]
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds = {seconds!r}")
    counts = [_count(name, row[name]) for name in COUNTS]
    batch = Batch(_chunks(row["chunks"]), *counts)
    if not batch.chunks and not batch.decodes:
        raise ValueError("it has neither chunks nor decodes")
    return Sample(batch, float(seconds))


def _chunks(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or not all(isinstance(chunk, list) and len(chunk) == 2 for chunk in value):
        raise ValueError("chunks are pairs of tokens and context")
    return tuple((_count("tokens of a chunk", n, 1), _count("context of a chunk", c)) for n, c in value)


def _count(name: str, value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} = {value!r}")
    return value
