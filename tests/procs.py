"""Which processes of a run are alive: an oracle of its own that reads /proc, not psutil."""

from __future__ import annotations

from pathlib import Path

from sloguard.engine.processes import RUN_ID


def alive_with(run_id: object) -> list[int]:
    """Ids of the processes whose environment carries the run id. A zombie has no environment left."""
    marker = f"{RUN_ID}={run_id}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
