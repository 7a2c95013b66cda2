"""sloguard's policies inside vLLM: `--scheduler-cls sloguard.plugins.vllm_scheduler.SloScheduler`.

vLLM's own `schedule()` does all the work; before each call this class decides what it may do:

    plan      the policy sees the engine's requests as jobs and its free KV blocks as counts, and makes a plan
    evict     running requests that the plan evicts are preempted by vLLM's own means
    queue     only what the plan admits stands in the queue, in the plan's order, until the call returns
    caps      a request may take as many as the plan gives it; a running one without any pauses and keeps its KV

vLLM then allocates, hits its prefix cache and builds the step by its own rules. Where a plan can't be made, or took too
long, it schedules as it always would, and that is counted (`Counts`).

Nothing of vLLM is copied, but this is not a stable interface of it: `check_engine` names what must be there. 0.28 and
newer have it.
"""

# vLLM has an environment of its own; this file alone knows its types.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from vllm import __version__ as vllm_version
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from sloguard.errors import SloguardError, SpecError
from sloguard.perf.batch_time import Batch
from sloguard.plugins.board import Board, Notice
from sloguard.plugins.meters import GAUGES_EVERY_STEPS, Meters
from sloguard.plugins.options import Options
from sloguard.plugins.steps import Acceptance, Counts, Steps, batch_of
from sloguard.registry import load
from sloguard.sched.asked import Asked, read_asked
from sloguard.sched.counted_kv import NO_HITS, CountedKv, Hits
from sloguard.sched.job import Job, Tier
from sloguard.sched.lengths import AtMost, Quantile
from sloguard.sched.plan import Plan
from sloguard.sched.policy import POLICIES, Limits, Policy, Speculation, View

Result = TypeVar("Result")
log = logging.getLogger("vllm.sloguard")  # below vLLM's own logger, so that it is seen
METERS = Meters()  # names are taken once a process

PLANNED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
PLANNED_SHARE = 0.97  # of what was promised: a client's clock has its server's and the network's time in it
LONGEST_REST_STEPS = 1024
REPORTED_FAULTS = 5
LATEST_TOKENS = 16  # of which one may end the thoughts: a step yields no more
OVERRIDDEN = {"add_request", "schedule", "update_from_output", "_reserve_prefill_lookahead", "_free_request"}
HOOKS = {  # what must be there, and by which of its names in the versions that have it
    "schedule": ("schedule",),
    "caps": ("_reserve_prefill_lookahead",),
    "promote": ("_handle_blocked_waiting_request", "_try_promote_blocked_waiting_request"),
    "preempt": ("_preempt_request",),
    "free": ("_free_request",),
}


class SloScheduler(Scheduler):
    """Becomes `AsyncSloScheduler` where the engine schedules asynchronously. What is kept here is named `slo_...`: vLLM
    has names of its own, and more in each version.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> SloScheduler:
        asynchronous = vllm_config.scheduler_config.async_scheduling
        return super().__new__(AsyncSloScheduler if asynchronous else cls)

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        check_engine(self)
        self.slo_options = Options.read(vllm_config.additional_config)
        self.slo_policy: Policy = load(POLICIES, self.slo_options.policy, "policy", "plan")(
            **self.slo_options.policy_options
        )
        self.slo_steps = Steps(
            self.slo_options.time(), Path(log_path) if (log_path := self.slo_options.step_log) else None
        )
        self.slo_lengths = AtMost(Quantile())
        self.slo_counts = Counts()
        self.slo_meters = METERS
        self.slo_board = Board(Path(boards)) if (boards := self.slo_options.boards) else None
        scheduler, cache = self.scheduler_config, self.kv_cache_config
        self._slo_limits = Limits(
            max_num_seqs=getattr(self, "max_num_active_reqs", self.max_num_running_reqs),
            max_num_batched_tokens=self.max_num_scheduled_tokens,
            max_model_len=self.max_model_len,
            enable_chunked_prefill=scheduler.enable_chunked_prefill,
            long_prefill_token_threshold=scheduler.long_prefill_token_threshold,
            watermark_blocks=self.kv_cache_manager.watermark_blocks,
            scheduler_reserve_full_isl=getattr(self, "scheduler_reserve_full_isl", False),
        )
        self._slo_groups = max(1, len(cache.kv_cache_groups))  # each takes a block where one does
        self._slo_blocks = (cache.num_blocks - 1) // self._slo_groups  # one is vLLM's placeholder
        self._slo_promote = getattr(self, next(name for name in HOOKS["promote"] if hasattr(self, name)))
        self._slo_jobs: dict[str, Job] = {}
        self._slo_caps: dict[str, int] | None = None
        self._slo_rest = self._slo_rests = 0
        self._slo_thinking: dict[str, Asked] = {}  # whose pace will be another once the thoughts end
        self._slo_now_s = 0.0
        self._slo_started = 0
        self._slo_acceptance = Acceptance()
        log.info("sloguard: policy %s on vLLM %s", self.slo_options.policy, vllm_version)

    # What vLLM calls.

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        name = request.request_id
        if name not in self._slo_jobs:
            made = self._guarded(lambda: self._job(request))
            self._slo_jobs[name] = made or Job(name, time.monotonic(), request.num_prompt_tokens, request.max_tokens)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        plan = self._planned()
        self._guarded(self._put_notice)
        output = super().schedule(*args, **kwargs) if plan is None else self._carried_out(plan, args, kwargs)
        if output.total_num_scheduled_tokens:
            self._guarded(lambda: self.slo_steps.begin(id(output), time.monotonic(), self._batch(output)))
        return output

    def _carried_out(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SchedulerOutput:
        for request_id in plan.evict:
            self._evict(self.requests[request_id])
        line = list(self.waiting)
        waits = {request.request_id: request for request in line}
        admitted = [waits[name] for name in plan.admit if name in waits]
        others = [request for request in line if request.status not in PLANNED]
        # The last to run is the first that vLLM preempts, should memory turn out to be less than was planned with.
        self.running.sort(key=lambda request: self._slo_jobs[request.request_id].tier is Tier.BEST_EFFORT)
        self._slo_caps = plan.tokens
        self._queue(*admitted, *others)
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self._slo_caps = None
            left = {request.request_id: request for request in self.waiting}
            preempted = [request for name, request in left.items() if name not in waits]
            gone = {request.request_id for request in self.running}
            self._queue(*preempted, *(request for request in line if request.request_id not in gone))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        allowed = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self._slo_caps is None:
            return allowed
        if request.status != RequestStatus.RUNNING and request.num_tokens - num_computed_tokens == 1:
            return allowed  # a prompt that is cached but for a token is padded for drafts, and must keep that
        return min(allowed, self._slo_caps.get(request.request_id, 0))

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        self._slo_now_s = time.monotonic()
        self._guarded(lambda: self._learn(scheduler_output, model_runner_output))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._guarded(lambda: self._note_tokens(scheduler_output))
        if not self.requests:  # until the next request nobody would say that there are none
            self._guarded(self._say_idle)
        return outputs

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._guarded(lambda: self._forget(request))
        return super()._free_request(request, *args, **kwargs)

    # Planning.

    def _planned(self) -> Plan | None:
        """The policy's plan; None where vLLM is to schedule this step alone."""
        if self._slo_rest:
            self._slo_rest -= 1
            self.slo_counts.rested += 1
            self._guarded(lambda: self.slo_meters.fell_back("rest"))
            return None
        begun_s = time.monotonic()
        plan = self._guarded(lambda: self._plan(begun_s))
        taken_s = time.monotonic() - begun_s
        if plan is None:
            self._guarded(lambda: self.slo_meters.fell_back("fault"))
            return None
        if taken_s > self.slo_options.planner_budget_s:
            self.slo_counts.overruns += 1
            self._slo_rests = min(2 * self._slo_rests + 1, LONGEST_REST_STEPS)
            self._slo_rest = self._slo_rests - 1
            self._guarded(lambda: self.slo_meters.fell_back("overrun"))
            return None
        self._slo_rests //= 2
        self.slo_counts.planned += 1
        self._guarded(lambda: self.slo_meters.planned(taken_s))
        return plan

    def _guarded(self, act: Callable[[], Result]) -> Result | None:
        """What `act` returns; None, counted and logged, where it fails: the engine must go on serving whatever becomes
        of a policy or of a disk, for an exception in its scheduler ends it.
        """
        try:
            return act()
        except Exception:  # the edge between vLLM's process and what a user may have written
            self.slo_counts.faults += 1
            if self.slo_counts.faults <= REPORTED_FAULTS:
                log.exception("sloguard: this step goes on by vLLM's own rules")
            return None

    def _plan(self, now_s: float) -> Plan:
        for request in self._blocked():
            self._slo_promote(request)
        running = [self._seen(request) for request in self.running if not _ends(request)]
        waiting = [self._seen(request) for request in self.waiting if self._may_start(request)]
        kv = CountedKv(
            self._slo_blocks,
            self.block_size,
            self.kv_cache_manager.block_pool.get_num_free_blocks() // self._slo_groups,
            {job.id: -(-job.computed_tokens // self.block_size) for job in running},
            self._look_up,
            self._owned,
        )
        drafts = Speculation(self.num_spec_tokens, self._slo_acceptance.rate) if self.num_spec_tokens else None
        limits = replace(
            self._slo_limits, max_num_seqs=self._slo_limits.max_num_seqs - (len(self.running) - len(running))
        )
        plan = self.slo_policy.plan(
            now_s, View(running, waiting, kv, limits, self.slo_steps.time, self.slo_lengths, drafts)
        )
        unknown = {*plan.tokens, *plan.admit, *plan.evict} - {job.id for job in (*running, *waiting)}
        if unknown:
            raise ValueError(f"the policy planned for {unknown}, which it was not shown")
        self.slo_counts.evicted += len(plan.evict)
        if self.slo_counts.planned % GAUGES_EVERY_STEPS == 0:
            self.slo_meters.holds(now_s, running, waiting, self._slo_acceptance.rate if drafts else None)
            self.slo_meters.tracks(len(self._slo_jobs))
        return plan

    def _seen(self, request: Request) -> Job:
        """The job as it is when what is in flight has arrived."""
        job = self._slo_jobs[request.request_id]
        job.computed_tokens = request.num_computed_tokens
        job.generated_tokens = request.num_output_tokens + request.num_output_placeholders
        job.evictions = request.num_preemptions
        return job

    def _may_start(self, request: Request) -> bool:
        return request.status in PLANNED and not request.num_stale_output_tokens and not request.num_computed_tokens

    def _blocked(self) -> list[Request]:
        """Those that wait for something else than their turn, a grammar for example."""
        apart: Any = getattr(self, "skipped_waiting", ())  # 0.28 keeps them apart and drains them first
        ready = [request for request in apart if request.status in PLANNED or self._slo_promote(request)]
        for request in ready:
            apart.remove_request(request)
            self.waiting.add_request(request)
        return [request for request in self.waiting if request.status not in PLANNED]

    def _look_up(self, job: Job) -> Hits:
        blocks, tokens, *_ = self.kv_cache_manager.get_computed_blocks(self.requests[job.id])
        return Hits(tokens, sum(block.ref_cnt == 0 for block in blocks.blocks[0])) if tokens else NO_HITS

    def _owned(self, job: Job) -> int:
        """Blocks that nobody else uses: what its eviction frees."""
        return sum(block.ref_cnt == 1 for block in self.kv_cache_manager.get_blocks(job.id).blocks[0])

    def _job(self, request: Request) -> Job:
        """Arrivals are wall-clock times of the API server; planning knows only the monotonic clock."""
        asked = self._asked(request)
        if asked.think_tpot_s is not None and self.slo_options.think_end_token_id is not None:
            self._slo_thinking[request.request_id] = asked
            tpot_s = asked.think_tpot_s
        else:
            tpot_s = asked.slo.tpot_s
        return Job(
            id=request.request_id,
            arrival_s=time.monotonic() - max(0.0, time.time() - request.arrival_time),
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=request.max_tokens,
            ttft_s=asked.slo.ttft_s and PLANNED_SHARE * asked.slo.ttft_s,
            tpot_s=tpot_s and PLANNED_SHARE * tpot_s,
            app=asked.slo_class,
            priority=request.priority,
            stages_left=asked.stages_left,
            tier=Tier.BEST_EFFORT if asked.best_effort else Tier.NEW,
        )

    def _asked(self, request: Request) -> Asked:
        """What the door has not refused is well-formed; without the door it may be anything, and is served without."""
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        options = self.slo_options
        try:
            return read_asked(extra, options.classes, options.default_class)
        except SpecError as error:
            log.warning("sloguard: %s: %s Served with the default class.", request.request_id, error)
            self._guarded(self.slo_meters.bad_slo)
            return read_asked({}, options.classes, options.default_class)

    # Carrying out.

    def _evict(self, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _queue(self, *requests: Request) -> None:
        self.waiting.clear()
        self.waiting.extend(requests)

    # Telling.

    def _say_idle(self) -> None:
        self.slo_meters.holds(self._slo_now_s, (), (), None)
        self.slo_meters.tracks(len(self._slo_jobs))
        self._put_notice()

    def _put_notice(self) -> None:
        if self.slo_board is None:
            return
        waiting = [self._slo_jobs[request.request_id].tier for request in self.waiting]
        best_effort = waiting.count(Tier.BEST_EFFORT)
        notice = Notice(time.monotonic(), len(self.running), len(waiting) - best_effort, best_effort, self._slo_started)
        self.slo_board.put(notice)

    # Learning.

    def _learn(self, output: SchedulerOutput, result: Any) -> None:
        took = self.slo_steps.end(id(output), self._slo_now_s)
        if took is not None:
            self.slo_meters.stepped(*took, self.slo_steps.time)
        drafts = output.scheduled_spec_decode_tokens
        for request_id, drafted in drafts.items():
            index = result.req_id_to_index.get(request_id)
            if index is not None and result.sampled_token_ids:
                self._slo_acceptance.tried(len(drafted), max(0, len(result.sampled_token_ids[index]) - 1))
        if not drafts:
            self._slo_acceptance.untried()

    def _note_tokens(self, output: SchedulerOutput) -> None:
        for request_id in output.num_scheduled_tokens:
            request, job = self.requests.get(request_id), self._slo_jobs.get(request_id)
            if request is None or job is None or not request.num_output_tokens:
                continue
            if job.first_token_s is None:
                job.first_token_s, job.paced_from = self._slo_now_s, (self._slo_now_s, 1)
                self._slo_started += 1
            asked = self._slo_thinking.get(request_id)
            if asked is not None and self.slo_options.think_end_token_id in request.output_token_ids[-LATEST_TOKENS:]:
                del self._slo_thinking[request_id]
                job.tpot_s = asked.slo.tpot_s and PLANNED_SHARE * asked.slo.tpot_s
                job.paced_from = self._slo_now_s, request.num_output_tokens

    def _forget(self, request: Request) -> None:
        self._slo_thinking.pop(request.request_id, None)
        job = self._slo_jobs.pop(request.request_id, None)
        if job is None:
            return
        job.generated_tokens = request.num_output_tokens
        completed = request.status != RequestStatus.FINISHED_ABORTED
        if completed and job.generated_tokens and job.first_token_s is None:
            job.first_token_s = self._slo_now_s  # it ended with its first token
            self._slo_started += 1
        if completed and job.generated_tokens:
            self.slo_lengths.finished(job)
        self.slo_meters.finished(job, self._slo_now_s, completed, 1 / PLANNED_SHARE)

    def _batch(self, output: SchedulerOutput) -> Batch:
        computing = ((self.requests[name], tokens) for name, tokens in output.num_scheduled_tokens.items())
        # vLLM has counted the tokens of the step as computed already.
        return batch_of((n, request.num_computed_tokens - n, request.num_prompt_tokens) for request, n in computing)


class AsyncSloScheduler(SloScheduler, AsyncScheduler):
    """The same over vLLM's asynchronous scheduler, whose plans are a step ahead of the tokens."""


def _ends(request: Request) -> bool:
    """Whether what is in flight is the last of it: it keeps its seat and memory for now, and needs no more steps."""
    placeholders = request.num_output_placeholders
    certain = request.num_computed_tokens + 2 - placeholders  # even if all drafts in flight are refused
    return placeholders > 0 and certain >= request.num_prompt_tokens + request.max_tokens


def check_engine(engine: Scheduler) -> None:
    """Raises SloguardError where this vLLM lacks what the plugin needs."""
    missing = [what for what, names in HOOKS.items() if not any(hasattr(engine, name) for name in names)]
    if missing:
        needs = ", ".join("/".join(HOOKS[what]) for what in missing)
        raise SloguardError(f"vLLM {vllm_version} has no {needs}. sloguard's scheduler needs vLLM 0.28 or newer.")
    ours = {name for name, it in vars(SloScheduler).items() if isinstance(it, FunctionType) and name[:2] != "__"}
    shadowed = [name for name in sorted(ours - OVERRIDDEN) if hasattr(Scheduler, name)]
    if shadowed:
        raise SloguardError(
            f"vLLM {vllm_version} has its own {', '.join(shadowed)}, which sloguard's scheduler would hide."
        )
    if engine.scheduler_config.policy != "fcfs":
        raise SloguardError(
            f"--scheduling-policy {engine.scheduler_config.policy} orders requests itself. "
            "Leave it out with sloguard's scheduler; its policy vllm-priority does the same."
        )
