"""What a router is told of a replica: made from the jobs it holds, and sent as JSON between processes.

On the way an instant is told as seconds from when the state was taken: another machine has another clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from itertools import chain
from typing import Any

from sloguard.perf.batch_time import StepTime
from sloguard.route.base import ReplicaState
from sloguard.sched.job import Job, Tier
from sloguard.sched.policy import Limits, Memory

MOST_DUE = 256  # prompts told one by one; what is due later than those is told as if due with the last of them
PLAIN = (
    "running",
    "waiting",
    "decodes",
    "kv_tokens",
    "queued_tokens",
    "free_blocks",
    "waiting_blocks",
    "blocks",
    "block_tokens",
    "prefix_caching",
    "put_off",
)


def state_from(
    now_s: float,
    busy_until_s: float,
    running: Collection[Job],
    waiting: Collection[Job],
    kv: Memory,
    prefix_caching: bool,
    limits: Limits,
    time: StepTime,
) -> ReplicaState:
    """The state of an engine that holds these jobs at `now_s`."""
    decodes = kv_tokens = queued_tokens = waiting_blocks = put_off = 0
    due: list[tuple[float, int]] = []
    paces: Counter[float] = Counter()
    for job in chain(running, waiting):
        remaining = job.prompt_tokens + job.generated_tokens - job.computed_tokens
        if remaining == 1 and job.generated_tokens:  # `Job.decoding`, without the calls: this is a hot loop
            decodes += 1
            kv_tokens += job.computed_tokens
        else:
            queued_tokens += remaining
            if job.ttft_s is not None and job.first_token_s is None and job.tier is not Tier.BEST_EFFORT:
                due.append((job.ttft_due_s, remaining))
        if job.tier is Tier.BEST_EFFORT:
            put_off += job.ttft_s is not None or job.tpot_s is not None
        elif job.tpot_s is not None:
            paces[job.tpot_s] += 1
    block_tokens = kv.block_tokens
    for job in waiting:
        waiting_blocks += -(-job.known_tokens // block_tokens)
    return ReplicaState(
        taken_s=now_s,
        busy_until_s=busy_until_s,
        running=len(running),
        waiting=len(waiting),
        decodes=decodes,
        kv_tokens=kv_tokens,
        queued_tokens=queued_tokens,
        due=tuple(sorted(due)),
        paces=tuple(sorted(paces.items())),
        free_blocks=kv.free_blocks,
        waiting_blocks=waiting_blocks,
        blocks=kv.blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        put_off=put_off,
        limits=limits,
        time=time,
    )


def to_wire(state: ReplicaState) -> dict[str, Any]:
    """All but `taken_s` and the step times, as JSON can hold it. Long lists are cut to MOST_DUE, towards caution."""
    since_s = state.taken_s
    due, paces = state.due[:MOST_DUE], state.paces[:MOST_DUE]
    if later := state.due[MOST_DUE:]:
        due_s, tokens = due[-1]
        due = (*due[:-1], (due_s, tokens + sum(more for _, more in later)))
    if looser := state.paces[MOST_DUE:]:
        pace_s, jobs = paces[-1]
        paces = (*paces[:-1], (pace_s, jobs + sum(more for _, more in looser)))
    told = {name: getattr(state, name) for name in PLAIN}
    times = {"busy_s": state.busy_until_s - since_s, "due": [(due_s - since_s, tokens) for due_s, tokens in due]}
    return {**told, **times, "paces": paces, "limits": asdict(state.limits)}


def from_wire(told: dict[str, Any], taken_s: float, time: StepTime) -> ReplicaState:
    """What `to_wire` told, on the reader's clock. Raises KeyError, TypeError or ValueError for what it never told."""
    return ReplicaState(
        taken_s=taken_s,
        busy_until_s=taken_s + float(told["busy_s"]),
        due=tuple((taken_s + float(due_s), int(tokens)) for due_s, tokens in told["due"]),
        paces=tuple((float(pace_s), int(jobs)) for pace_s, jobs in told["paces"]),
        limits=Limits(**told["limits"]),
        time=time,
        **{name: told[name] for name in PLAIN},
    )
