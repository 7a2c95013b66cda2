"""One request inside an engine: what is left to compute, and nothing about clocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Job:
    """Life: waiting -> running -> (evicted -> waiting -> running)* -> finished.

    `computed_tokens` have their KV in memory; `known_tokens` exist (prompt and what was generated). A step computes
    some of the difference; when none is left, the step yields the next output token. So a decode is a job with one
    token remaining, and an evicted job computes its prompt and its output again, as in vLLM v1.

    `stream` names the text (the stages of one request continue one text), `prefix_keys` the full KV blocks at its
    start that other texts share: equal keys are equal blocks after equal blocks.
    """

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    stream: str = ""
    prefix_keys: tuple[int, ...] = ()
    computed_tokens: int = 0
    generated_tokens: int = 0
    evictions: int = 0

    def __post_init__(self) -> None:
        self.stream = self.stream or self.id

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def remaining_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens
