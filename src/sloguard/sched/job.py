"""One request inside an engine: what is left to compute, what it was promised, and nothing about clocks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """What a policy has decided about a job. A promised job stays promised until it is finished."""

    NEW = "new"
    PROMISED = "promised"
    BEST_EFFORT = "best-effort"


@dataclass(slots=True, eq=False)
class Job:
    """Life: waiting -> running -> (evicted -> waiting -> running)* -> finished.

    `computed_tokens` have their KV in memory; `known_tokens` exist (prompt and what was generated). A step computes
    some of the difference; when none is left, the step yields the next output token. So a decode is a job with one
    token remaining, and an evicted job computes its prompt and its output again, as in vLLM v1.

    `stream` names the text (the stages of one request continue one text), `prefix_keys` the full KV blocks at its
    start that other texts share: equal keys are equal blocks after equal blocks.

    `output_tokens` is what the engine will find out: a policy asks `View.lengths` instead of reading it.
    """

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    stream: str = ""
    prefix_keys: tuple[int, ...] = ()
    ttft_s: float | None = None  # promised; None: no such promise
    tpot_s: float | None = None
    app: str = "default"  # the application: jobs of one are alike in length
    priority: int = 0  # smaller is served first (vLLM's convention); only priority policies look at it
    value: float = 1.0
    hops_left: int = 0  # how often it may still be sent on; a policy declines only where it may
    stages_left: int = 0  # stages of the same request after this one
    transferred_tokens: int = 0  # KV that another replica computed and sent along
    tier: Tier = Tier.NEW
    computed_tokens: int = 0
    generated_tokens: int = 0
    evictions: int = 0
    first_token_s: float | None = None
    conversation: str = ""  # the requests that follow each other in one share it; without it, those of one text
    paced_from: tuple[float, int] | None = None  # an instant, and the tokens there were: `tpot_s` counts from there on,
    # not from when the first token was due at the latest. So a mean TPOT is kept, as clients measure it

    def __post_init__(self) -> None:
        self.stream = self.stream or self.id
        self.conversation = self.conversation or self.stream

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def remaining_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens

    @property
    def decoding(self) -> bool:
        """Whether the next step of this job is a decode: one known token left, and it was generated."""
        return self.generated_tokens > 0 and self.computed_tokens + 1 == self.prompt_tokens + self.generated_tokens

    @property
    def ttft_due_s(self) -> float:
        """When the first token is due; infinite without a promise."""
        return float("inf") if self.ttft_s is None else self.arrival_s + self.ttft_s

    @property
    def token_due_s(self) -> float:
        """When the next token is due, by cumulative deadlines: the first at `ttft_due_s`, each one TPOT later.

        A late first token moves the deadlines of the others with it (docs/measuring.md). Infinite without a promise.
        """
        if self.first_token_s is None:
            return self.ttft_due_s
        if self.tpot_s is None:
            return float("inf")
        if self.paced_from is not None:
            from_s, tokens = self.paced_from
            return from_s + (self.generated_tokens - tokens + 1) * self.tpot_s
        start_s = self.first_token_s if self.ttft_s is None else max(self.arrival_s + self.ttft_s, self.first_token_s)
        return start_s + self.generated_tokens * self.tpot_s
