"""sloguard's policies inside vLLM: `--scheduler-cls sloguard.plugins.vllm_scheduler.SloScheduler`.

vLLM's own `schedule()` does all the work; before each call this class decides what it may do:

    plan      the policy sees the engine's requests as jobs and its free KV blocks as counts, and makes a plan
    decline   what another replica is to serve ends, with an answer that says so
    evict     running requests that the plan evicts are preempted by vLLM's own means
    queue     of what the policy was shown, only what the plan admits stands in the queue, in the plan's order, until
              the call returns; what it wasn't shown (a resumed session, for example) vLLM deals with by itself
    caps      a request may take as many as the plan gives it; a running one without any pauses and keeps its KV

vLLM then allocates, hits its prefix cache and builds the step by its own rules. Where a plan can't be made, took too
long or is not what vLLM can carry out, it schedules as it always would, and that is counted (`Counts`).

Nothing of vLLM is copied, but this is not a stable interface of it: vllm_check.py names what must be there. 0.28 and
newer have it.
"""

# vLLM has an environment of its own; this file alone knows its types.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from vllm import __version__ as vllm_version
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from sloguard.perf.batch_time import Batch
from sloguard.plugins.ledger import Ledger
from sloguard.plugins.meters import Meters
from sloguard.plugins.options import Options, known_router
from sloguard.plugins.steps import Acceptance, Counts, Steps, batch_of
from sloguard.plugins.teller import EngineMemory, Teller
from sloguard.plugins.vllm_check import HOOKS, check_engine
from sloguard.sched.asked import DECLINED
from sloguard.sched.counted_kv import NO_HITS, CountedKv, Hits
from sloguard.sched.job import Job, Tier
from sloguard.sched.plan import Plan
from sloguard.sched.plan_check import Checked
from sloguard.sched.policy import Limits, Speculation, View

Result = TypeVar("Result")
log = logging.getLogger("vllm.sloguard")  # below vLLM's own logger, so that it is seen
METERS = Meters()  # names are taken once a process

PLANNED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
LONGEST_REST_STEPS = 1024
REPORTED_FAULTS = 5
HITS_HOLD_S = 0.5  # what the prefix cache had of a waiting request: looking through it is dear
UNHEEDED_STEPS = 16  # in a row in which vLLM did not serve somebody who was planned for: then it orders a step itself


class SloScheduler(Scheduler):
    """Becomes `AsyncSloScheduler` where the engine schedules asynchronously. What is kept here is named `slo_...`: vLLM
    has names of its own, and more in each version.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> SloScheduler:
        asynchronous = vllm_config.scheduler_config.async_scheduling
        return super().__new__(AsyncSloScheduler if asynchronous else cls)

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        check_engine(self, SloScheduler, Scheduler, vllm_version)
        self.slo_options = Options.read(vllm_config.additional_config)
        self.slo_policy = self.slo_options.made_policy()
        self.slo_steps = Steps(
            self.slo_options.time(), Path(log_path) if (log_path := self.slo_options.step_log) else None
        )
        self.slo_counts = Counts()
        self.slo_meters = METERS
        self.slo_ledger = Ledger(self.slo_options, METERS, known_router(os.environ))
        self.slo_teller = Teller(self.slo_options, self.slo_ledger, METERS)
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
        self._slo_whole_images = getattr(scheduler, "disable_chunked_mm_input", False)
        self._slo_caps: dict[str, int] | None = None
        self._slo_rest = self._slo_rests = self._slo_unheeded = 0
        self._slo_hits: dict[str, tuple[float, Hits]] = {}
        self._slo_now_s = 0.0
        self._slo_declined: list[Request] = []  # whose clients don't know it yet
        self._slo_acceptance = Acceptance()
        log.info("sloguard: policy %s on vLLM %s", self.slo_options.policy, vllm_version)

    # What vLLM calls.

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        name = request.request_id
        if name in self.slo_ledger.jobs or name not in self.requests:  # a session goes on, or ends
            return
        waited_s = max(0.0, time.time() - request.arrival_time)  # arrivals are wall-clock times of the API server
        extra = getattr(request.sampling_params, "extra_args", None)
        fixed = time.monotonic() - waited_s, request.num_prompt_tokens, request.max_tokens, request.priority
        self._guarded(lambda: self.slo_ledger.enter(name, *fixed, extra))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        begun_s, goes_on = time.monotonic(), bool(self.running)
        plan = self._planned(begun_s)
        self._guarded(lambda: self._tell(begun_s))
        output = super().schedule(*args, **kwargs) if plan is None else self._carried_out(plan, args, kwargs)
        if plan is not None:
            self._check_heeded(plan, output)
        if output.total_num_scheduled_tokens:
            self._guarded(lambda: self._begun(output, begun_s, goes_on))
        return output

    def _carried_out(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SchedulerOutput:
        if plan.decline:
            self._leave_to_others(plan.decline)
        for request_id in plan.evict:
            self._evict(self.requests[request_id])
        line = list(self.waiting)
        known = {request.request_id for request in line}
        held = {request.request_id: request for request in line if _queues(request)}
        admitted = [held.pop(name) for name in plan.admit if name in held]
        others = [request for request in line if not _queues(request)]
        # The last to run is the first that vLLM preempts, should memory turn out to be less than was planned with.
        self.running.sort(key=lambda request: self.slo_ledger.jobs[request.request_id].tier is Tier.BEST_EFFORT)
        self._slo_caps = plan.tokens
        self._queue(*admitted, *others)
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self._slo_caps = None
            left = {request.request_id: request for request in self.waiting}
            preempted = [request for name, request in left.items() if name not in known]
            kept = left.keys() | held.keys()
            self._queue(*preempted, *(request for request in line if request.request_id in kept))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        if self._slo_caps is None or not self._is_capped(request, num_computed_tokens):
            return super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        allowed = min(num_new_tokens, self._slo_caps.get(request.request_id, 0))
        return super()._reserve_prefill_lookahead(request, num_computed_tokens, allowed)

    def _is_capped(self, request: Request, num_computed_tokens: int) -> bool:
        """What the policy was not shown is vLLM's; so is a prompt that is cached but for a token (it is padded for
        drafts, and must keep that), and one whose images must not be cut.
        """
        if self._slo_whole_images and request.mm_features and num_computed_tokens < request.num_prompt_tokens:
            return False
        resumed = request.num_computed_tokens or request.num_tokens - num_computed_tokens == 1
        return request.status == RequestStatus.RUNNING or not resumed

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        self._slo_now_s = time.monotonic()
        self._guarded(lambda: self._learn(scheduler_output, model_runner_output))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._guarded(lambda: self._note_tokens(scheduler_output))
        self._guarded(lambda: self._say_declined(outputs))
        if not self.requests:  # until the next request nobody would say that there are none
            self._guarded(self._say_idle)
        return outputs

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._guarded(lambda: self._forget(request))
        return super()._free_request(request, *args, **kwargs)

    # Planning.

    def _planned(self, begun_s: float) -> Plan | None:
        """The policy's plan; None where vLLM is to schedule this step alone."""
        if self._slo_rest:
            self._slo_rest -= 1
            self.slo_counts.rested += 1
            self._guarded(lambda: self.slo_meters.fell_back("rest"))
            return None
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
        running = [job for job in running if job.remaining_tokens]  # a pipeline's other steps have what is left of some
        waiting = [self._seen(request) for request in self._startable()]
        kv = CountedKv(
            self._slo_blocks,
            self.block_size,
            self._slo_free_blocks(),
            {job.id: -(-job.computed_tokens // self.block_size) for job in running},
            lambda job: self._look_up(job, now_s),
            self._owned,
        )
        drafts = Speculation(self.num_spec_tokens, self._slo_acceptance.rate) if self.num_spec_tokens else None
        seats = self._slo_limits.max_num_seqs - (len(self.running) - len(running))
        limits = replace(self._slo_limits, max_num_seqs=seats)
        view = View(running, waiting, kv, limits, self.slo_steps.time, self.slo_ledger.lengths, drafts)
        plan = self.slo_policy.plan(now_s, view)
        if isinstance(self.slo_policy, Checked):
            self.slo_policy.check(now_s, plan, view, *({job.id: job for job in jobs} for jobs in (running, waiting)))
        self.slo_counts.evicted += len(plan.evict)
        return plan

    def _seen(self, request: Request) -> Job:
        """The job as it is when what is in flight has arrived."""
        job = self.slo_ledger.jobs[request.request_id]
        job.prompt_tokens = request.num_prompt_tokens  # a session's grows
        job.computed_tokens = request.num_computed_tokens
        job.generated_tokens = request.num_output_tokens + request.num_output_placeholders
        job.evictions = request.num_preemptions
        return job

    def _startable(self) -> Iterable[Request]:
        """Those of the queue that may start, as far as their adapters have room beside those in use."""
        free = [request for request in self.waiting if _queues(request) and not request.num_stale_output_tokens]
        return self._within_adapters(free) if self.lora_config else free

    def _within_adapters(self, requests: Iterable[Request]) -> Iterator[Request]:
        adapters = {_adapter(request) for request in self.running} - {0}
        for request in requests:
            needed = {_adapter(request)} - {0} - adapters
            if not needed or len(adapters) < self.lora_config.max_loras:
                adapters |= needed
                yield request

    def _blocked(self) -> list[Request]:
        """Those that wait for something else than their turn, a grammar for example."""
        apart: Any = getattr(self, "skipped_waiting", ())  # 0.28 keeps them apart and drains them first
        ready = [request for request in apart if request.status in PLANNED or self._slo_promote(request)]
        for request in reversed(ready):
            apart.remove_request(request)
            self.waiting.prepend_request(request)
        return [request for request in self.waiting if request.status not in PLANNED]

    def _look_up(self, job: Job, now_s: float) -> Hits:
        seen_s, hits = self._slo_hits.get(job.id, (-inf, NO_HITS))
        if now_s - seen_s > HITS_HOLD_S:
            blocks, tokens, *_ = self.kv_cache_manager.get_computed_blocks(self.requests[job.id])
            idle = sum(block.ref_cnt == 0 for block in blocks.blocks[0]) if tokens else 0
            hits = Hits(tokens, idle)
            self._slo_hits[job.id] = now_s, hits
        return hits

    def _owned(self, job: Job) -> int:
        """Blocks that nobody else uses: what its eviction frees."""
        return sum(block.ref_cnt == 1 for block in self.kv_cache_manager.get_blocks(job.id).blocks[0])

    # Carrying out.

    def _leave_to_others(self, names: Iterable[str]) -> None:
        for name in names:
            self.slo_ledger.decline(name)
        self._slo_declined += self.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def _say_declined(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        declined, self._slo_declined = self._slo_declined, []
        for request in declined:
            said = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT, stop_reason=DECLINED)
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(said)

    def _evict(self, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _queue(self, *requests: Request) -> None:
        self.waiting.clear()
        self.waiting.extend(requests)

    def _check_heeded(self, plan: Plan, output: SchedulerOutput) -> None:
        """What vLLM does not do for long (an encoder's cache may be full of a prompt that waits), it will not do."""
        heeded = plan.tokens.keys() <= output.num_scheduled_tokens.keys()
        self._slo_unheeded = 0 if heeded else self._slo_unheeded + 1
        if self._slo_unheeded >= UNHEEDED_STEPS:
            self._slo_unheeded, self._slo_rest = 0, 1

    # Telling.

    def _say_idle(self) -> None:
        self._tell(self._slo_now_s, at_once=True)
        self._tell_state(self._slo_now_s, self._slo_now_s, at_once=True)

    def _tell(self, now_s: float, at_once: bool = False) -> None:
        rate = self._slo_acceptance.rate if self.num_spec_tokens else None
        self.slo_teller.step(now_s, *self._held(), rate, at_once)

    def _tell_state(self, now_s: float, ends_s: float, at_once: bool = False) -> None:
        caching = bool(self.cache_config.enable_prefix_caching)
        memory = EngineMemory(self._slo_blocks, self.block_size, self._slo_free_blocks(), caching)
        self.slo_teller.state(now_s, ends_s, *self._held(), memory, self._slo_limits, self.slo_steps.time, at_once)

    def _slo_free_blocks(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks() // self._slo_groups

    def _held(self) -> tuple[list[Job], list[Job]]:
        jobs = self.slo_ledger.jobs
        return [jobs[request.request_id] for request in self.running], [jobs[r.request_id] for r in self.waiting]

    def _begun(self, output: SchedulerOutput, begun_s: float, goes_on: bool) -> None:
        batch = self._batch(output)
        self.slo_steps.begin(id(output), begun_s, batch, goes_on)
        self._tell_state(begun_s, begun_s + self.slo_steps.time.seconds(batch))

    # Learning.

    def _learn(self, output: SchedulerOutput, result: Any) -> None:
        took = self.slo_steps.end(id(output), self._slo_now_s)
        if took is not None:
            self.slo_meters.stepped(*took, self.slo_steps.time)
        drafts = output.scheduled_spec_decode_tokens
        invalid = output.num_invalid_spec_tokens or {}
        for request_id, drafted in drafts.items():
            index, request = result.req_id_to_index.get(request_id), self.requests.get(request_id)
            if index is None or request is None or not (result.sampled_token_ids and request.num_output_tokens):
                continue  # a first step's drafts are padding
            tried, yielded = len(drafted) - invalid.get(request_id, 0), len(result.sampled_token_ids[index])
            self._slo_acceptance.tried(tried, max(0, yielded - 1))
        if not drafts:
            self._slo_acceptance.untried()

    def _note_tokens(self, output: SchedulerOutput) -> None:
        for name in output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is not None:
                ids = request.output_token_ids
                self.slo_ledger.note_tokens(name, request.num_output_tokens, ids, self._slo_now_s)

    def _forget(self, request: Request) -> None:
        self._slo_hits.pop(request.request_id, None)
        # vLLM ends a request by a stop string as if its client had hung up.
        stopped = bool(request.sampling_params and request.sampling_params.stop and request.num_output_tokens)
        completed = stopped or request.status != RequestStatus.FINISHED_ABORTED
        self.slo_ledger.leave(request.request_id, request.num_output_tokens, completed, self._slo_now_s)

    def _batch(self, output: SchedulerOutput) -> Batch:
        computing = ((self.requests[name], tokens) for name, tokens in output.num_scheduled_tokens.items())
        # vLLM has counted the tokens of the step as computed already.
        return batch_of((n, request.num_computed_tokens - n, request.num_prompt_tokens) for request, n in computing)


class AsyncSloScheduler(SloScheduler, AsyncScheduler):
    """The same over vLLM's asynchronous scheduler, whose plans are a step ahead of the tokens."""


def _queues(request: Request) -> bool:
    """Whether it waits for its turn, and for nothing else."""
    return request.status in PLANNED and not request.num_computed_tokens


def _adapter(request: Request) -> int:
    return request.lora_request.lora_int_id if request.lora_request else 0  # of LoRA


def _ends(request: Request) -> bool:
    """Whether what is in flight is the last of it: it keeps its seat and memory for now, and needs no more steps."""
    placeholders = request.num_output_placeholders
    certain = request.num_computed_tokens + 2 - placeholders  # even if all drafts in flight are refused
    return placeholders > 0 and certain >= request.num_prompt_tokens + request.max_tokens
