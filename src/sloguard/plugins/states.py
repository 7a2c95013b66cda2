"""A scheduler's state for a router of many replicas: written at its steps, read by the door of the same server.

The file holds a number that is odd while somebody writes, when the state was taken, its length, a checksum, and JSON.
A reader who finds a number that is odd or has changed looks again.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sloguard.perf.batch_time import BatchTime, StepTime
from sloguard.perf.online import OnlineTime
from sloguard.plugins.options import StepTimes
from sloguard.route.base import ReplicaState
from sloguard.route.state import from_wire, to_wire

FILE = "replica.state"
HEAD = struct.Struct("@qdqq")
SIZE = 64 << 10  # the longest state has 512 pairs of numbers and some tickets
LOOKS = 100


def told(state: ReplicaState, tickets: Iterable[str] = ()) -> bytes:
    """As JSON, without `taken_s`. `tickets` are those of the requests that came last."""
    time = StepTimes.of(_flat(state.time)).model_dump(exclude_defaults=True)
    return json.dumps({**to_wire(state), "time": time, "tickets": [*tickets]}, separators=(",", ":")).encode()


def read(told: dict[str, Any], taken_s: float) -> ReplicaState:
    """Raises KeyError, TypeError or ValueError for what no replica tells."""
    return from_wire(told, taken_s, StepTimes.read(told["time"]).batch_time())


class StateBoard:
    """The writing side. Raises OSError where the file can't be made."""

    def __init__(self, directory: Path) -> None:
        with (directory / FILE).open("w+b") as file:
            file.truncate(SIZE)
            self._map = mmap.mmap(file.fileno(), SIZE)
        self._turn = 0

    def put(self, state: ReplicaState, at_s: float, tickets: Iterable[str] = ()) -> None:
        """`at_s` is when it was taken, by the monotonic clock of this machine."""
        text = told(state, tickets)
        if HEAD.size + len(text) > SIZE:
            raise ValueError(f"a state of {len(text)} bytes is longer than {SIZE}")
        HEAD.pack_into(self._map, 0, self._turn + 1, 0.0, 0, 0)
        self._map[HEAD.size : HEAD.size + len(text)] = text
        self._turn += 2
        HEAD.pack_into(self._map, 0, self._turn, at_s, len(text), zlib.crc32(text))


class States:
    """The reading side."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._map: mmap.mmap | None = None

    def read(self) -> tuple[int, float, bytes] | None:
        """The newest state: its number, when it was taken by the monotonic clock of this machine, and its JSON. None
        before the first. A later one has a higher number.
        """
        if self._map is None:
            if not (self._path.exists() and self._path.stat().st_size == SIZE):
                return None
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
        for _ in range(LOOKS):
            head = HEAD.unpack_from(self._map, 0)
            turn, taken_s, length, checksum = head
            text = self._map[HEAD.size : HEAD.size + length]
            if turn and turn % 2 == 0 and HEAD.unpack_from(self._map, 0) == head and zlib.crc32(text) == checksum:
                return turn, taken_s, text
        return None


def _flat(time: StepTime) -> BatchTime:
    """As it is now, without what it will learn."""
    if isinstance(time, OnlineTime):
        return _flat(time.prior).scaled(time.bias)
    assert isinstance(time, BatchTime)
    return time
