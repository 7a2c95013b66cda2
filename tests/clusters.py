"""Small simulated replicas and states of replicas for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.request import Prefix, Request, Stage
from sloguard.route.base import ReplicaState
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Limits, Policy, View
from sloguard.sim.cluster import MakeReplica
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Planner, Replica
from sloguard.slo import NO_SLO, StageSLO

ONE_SECOND = BatchTime((Piece(1.0, 0.0, 0.0, 0.0, 0.0),))
LINEAR = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0),))
AT_ONCE = Planner()


class Choosy:
    """First come, first served, but a job that may go elsewhere is declined while `full` run; those of `avoid` always.

    `asked` are the jobs that came by.
    """

    def __init__(self, full: int = 1_000, avoid: Sequence[str] = ()) -> None:
        self.full, self.avoid = full, avoid
        self.asked: list[str] = []

    def plan(self, now_s: float, view: View) -> Plan:
        away: list[str] = []
        kept: list[Job] = []
        for job in view.waiting:
            self.asked.append(job.id)
            unwanted = job.app in self.avoid or len(view.running) + len(kept) >= self.full
            if job.hops_left and unwanted:
                away.append(job.id)
            else:
                kept.append(job)
        return replace(Fcfs().plan(now_s, replace(view, waiting=kept)), decline=tuple(away))


def maker(
    policy: Callable[[], Policy] = Fcfs,
    *,
    seqs: int = 8,
    tokens: int = 256,
    blocks: int = 64,
    caching: bool = False,
    time: BatchTime = LINEAR,
    limits: Callable[[Limits], Limits] = lambda limits: limits,
    planner: Planner = AT_ONCE,
) -> MakeReplica:
    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        kv = KvCache(blocks, 16, caching)
        bounds = limits(Limits(seqs, tokens, blocks * 16))
        return Replica(kernel, policy(), bounds, kv, time, on_tokens, on_decline, planner=planner)

    return make


def ask(
    number: int,
    arrival_s: float,
    prompt: int,
    output: int,
    *,
    prefix: Prefix | None = None,
    slo: StageSLO = NO_SLO,
    more: Sequence[Stage] = (),
    slo_class: str = "default",
) -> Request:
    stages = (Stage(prompt, output, slo), *more)
    return Request(str(number), arrival_s, stages, slo_class, prefix)


def state(**changes: object) -> ReplicaState:
    """An idle replica, but for `changes`; a step in progress ends at once."""
    idle = ReplicaState(
        taken_s=0.0,
        busy_until_s=0.0,
        running=0,
        waiting=0,
        decodes=0,
        kv_tokens=0,
        queued_tokens=0,
        due=(),
        paces=(),
        free_blocks=1000,
        waiting_blocks=0,
        blocks=1000,
        block_tokens=16,
        prefix_caching=True,
        limits=Limits(256, 8192, 16000),
        time=LINEAR,
    )
    return replace(idle, **changes)  # type: ignore[arg-type]
