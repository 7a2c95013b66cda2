"""vLLM before chunked prefill (its v0 scheduler; the "vLLM" of SLOs-Serve and Sarathi-Serve): prompts stop decodes.

prompts   while one waits and fits, a batch is prompts only, whole and first come, first served: one a batch as
          SLOs-Serve models it, or as many as max_num_batched_tokens holds, as vLLM's own default did
decodes   otherwise every running job decodes; out of memory, the last admitted is evicted and computes again

A prompt longer than max_num_batched_tokens, which vLLM v0 refused to be configured for, takes several batches.
"""

from __future__ import annotations

from sloguard.errors import SpecError
from sloguard.sched.placing import Placing
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View


class VllmV0:
    """`prompts_per_batch` None is as many as fit."""

    def __init__(self, prompts_per_batch: int | None = 1) -> None:
        if prompts_per_batch is not None and prompts_per_batch < 1:
            raise SpecError("prompts_per_batch", prompts_per_batch, "not a number of prompts", "Give 1 or more")
        self.prompts_per_batch = prompts_per_batch

    def plan(self, now_s: float, view: View) -> Plan:
        placing = Placing(view)
        placing.fill(placing.prompts)
        if not placing.prompts:
            for job in view.waiting:
                if len(placing.admitted) == self.prompts_per_batch or not placing.admit(job, cut=not placing.admitted):
                    break
        if not placing.tokens:
            placing.decode(placing.decodes)
        return placing.plan()
