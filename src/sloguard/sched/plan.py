"""What a policy decides for one step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Plan:
    """`tokens` by job id, in the order they were placed: what the next step computes.

    `admit` (id -> tokens found in the prefix cache) start running in that order, after what runs; `evict` stop, lose
    their KV and go back to the front of the queue, the last one named first; `decline` leave the queue unserved.
    """

    tokens: dict[str, int] = field(default_factory=dict[str, int])
    admit: dict[str, int] = field(default_factory=dict[str, int])
    evict: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
