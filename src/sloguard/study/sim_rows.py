"""The rows that `simulate --json` and `capacity --json` saved, read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sloguard.errors import SpecError

NEEDED = ("scenario", "policy", "router", "model", "gpu", "seeds")
OF_CAPACITY = ("capacity_per_gpu", "bracket", "attainment", "probes", "target")
OF_LOAD = ("attainment", "attainment_by_seed", "classes", "stages", "rate_offered")


def simulated_rows(path: Path) -> list[Mapping[str, Any]] | None:
    """The rows of a file, at least one; None where it is no file of a simulation.

    Raises SpecError where it is one, and lacks something.
    """
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("simulated") is not True:
        return None
    rows = told.get("rows")
    fix = "Save it again: --json of sloguard simulate or capacity."
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise SpecError("PATH", str(path), "is of a simulation and has no rows", fix)
    needed = (*NEEDED, *(OF_CAPACITY if "capacity_per_gpu" in rows[0] else OF_LOAD))
    if missing := next((name for row in rows for name in needed if name not in row), None):
        raise SpecError("PATH", str(path), f"is of a simulation and has a row without {missing!r}", fix)
    return rows
