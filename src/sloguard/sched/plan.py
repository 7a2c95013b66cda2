"""What a policy decides for one step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Plan:
    """`tokens` by job id, in the order they were placed: what the next step computes. A decode with more than one
    token verifies a draft of the others.

    `admit` (id -> tokens found in the prefix cache) start running in that order, after what runs; `evict` stop, lose
    their KV and go back to the front of the queue, the last one named first; `decline` leave the queue for another
    replica (only jobs with `hops_left`).

    `holds_until_s`: up to this instant the policy would decide the same again as long as no job arrives or finishes
    and KV blocks last. It lets whoever asks run on without asking; only for plans that decode every running job,
    without drafts.
    """

    tokens: dict[str, int] = field(default_factory=dict[str, int])
    admit: dict[str, int] = field(default_factory=dict[str, int])
    evict: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
    holds_until_s: float = float("-inf")
