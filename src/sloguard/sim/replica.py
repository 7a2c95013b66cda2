"""One replica in virtual time: a queue, a policy, KV memory and a batch time.

    submit -> waiting -> [plan -> step of T(batch) seconds -> tokens] -> done, until nothing runs or waits

Requests that arrive during a step are seen by the plan after it, or with `async_lag` by the one after that, as vLLM's
async scheduling plans a step while the one before it runs; an idle engine waits for nobody. All tokens of a step appear
when it ends.

A plan that holds (`Plan.holds_until_s`) is run for many steps at once: their instants are computed together, and
whatever happens in between (an arrival, an abort, a router's look) first brings the replica up to that instant. The
outcome is the one of asking at each step; only where two replicas act at the very same instant, their order may differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice, repeat
from math import log

import numpy as np

from sloguard.perf.batch_time import Batch, BatchTime
from sloguard.perf.online import OnlineTime
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Lengths, Oracle
from sloguard.sched.plan import Plan
from sloguard.sched.plan_check import Checked
from sloguard.sched.policy import Limits, Policy, Speculation, View
from sloguard.sim.kernel import Kernel

OnTokens = Callable[[list[Job], list[float]], None]
OnDecline = Callable[[Job], None]

MAX_RUN_STEPS = 128  # computed at once; an arrival usually ends a run long before


@dataclass(slots=True)
class ReplicaStats:
    """What a replica did, in sums."""

    steps: int = 0
    step_tokens: int = 0
    evictions: int = 0
    declined: int = 0
    finished: Counter[Tier] = field(default_factory=Counter[Tier])
    plan_s: list[float] = field(default_factory=list[float])  # of each decision, where a stopwatch was given


@dataclass(frozen=True, slots=True)
class Planner:
    """How deciding is timed. `stopwatch` reads seconds from anywhere; `charged` adds each decision to its step."""

    stopwatch: Callable[[], float] | None = None
    charged: bool = False
    async_lag: bool = False


@dataclass(slots=True)
class _Drafts:
    """A drafting model: what it offers, and what of it was accepted so far."""

    offered: Speculation
    rng: np.random.Generator
    tried: float = 20.0  # the offered rate weighs as this many tries until there are measured ones
    accepted: float = 0.0

    def __post_init__(self) -> None:
        self.accepted = self.tried * self.offered.acceptance

    def view(self) -> Speculation:
        return Speculation(self.offered.max_draft_tokens, self.accepted / self.tried)

    def verify(self, drafted: int) -> int:
        """How many of the drafted tokens are accepted: each with the offered rate if all before it were."""
        rate = self.offered.acceptance
        accepted = drafted if rate >= 1 else min(drafted, int(log(1 - self.rng.random()) / log(rate))) if rate else 0
        self.tried += min(accepted + 1, drafted)
        self.accepted += accepted
        return accepted


class _Run:
    """Steps of one holding plan: `ends_s` of each, of which `settled` have been accounted for.

    `later_s` is how long each after the first takes, of which `learnt` have been observed; the first reads `kv_tokens`.
    """

    __slots__ = ("ends_s", "jobs", "kv_tokens", "later_s", "learnt", "settled")

    def __init__(self, jobs: list[Job], ends_s: list[float], later_s: list[float], kv_tokens: int) -> None:
        self.jobs, self.ends_s, self.later_s, self.kv_tokens = jobs, ends_s, later_s, kv_tokens
        self.settled = self.learnt = 0


class Replica:
    """Calls `on_tokens(jobs, times_s)` when each of these jobs got one output token at each of these instants, none
    later than `kernel.now_s`, and `on_decline(job)` when the policy sent a job away.

    `batch_time` is the truth; policies are told `predicted`, which learns from every step, or the truth where it is
    None. `step_scale` multiplies the seconds of successive steps (measurement noise); it must not end. `drafts_rng`
    draws which drafts are accepted where `speculation` offers any. With `pace_from_first` policies are held to a pace
    from the first token on (a mean TPOT), else from when that was due at the latest (`TpotRule.DEADLINE`).
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
        on_decline: OnDecline | None = None,
        *,
        predicted: OnlineTime | None = None,
        lengths: Lengths | None = None,
        step_scale: Iterator[float] | None = None,
        speculation: Speculation | None = None,
        drafts_rng: np.random.Generator | None = None,
        planner: Planner = Planner(),
        pace_from_first: bool = False,
    ) -> None:
        if kv.capacity_tokens < limits.max_model_len:
            raise ValueError(f"{kv.capacity_tokens} KV tokens can't hold one sequence of {limits.max_model_len}")
        self.kernel, self.policy, self.limits, self.kv = kernel, policy, limits, kv
        self._check = policy.check if isinstance(policy, Checked) else None
        self.batch_time = batch_time
        self.predicted = predicted
        self.lengths: Lengths = lengths or Oracle()
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, Job] = {}
        self.stats = ReplicaStats()
        self._on_tokens, self._on_decline = on_tokens, on_decline
        self._step_scale = step_scale or repeat(1.0)
        self._scales: deque[float] = deque()  # drawn and not yet used: a run cut short leaves some for the next
        self._drafts = _Drafts(speculation, drafts_rng or np.random.default_rng(0)) if speculation else None
        self._planner = planner
        self._pace_from_first = pace_from_first
        self._busy = False
        self._late: dict[str, Job] = {}  # with async lag: what came after the coming step was decided
        self._aborted: set[str] = set()
        self._run: _Run | None = None
        self._step_ends_s = 0.0
        self._stepping = False  # `_busy` begins before, at the same instant

    @property
    def step_ends_s(self) -> float:
        """When the step in progress ends, or the last one ended."""
        if run := self._run:
            return run.ends_s[bisect_left(run.ends_s, self.kernel.now_s)]
        return self._step_ends_s

    @property
    def queued(self) -> list[Job]:
        """What waits, whether the coming step was decided with it or not."""
        return [*self.waiting.values(), *self._late.values()]

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ValueError for one that is longer than `max_model_len`: the door refuses those."""
        if job.prompt_tokens + job.output_tokens > self.limits.max_model_len:
            raise ValueError(f"{job.id} is longer than {self.limits.max_model_len} tokens")
        self._cut_run()
        if self._stepping and self._planner.async_lag:
            self._late[job.id] = job
        else:
            self.waiting[job.id] = job
        self._wake()

    def abort(self, job: Job) -> None:
        """The client hung up: the job leaves the queue at once, or the batch when the step that runs it ends."""
        self._cut_run()
        if job.id in self.running:
            self._aborted.add(job.id)
        elif self.waiting.pop(job.id, None) is None:
            del self._late[job.id]

    def sync(self) -> None:
        """Accounts for the steps that have ended by now, so that jobs and KV can be read."""
        if self._run:
            self._settle(self._run, bisect_left(self._run.ends_s, self.kernel.now_s))

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self.kernel.after(0.0, self._step)  # after everything else that happens at this instant

    def _step(self) -> None:
        for job_id in [name for name in self.running if name in self._aborted]:  # a set has no order of its own
            self.kv.release(self.running.pop(job_id))
        self._aborted.clear()
        plan, planned_s = self._plan()
        self._apply(plan)
        alone = not self._late
        self.waiting.update(self._late)
        self._late.clear()
        self._stepping = bool(plan.tokens)
        if not plan.tokens:
            self._busy = False
            if not alone:
                self._wake()
            elif self.running or self.waiting:
                raise AssertionError(f"{type(self.policy).__name__} left work undone although an empty step fits it")
            return
        batch = self._batch(plan)
        seconds = self.batch_time.seconds(batch) * self._next_scales(1)[0]
        if self.predicted:
            self.predicted.observe(batch, seconds)
        end_s = self.kernel.now_s + seconds + planned_s
        self._step_ends_s = end_s
        self.stats.step_tokens += sum(plan.tokens.values())
        if alone and plan.holds_until_s > end_s and (run := self._long_run(plan, batch, end_s)):
            self._run = run
            self.kernel.at(run.ends_s[-1], lambda: self._finish_run(run, plan))
        else:
            self.kernel.at(end_s, lambda: self._finish(plan))

    def _plan(self) -> tuple[Plan, float]:
        """The policy's decision and the seconds it is charged for."""
        view = View(
            list(self.running.values()),
            self.waiting.values(),
            self.kv,
            self.limits,
            self.predicted or self.batch_time,
            self.lengths,
            self._drafts.view() if self._drafts else None,
        )
        stopwatch, taken_s = self._planner.stopwatch, 0.0
        if stopwatch is None:
            plan = self.policy.plan(self.kernel.now_s, view)
        else:
            begun_s = stopwatch()
            plan = self.policy.plan(self.kernel.now_s, view)
            taken_s = stopwatch() - begun_s
            self.stats.plan_s.append(taken_s)
        if self._check:
            self._check(self.kernel.now_s, plan, view, self.running, self.waiting)
        return plan, taken_s if self._planner.charged else 0.0

    def _apply(self, plan: Plan) -> None:
        if plan.evict:
            back: dict[str, Job] = {}
            for job_id in plan.evict:
                job = self.running.pop(job_id)
                job.computed_tokens = job.transferred_tokens = 0
                job.evictions += 1
                back[job_id] = job
            self.stats.evictions += len(back)
            self.waiting = dict(reversed(back.items())) | self.waiting
        for job_id, cached_tokens in plan.admit.items():
            job = self.waiting.pop(job_id)
            job.computed_tokens = cached_tokens
            self.running[job_id] = job
        for job_id in plan.decline:
            job = self.waiting.pop(job_id)
            self.stats.declined += 1
            assert self._on_decline, f"{job_id} was declined, but nobody else can serve it"
            self._on_decline(job)

    def _batch(self, plan: Plan) -> Batch:
        chunks: list[tuple[int, int]] = []
        decodes = kv_tokens = drafted = longest = 0
        for job_id, tokens in plan.tokens.items():
            job = self.running[job_id]
            computed = job.computed_tokens
            if job.generated_tokens and computed + 1 == job.prompt_tokens + job.generated_tokens:
                decodes += 1
                kv_tokens += computed + 1
                if tokens > 1:
                    drafted += tokens - 1
                    longest = max(longest, tokens - 1)
            else:
                chunks.append((tokens, computed))
        return Batch(tuple(chunks), decodes, kv_tokens, drafted, longest)

    def _finish(self, plan: Plan) -> None:
        now_s = self.kernel.now_s
        self._account(1)
        served: dict[int, list[Job]] = {}
        for job_id, tokens in plan.tokens.items():
            job = self.running[job_id]
            given = 1
            if tokens > 1 and self._drafts and job.decoding:
                tokens = given = 1 + self._drafts.verify(tokens - 1)
            job.computed_tokens += tokens
            if job.computed_tokens < job.prompt_tokens + job.generated_tokens or job_id in self._aborted:
                continue
            given = min(given, job.output_tokens - job.generated_tokens)
            job.generated_tokens += given
            if job.first_token_s is None:
                job.first_token_s = now_s
                if self._pace_from_first:
                    job.paced_from = now_s, 1
            if job.generated_tokens >= job.output_tokens:
                self._leave(job)
            served.setdefault(given, []).append(job)
        for given, jobs in served.items():
            self._on_tokens(jobs, [now_s] * given)
        self._step()

    def _leave(self, job: Job) -> None:
        self.kv.release(job)
        del self.running[job.id]
        self.stats.finished[job.tier] += 1
        self.lengths.finished(job)

    def _long_run(self, plan: Plan, batch: Batch, first_end_s: float) -> _Run | None:
        """As many steps of this plan as nothing within the replica ends; None where that is one."""
        jobs = list(self.running.values())
        assert batch.decodes == len(jobs) == len(plan.tokens), "a plan holds only where it decodes all that runs"
        rounds = self.kv.free_blocks // len(jobs)  # each job needs at most one block in a block's worth of steps
        steps = min(MAX_RUN_STEPS, rounds * self.kv.block_tokens + 1)
        steps = min(steps, min(job.output_tokens - job.generated_tokens for job in jobs))
        if steps < 2:
            return None
        times_s = self.batch_time.decode_run_s(batch.decodes, batch.kv_tokens + batch.decodes, steps - 1).tolist()
        scales = self._next_scales(steps)[1:]
        later_s = [t * s for t, s in zip(times_s, scales, strict=True)]
        ends_s = list(accumulate(later_s, initial=first_end_s))
        del ends_s[bisect_left(ends_s, plan.holds_until_s) + 1 :]  # the step that begins before the instant still runs
        return _Run(jobs, ends_s, later_s, batch.kv_tokens)

    def _cut_run(self) -> None:
        """Something happens now: the run ends with the step in progress."""
        self.sync()
        if (run := self._run) and run.ends_s[-1] > self.kernel.now_s:
            del run.ends_s[bisect_left(run.ends_s, self.kernel.now_s) + 1 :]
            plan = Plan({job.id: 1 for job in run.jobs})
            self.kernel.at(run.ends_s[-1], lambda: self._finish_run(run, plan))

    def _settle(self, run: _Run, upto: int) -> None:
        """Accounts for steps before `upto`; the one at `upto` is in progress and has its KV room."""
        self._learn(run, upto)
        steps = upto - run.settled
        if not steps:
            return
        times_s = run.ends_s[run.settled : upto]
        run.settled = upto
        for job in run.jobs:
            job.computed_tokens += steps
            job.generated_tokens += steps
            self.kv.grow(job, 1)
        self.stats.step_tokens += steps * len(run.jobs)
        self._account(steps)
        self._on_tokens(run.jobs, times_s)

    def _learn(self, run: _Run, upto: int) -> None:
        """From the steps that have begun, the one at `upto` included: each as if it had been planned."""
        if self.predicted:
            decodes = len(run.jobs)
            for step in range(run.learnt, upto):
                kv_tokens = run.kv_tokens + (step + 1) * decodes
                self.predicted.observe(Batch((), decodes, kv_tokens), run.later_s[step])
            run.learnt = max(run.learnt, upto)

    def _finish_run(self, run: _Run, plan: Plan) -> None:
        if self._run is not run or run.ends_s[-1] != self.kernel.now_s:
            return  # it was cut short after this end had been put down
        self._settle(run, len(run.ends_s) - 1)
        self._run = None
        self._finish(plan)

    def _next_scales(self, steps: int) -> list[float]:
        """The scales of the next steps, of which none is used up."""
        if len(self._scales) < steps:
            self._scales.extend(islice(self._step_scale, steps - len(self._scales)))
        return list(islice(self._scales, steps))

    def _account(self, steps: int) -> None:
        self.stats.steps += steps
        for _ in range(steps):
            self._scales.popleft()
