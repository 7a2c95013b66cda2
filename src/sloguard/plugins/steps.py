"""The steps of an engine from when they are handed out to when their tokens arrive: how long each took, what is learnt
from that, and a log of it where one is asked for.

A step's time begins when it is asked for, or, where the engine goes on from the step before, when that one ended: what
lies between two steps (planning, passing tokens on, taking requests in) makes tokens late as well. With asynchronous
scheduling a step is handed out while the one before it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sloguard.perf.batch_time import Batch
from sloguard.perf.online import OnlineTime

ACCEPTANCE_WEIGHT = 0.02  # of one draft token
FIRST_ACCEPTANCE = 0.6
FADING = 0.005  # a step


@dataclass(slots=True)
class Counts:
    """Of steps, and why those that went without a plan did; of what else could not be done."""

    planned: int = 0
    faults: int = 0
    overruns: int = 0
    rested: int = 0  # steps without a plan after the planner took too long
    evicted: int = 0


class Acceptance:
    """The probability that a draft token is accepted if all before it were, as learnt: each that was tried counts,
    those accepted and the first that was not. It fades while none is tried, so that drafts get another chance: text
    that could not be guessed may since have become easy.
    """

    def __init__(self) -> None:
        self.rate = FIRST_ACCEPTANCE

    def tried(self, drafted: int, accepted: int) -> None:
        for won in [1.0] * accepted + [0.0] * (accepted < drafted):
            self.rate += ACCEPTANCE_WEIGHT * (won - self.rate)

    def untried(self) -> None:
        """A step without drafts."""
        self.rate += FADING * (FIRST_ACCEPTANCE - self.rate)


def batch_of(rows: Iterable[tuple[int, int, int]]) -> Batch:
    """Of each request in a step: its tokens in it, those computed before, and those of its prompt."""
    chunks: list[tuple[int, int]] = []
    decodes = kv_tokens = drafted = longest = 0
    for tokens, computed, prompt_tokens in rows:
        if computed < prompt_tokens:
            chunks.append((tokens, computed))
            continue
        decodes += 1
        kv_tokens += computed + 1
        drafted += tokens - 1
        longest = max(longest, tokens - 1)
    return Batch(tuple(chunks), decodes, kv_tokens, drafted, longest)


class Steps:
    """`log` gets a JSON line a step: the batch's fields as in perf/batch_time.py, and its seconds.

    Raises OSError where `log` can't be written.
    """

    def __init__(self, time: OnlineTime, log: Path | None = None) -> None:
        self.time = time
        self._begun: dict[int, tuple[float, Batch]] = {}  # by the engine's own mark of a step
        self._ended_s = 0.0
        self._log: TextIO | None = log.open("a", buffering=1, encoding="utf-8") if log else None

    def begin(self, mark: int, now_s: float, batch: Batch, goes_on: bool = False) -> None:
        self._begun[mark] = (self._ended_s or now_s) if goes_on else now_s, batch

    def end(self, mark: int, now_s: float) -> tuple[float, float] | None:
        """(measured, predicted) seconds of the step, which has been learnt from; None of one that never began."""
        begun = self._begun.pop(mark, None)
        if begun is None:
            return None
        at_s, batch = begun
        seconds = now_s - max(at_s, self._ended_s)
        self._ended_s = now_s
        predicted_s = self.time.seconds(batch)
        self.time.observe(batch, seconds)
        if self._log:
            self._log.write(_line(batch, seconds))
        return seconds, predicted_s


def _line(batch: Batch, seconds: float) -> str:
    fields = {
        "chunks": batch.chunks,
        "decodes": batch.decodes,
        "kv_tokens": batch.kv_tokens,
        "draft_tokens": batch.draft_tokens,
        "draft_steps": batch.draft_steps,
        "seconds": seconds,
    }
    return json.dumps(fields) + "\n"
