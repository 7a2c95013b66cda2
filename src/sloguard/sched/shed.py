"""Which waiting prompts to set aside so that most of the others keep their deadlines.

    d_j        when prompt j is due from now; w_j the seconds its tokens take in a batch beside others
    room(d)    seconds for prompts until d, which the decodes due until then leave

All of a set S can be kept if for each j of S, in order of deadline, the sum of w up to j is at most room(d_j). Where a
prompt breaks this, the costliest free one up to it leaves: the rule of Moore and Hodgson (Moore 1968), which keeps the
most jobs of equal value on one machine. Here room can shrink from one deadline to the next, by the decodes between
them; what is kept then still fits, but may not be the most. Prompts that are promised already never leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Prompt:
    """`room_s` is room(due). Sequences of them are in order of deadline."""

    work_s: float
    room_s: float
    value: float = 1.0
    promised: bool = False


def set_aside(prompts: Sequence[Prompt]) -> set[int]:
    """Indices of those that must leave. The prompts are in order of deadline."""
    free: list[tuple[float, int]] = []  # costliest per value first
    gone: set[int] = set()
    total_s = 0.0
    for i, prompt in enumerate(prompts):
        total_s += prompt.work_s
        if not prompt.promised:
            heappush(free, (-prompt.work_s / prompt.value, i))
        while total_s > prompt.room_s and free:
            _, costliest = heappop(free)
            gone.add(costliest)
            total_s -= prompts[costliest].work_s
    return gone
