"""What was asked (`Request`) and what happened (`Timeline`). The simulator and the wire give the same `Timeline`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sloguard.slo import NO_SLO, StageSLO


@dataclass(frozen=True, slots=True)
class Stage:
    """One prefill and the decode after it: a chat's answer, a reasoner's thinking, one turn of a tool loop."""

    prompt_tokens: int
    output_tokens: int
    slo: StageSLO = NO_SLO
    kind: str = "answer"

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"a stage needs at least 1 prompt and 1 output token, not {self}")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a prompt that other requests share: ids of equal blocks are equal text (Mooncake's `hash_ids`)."""

    block_ids: tuple[int, ...]
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked. `arrival_s` counts from the start of the run; the id is unique within it."""

    id: str
    arrival_s: float
    stages: tuple[Stage, ...]
    slo_class: str = "default"
    prefix: Prefix | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def output_tokens(self) -> int:
        return sum(stage.output_tokens for stage in self.stages)


class End(StrEnum):
    """How a request ended. Only `COMPLETED` can meet an SLO."""

    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(frozen=True, eq=False)
class Timeline:
    """What happened to one request. All instants in seconds from the start of the run.

    `token_s` [tokens] holds the instant each output token arrived, in order; tokens that came in one chunk share an
    instant. Latency counts from `due_s`, when the request should have been sent, never from when a client's queue
    let it go (`sent_s`). `stage_due_s` [stages] is when each stage became due; the first is `due_s`.

    `ended_s` is when it was over, completed or not: a request that hung ended long after its last token. None where
    nobody noted it: then it ended with its last token, or, without any, when it was due.

    `chunk_tokens` [chunks] holds the tokens of each chunk that carried any, for several chunks may arrive at one
    instant. None: what shares an instant was one chunk. Raises ValueError where they don't sum to the tokens.
    """

    request: Request
    due_s: float
    sent_s: float | None
    token_s: NDArray[np.float64]
    end: End
    error: str = ""
    prompt_tokens: int | None = None  # as the server counted them, where it said so
    stage_due_s: tuple[float, ...] = ()
    ended_s: float | None = None
    chunk_tokens: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        if self.chunk_tokens is not None and int(self.chunk_tokens.sum()) != len(self.token_s):
            raise ValueError(f"chunks of {self.chunk_tokens.sum()} tokens in all, but {len(self.token_s)} tokens")

    @cached_property
    def output_tokens(self) -> int:
        return len(self.token_s)

    @cached_property
    def ttft_s(self) -> float | None:
        return float(self.token_s[0]) - self.due_s if len(self.token_s) else None

    @cached_property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None below 2 tokens."""
        return mean_tpot_s(self.token_s)

    @cached_property
    def e2el_s(self) -> float | None:
        return float(self.token_s[-1]) - self.due_s if len(self.token_s) else None

    @cached_property
    def itl_s(self) -> NDArray[np.float64]:
        """[chunks - 1] gaps between consecutive token-carrying chunks; 0 between chunks that came in one read."""
        if self.chunk_tokens is None:
            return np.diff(np.unique(self.token_s))
        return np.diff(self.token_s[np.cumsum(self.chunk_tokens) - self.chunk_tokens])

    @property
    def last_s(self) -> float:
        """When it was over, as far as anybody noted."""
        if self.ended_s is not None:
            return self.ended_s
        return float(self.token_s[-1]) if len(self.token_s) else self.due_s

    @property
    def queue_delay_s(self) -> float | None:
        """How late the client sent the request: the client's own lag, not the server's."""
        return None if self.sent_s is None else self.sent_s - self.due_s


def mean_tpot_s(token_s: NDArray[np.float64]) -> float | None:
    """(last - first) / (n - 1) over token instants [n]; None below 2 tokens."""
    return float(token_s[-1] - token_s[0]) / (len(token_s) - 1) if len(token_s) > 1 else None
