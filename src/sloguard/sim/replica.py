"""One replica in virtual time: a queue, a policy, KV memory and a batch time.

    submit -> waiting -> [plan -> step of T(batch) seconds -> tokens] -> done, until nothing runs or waits

Requests that arrive during a step are seen by the plan after it. All tokens of a step appear when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat

from sloguard.perf.batch_time import Batch, BatchTime
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Lengths, Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sim.kernel import Kernel

OnTokens = Callable[[list[Job]], None]


class Replica:
    """Calls `on_tokens(jobs)` when a step gave these jobs an output token, which is at `kernel.now_s`.

    `step_scale` multiplies the seconds of successive steps (measurement noise); it must not end.
    Raises ValueError where the KV cache can't hold one sequence of `limits.max_model_len`.
    """

    def __init__(
        self,
        kernel: Kernel,
        policy: Policy,
        limits: Limits,
        kv: KvCache,
        batch_time: BatchTime,
        on_tokens: OnTokens,
        step_scale: Iterator[float] | None = None,
    ) -> None:
        if kv.capacity_tokens < limits.max_model_len:
            raise ValueError(f"{kv.capacity_tokens} KV tokens can't hold one sequence of {limits.max_model_len}")
        self.kernel, self.policy, self.limits, self.kv = kernel, policy, limits, kv
        self.batch_time = batch_time
        self.lengths: Lengths = Oracle()
        self.waiting: deque[Job] = deque()
        self.running: dict[str, Job] = {}
        self.steps = 0
        self.evictions = 0
        self._on_tokens = on_tokens
        self._step_scale = step_scale or repeat(1.0)
        self._busy = False
        self._aborted: set[str] = set()

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that is longer than `max_model_len`: the door refuses those."""
        if job.prompt_tokens + job.output_tokens > self.limits.max_model_len:
            raise ValueError(f"{job.id} is longer than {self.limits.max_model_len} tokens")
        self.waiting.append(job)
        self._wake()

    def abort(self, job: Job) -> None:
        """The client hung up: the job leaves the queue at once, or the batch when the step that runs it ends."""
        if job.id in self.running:
            self._aborted.add(job.id)
        else:
            self.waiting.remove(job)

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self.kernel.after(0.0, self._step)  # after everything else that happens at this instant

    def _step(self) -> None:
        for job_id in self._aborted & self.running.keys():
            self.kv.release(self.running.pop(job_id))
        self._aborted.clear()
        view = View(list(self.running.values()), self.waiting, self.kv, self.limits, self.batch_time, self.lengths)
        plan = self.policy.plan(self.kernel.now_s, view)
        self._apply(plan)
        if not plan.tokens:
            self._busy = False
            if self.running or self.waiting:
                raise AssertionError(f"{type(self.policy).__name__} left work undone although an empty step fits it")
            return
        self.steps += 1
        seconds = self.batch_time.seconds(self._batch(plan)) * next(self._step_scale)
        self.kernel.after(seconds, lambda: self._finish(plan))

    def _apply(self, plan: Plan) -> None:
        for job_id in plan.evict:
            job = self.running.pop(job_id)
            job.computed_tokens = 0
            job.evictions += 1
            self.evictions += 1
            self.waiting.appendleft(job)
        leaving = plan.admit.keys() | set(plan.decline)
        if leaving:
            queue = {job.id: job for job in self.waiting if job.id in leaving}
            self.waiting = deque(job for job in self.waiting if job.id not in leaving)
            for job_id, cached_tokens in plan.admit.items():
                job = queue[job_id]
                job.computed_tokens = cached_tokens
                self.running[job_id] = job

    def _batch(self, plan: Plan) -> Batch:
        chunks: list[tuple[int, int]] = []
        decodes = kv_tokens = 0
        for job_id, tokens in plan.tokens.items():
            job = self.running[job_id]
            computed = job.computed_tokens
            if tokens == 1 and job.generated_tokens and computed + 1 == job.prompt_tokens + job.generated_tokens:
                decodes += 1
                kv_tokens += computed + 1
            else:
                chunks.append((tokens, computed))
        return Batch(tuple(chunks), decodes, kv_tokens)

    def _finish(self, plan: Plan) -> None:
        served: list[Job] = []
        for job_id, tokens in plan.tokens.items():
            job = self.running[job_id]
            job.computed_tokens += tokens
            if job.computed_tokens < job.prompt_tokens + job.generated_tokens or job_id in self._aborted:
                continue
            job.generated_tokens += 1
            if job.first_token_s is None:
                job.first_token_s = self.kernel.now_s
            if job.generated_tokens >= job.output_tokens:
                self.kv.release(job)
                del self.running[job_id]
            served.append(job)
        self._on_tokens(served)
        self._step()
