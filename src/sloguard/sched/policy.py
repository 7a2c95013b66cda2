"""What every scheduling policy is: a function from a view of the engine to the next step's plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sloguard.perf.batch_time import StepTime
from sloguard.sched.job import Job
from sloguard.sched.lengths import Lengths
from sloguard.sched.plan import Plan


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's own bounds on a step, named as vLLM names them. A threshold of 0 is none; admission leaves
    `watermark_blocks` free while others run.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    watermark_blocks: int = 0
    scheduler_reserve_full_isl: bool = True  # a prompt is admitted only if all of it fits the free KV blocks


@dataclass(frozen=True, slots=True)
class Speculation:
    """What the engine can draft: up to `max_draft_tokens` a decode, each accepted with this probability if all before
    it were. `acceptance` is as measured so far.
    """

    max_draft_tokens: int
    acceptance: float


class Memory(Protocol):
    """How much KV memory there is."""

    @property
    def blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...


class Kv(Memory, Protocol):
    """KV memory as a policy plans in it: block by block in the simulator (kv.py), by counts inside an engine that keeps
    the blocks itself (counted_kv.py).
    """

    @property
    def capacity_tokens(self) -> int: ...

    def held_blocks(self, job: Job) -> int:
        """Blocks of a running job; some may be shared with others."""
        ...

    def cached_tokens(self, job: Job) -> int:
        """Tokens of a waiting job that needn't be computed, never its last known one."""
        ...

    def admit(self, job: Job, cached_tokens: int, tokens: int, *, whole: bool = True, spare_blocks: int = 0) -> bool:
        """Takes `cached_tokens` (as `cached_tokens(job)` said) from the cache and room for `tokens` more.

        With `whole`, only if all known tokens of the job would fit (vLLM's `scheduler_reserve_full_isl`), and only if
        `spare_blocks` then stay free. False, and nothing has changed, where memory does not suffice.
        """
        ...

    def fits_without(
        self,
        job: Job,
        cached_tokens: int,
        tokens: int,
        gone: Iterable[Job],
        *,
        whole: bool = True,
        spare_blocks: int = 0,
    ) -> bool:
        """Whether `admit` would succeed after the release of `gone`. Nothing changes."""
        ...

    def grow(self, job: Job, tokens: int) -> bool:
        """Room for `tokens` beyond the computed ones of a running job. False, and nothing has changed, without it."""
        ...

    def release(self, job: Job) -> None:
        """The job leaves memory."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees. `running` in order of admission, `waiting` in order of the queue.

    `kv` is live: a policy places its tokens in it in order, because what fits next depends on what was placed before.
    `time` and `lengths` predict; whoever drives the policy corrects them by what it observes. `speculation` is None
    where the engine drafts nothing.
    """

    running: Sequence[Job]
    waiting: Collection[Job]
    kv: Kv
    limits: Limits
    time: StepTime
    lengths: Lengths
    speculation: Speculation | None = None


class Policy(Protocol):
    """No clock, no I/O, no randomness: an object fed equal views at equal times makes equal plans."""

    def plan(self, now_s: float, view: View) -> Plan:
        """Which tokens run next. Every job in `tokens` has KV room for them; evicted jobs have given theirs back."""
        ...


POLICIES = {
    "vllm": "sloguard.sched.fcfs:Fcfs",
    "vllm-priority": "sloguard.sched.priority:Priority",
    "vllm-v0": "sloguard.sched.vllm_v0:VllmV0",
    "sarathi": "sloguard.sched.sarathi:Sarathi",
    "sarathi-slo": "sloguard.sched.sarathi:SarathiSlo",
    "edf": "sloguard.sched.deadline:Edf",
    "srpf": "sloguard.sched.deadline:Srpf",
    "qoserve": "sloguard.sched.qoserve:QoServe",
    "scorpio": "sloguard.sched.scorpio:Scorpio",
    "edf-sim": "sloguard.sched.edf_sim:EdfSim",
    "slos-serve": "sloguard.sched.slos_serve:SlosServe",
    "sloguard": "sloguard.sched.sloguard:Sloguard",
}
