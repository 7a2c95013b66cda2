"""What every router is: a function from a job and what is known of the replicas to the one that shall serve it.

    choose -> replica -> served there
                     \\-> declined, if there are hops left -> choose again -> ...

A router sees snapshots, which may be stale: what it sent since one was taken is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sloguard.perf.batch_time import StepTime
from sloguard.sched.job import Job
from sloguard.sched.policy import Limits


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What is known of a replica as of `taken_s`. It includes all that was sent there up to that instant, but for the
    jobs in `unseen`, which were on their way.

    `busy_until_s` is when the step in progress ends: a job sent there waits for it. `taken_s` where there is none.
    `queued_tokens` are prompt tokens still to compute, of running and waiting jobs, `kv_tokens` those that the decodes
    have in memory; `due` holds (instant, tokens) of the queued prompts that were promised a first token and not put off
    as best-effort, by instant; `paces` holds (TPOT, jobs) of all jobs with a promised pace, tightest first.
    `waiting_blocks` is the KV memory that the waiting jobs will take. `put_off` counts jobs that asked for a promise
    and are served as best-effort.
    """

    taken_s: float
    busy_until_s: float
    running: int
    waiting: int
    decodes: int
    kv_tokens: int
    queued_tokens: int
    due: tuple[tuple[float, int], ...]
    paces: tuple[tuple[float, int], ...]
    free_blocks: int
    waiting_blocks: int
    blocks: int
    block_tokens: int
    prefix_caching: bool
    limits: Limits
    time: StepTime
    put_off: int = 0
    unseen: tuple[str, ...] = ()

    @property
    def jobs(self) -> int:
        return self.running + self.waiting

    @property
    def tokens(self) -> int:
        """Tokens to compute or to read: what the replica has to do with."""
        return self.queued_tokens + self.kv_tokens


@dataclass(frozen=True, slots=True)
class Route:
    """The replica's place in the list, and how often the job may still be sent on.

    With no hops left the replica has to take the job, if as best effort, and may be one that has declined it; with some
    it is asked, which it never was before. A job that was declined has fewer hops left than before.
    """

    replica: int
    hops_left: int = 0


class Router(Protocol):
    """No clock and no I/O. Randomness comes from a generator that the class takes as `rng`."""

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        """Where `job` goes. `tried` are the replicas that have declined it, in order, each once.

        Looking at a state may cost the caller work in proportion to what the replica holds, so look at few.
        """
        ...


ROUTERS = {
    "round-robin": "sloguard.route.baselines:RoundRobin",
    "power-of-two": "sloguard.route.baselines:PowerOfTwo",
    "least-jobs": "sloguard.route.baselines:LeastJobs",
    "least-tokens": "sloguard.route.baselines:LeastTokens",
    "prefix-affinity": "sloguard.route.baselines:PrefixAffinity",
    "slos-serve": "sloguard.route.slo:Sequential",
    "headroom": "sloguard.route.headroom:Headroom",
}
