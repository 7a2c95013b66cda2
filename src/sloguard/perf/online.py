"""A batch time that learns from the steps it predicted."""

from __future__ import annotations

from sloguard.perf.batch_time import Batch, StepTime


class OnlineTime:
    def __init__(self, prior: StepTime) -> None:
        self.prior = prior

    def observe(self, batch: Batch, seconds: float) -> None: ...

    def seconds(self, batch: Batch) -> float:
        return self.prior.seconds(batch)

    def inverse(
        self,
        budget_s: float,
        *,
        decodes: int = 0,
        kv_tokens: int = 0,
        context_tokens: int = 0,
        draft_tokens: int = 0,
        draft_steps: int = 0,
    ) -> int:
        return self.prior.inverse(
            budget_s,
            decodes=decodes,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            draft_tokens=draft_tokens,
            draft_steps=draft_steps,
        )
