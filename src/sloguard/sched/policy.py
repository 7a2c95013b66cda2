"""What every scheduling policy is: a function from a view of the engine to the next step's plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from sloguard.perf.batch_time import StepTime
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
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


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees. `running` in order of admission, `waiting` in order of the queue.

    `kv` is live: a policy places its tokens in it in order, because what fits next depends on what was placed before.
    `time` and `lengths` predict; whoever drives the policy corrects them by what it observes. `speculation` is None
    where the engine drafts nothing.
    """

    running: Sequence[Job]
    waiting: Collection[Job]
    kv: KvCache
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
