"""What a scheduler tells of its engine as it goes: to Prometheus, to the door of its server, and to a router of many
replicas. Knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sloguard.perf.batch_time import StepTime
from sloguard.plugins.board import Board, notice_of
from sloguard.plugins.ledger import Ledger
from sloguard.plugins.meters import GAUGES_EVERY_STEPS, Meters
from sloguard.plugins.options import Options
from sloguard.plugins.states import StateBoard
from sloguard.route.state import state_from
from sloguard.sched.job import Job
from sloguard.sched.policy import Limits

STATE_S = 0.01  # between two states: routers look less often


@dataclass(frozen=True, slots=True)
class EngineMemory:
    blocks: int
    block_tokens: int
    free_blocks: int
    prefix_caching: bool


class Teller:
    """Raises OSError where the directory of boards can't be written."""

    def __init__(self, options: Options, ledger: Ledger, meters: Meters) -> None:
        self._ledger, self._meters = ledger, meters
        self._board = Board(Path(options.boards)) if options.boards else None
        self._states = StateBoard(Path(options.boards)) if options.boards and options.routed else None
        self._told_s = 0.0
        self._steps = 0

    def step(
        self,
        now_s: float,
        running: Sequence[Job],
        waiting: Sequence[Job],
        acceptance: float | None,
        at_once: bool = False,
    ) -> None:
        """At each step, before it is given out, and when there is nothing more to do. Gauges are set now and then."""
        if at_once or self._steps % GAUGES_EVERY_STEPS == 0:
            self._meters.holds(now_s, running, waiting, acceptance)
            self._meters.tracks(len(self._ledger.jobs))
        self._steps += 1
        if self._board is not None:
            self._board.put(notice_of(now_s, len(running), waiting, self._ledger.started))

    def state(
        self,
        now_s: float,
        ends_s: float,
        running: Sequence[Job],
        waiting: Sequence[Job],
        memory: EngineMemory,
        limits: Limits,
        time: StepTime,
        at_once: bool = False,
    ) -> None:
        """For a router; `ends_s` is when the step in progress will end. Not every step needs telling."""
        if self._states is None or (now_s - self._told_s < STATE_S and not at_once):
            return
        self._told_s = now_s
        state = state_from(now_s, ends_s, running, waiting, memory, memory.prefix_caching, limits, time)
        self._states.put(state, now_s, self._ledger.tickets)
