"""What a scheduler says to the door of its server: 48 bytes that one process writes at every step and another reads.

A metrics scrape would say the same, but takes milliseconds. Each scheduler (there may be several, for data parallelism)
has a file of its own in a directory that both know. Times are `time.monotonic()`, which on Linux is one clock for all
processes. A reader may see some numbers a step newer than others.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from sloguard.sched.job import Job, Tier

FORMAT = struct.Struct("@dqqqqd")  # native: each number is written at once, so that none is read half written


@dataclass(frozen=True, slots=True)
class Notice:
    """`step_s`: when a step was last begun. `started` counts the requests that have ever begun to be computed.
    `put_off_s`: when the last one came, of those waiting, that asked for a promise and got none.
    """

    step_s: float = 0.0
    running: int = 0
    waiting_slo: int = 0
    waiting_best_effort: int = 0
    started: int = 0
    put_off_s: float = 0.0


def notice_of(now_s: float, running: int, waiting: Sequence[Job], started: int, began_s: float = 0.0) -> Notice:
    """`began_s` is when the clock of the jobs was 0."""
    best_effort = [job for job in waiting if job.tier is Tier.BEST_EFFORT]
    put_off_s = max((job.arrival_s for job in best_effort if job.ttft_s or job.tpot_s), default=-inf)
    return Notice(now_s, running, len(waiting) - len(best_effort), len(best_effort), started, began_s + put_off_s)


class Board:
    """The writing side. Raises OSError where the file can't be made."""

    def __init__(self, directory: Path, name: str | None = None) -> None:
        path = directory / f"{name or os.getpid()}.board"
        with path.open("w+b") as file:
            file.truncate(FORMAT.size)
            self._map = mmap.mmap(file.fileno(), FORMAT.size)

    def put(self, notice: Notice) -> None:
        FORMAT.pack_into(
            self._map,
            0,
            notice.step_s,
            notice.running,
            notice.waiting_slo,
            notice.waiting_best_effort,
            notice.started,
            notice.put_off_s,
        )


class Boards:
    """The reading side: all schedulers of a server taken together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self) -> Notice | None:
        """None while no scheduler has begun."""
        for path in self._directory.glob("*.board"):
            if path not in self._maps and path.stat().st_size == FORMAT.size:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), FORMAT.size, access=mmap.ACCESS_READ)
        found = [Notice(*FORMAT.unpack_from(at, 0)) for at in self._maps.values()]
        return _together(found) if found else None


def _together(notices: list[Notice]) -> Notice:
    return Notice(
        max(notice.step_s for notice in notices),
        sum(notice.running for notice in notices),
        sum(notice.waiting_slo for notice in notices),
        sum(notice.waiting_best_effort for notice in notices),
        sum(notice.started for notice in notices),
        max(notice.put_off_s for notice in notices),
    )
