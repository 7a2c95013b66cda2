"""Several replicas behind a router.

    submit -> router -> replica -> tokens
                ^          |
                +- hop_s --+ declined: the router chooses again

The router sees the replicas as they are, or, with `stale_s`, as they were at the last multiple of it. The stages of a
request are one conversation: the first one is routed, the others follow it to where its KV lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import overload

from sloguard.route.base import ReplicaState, Route, Router
from sloguard.route.state import state_from
from sloguard.sched.job import Job, Tier
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Replica

MakeReplica = Callable[[Kernel, OnTokens, OnDecline], Replica]


def state_of(replica: Replica) -> ReplicaState:
    """What a router may know of it, at `kernel.now_s`."""
    replica.sync()
    now_s = replica.kernel.now_s
    return state_from(
        now_s,
        max(replica.step_ends_s, now_s),
        replica.running.values(),
        replica.queued,
        replica.kv,
        replica.kv.prefix_caching,
        replica.limits,
        replica.predicted or replica.batch_time,
    )


class _Fresh(Sequence[ReplicaState]):
    """The replicas as they are, each looked at once, and only if the router asks for it."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._seen: dict[int, ReplicaState] = {}

    def __len__(self) -> int:
        return len(self._replicas)

    @overload
    def __getitem__(self, index: int) -> ReplicaState: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ReplicaState]: ...
    def __getitem__(self, index: int | slice) -> ReplicaState | Sequence[ReplicaState]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index not in self._seen:
            self._seen[index] = state_of(self._replicas[index])
        return self._seen[index]

    def __iter__(self) -> Iterator[ReplicaState]:
        return (self[at] for at in range(len(self)))


class Cluster:
    """`hops` counts jobs that were sent on after a replica had declined them.

    Raises ValueError for replicas whose KV blocks differ in size: equal text would have unequal keys.
    """

    def __init__(
        self,
        kernel: Kernel,
        make_replicas: Sequence[MakeReplica],
        router: Router,
        on_tokens: OnTokens,
        *,
        stale_s: float = 0.0,
        hop_s: float = 0.0,
    ) -> None:
        self.kernel, self.router, self.stale_s, self.hop_s = kernel, router, stale_s, hop_s
        self.replicas = [make(kernel, on_tokens, partial(self._declined, at)) for at, make in enumerate(make_replicas)]
        sizes = {replica.kv.block_tokens for replica in self.replicas}
        if len(sizes) != 1:
            raise ValueError(f"a cluster needs replicas with KV blocks of one size, not {sorted(sizes)}")
        self.block_tokens = sizes.pop()
        self.max_model_len = min(replica.limits.max_model_len for replica in self.replicas)
        self.hops = 0
        self._at: dict[str, int | None] = {}  # of each job; None: on its way from one replica to the next
        self._home: dict[str, int] = {}  # of each conversation that goes on
        self._tried: dict[str, list[int]] = {}
        self._snapshot = [state_of(replica) for replica in self.replicas]
        self._ticks = 0
        self._ticking = False

    def submit(self, job: Job) -> None:
        home = self._home.get(job.stream)
        if home is None:
            self._route(job)
        else:
            self._send(job, Route(home))

    def abort(self, job: Job) -> None:
        at = self._at[job.id]
        if at is not None:
            self.replicas[at].abort(job)
        self._forget(job)

    def finished(self, job: Job) -> None:
        at = self._at[job.id]
        assert at is not None
        self._forget(job)
        if job.stages_left:
            self._home[job.stream] = at

    def ended(self, stream: str) -> None:
        self._home.pop(stream, None)

    def _forget(self, job: Job) -> None:
        del self._at[job.id]
        self._tried.pop(job.id, None)

    def _route(self, job: Job) -> None:
        states = self._snapshot if self.stale_s else _Fresh(self.replicas)
        self._send(job, self.router.choose(self.kernel.now_s, job, states, self._tried.get(job.id, ())))

    def _send(self, job: Job, route: Route) -> None:
        assert job.id not in self._tried or route.hops_left < job.hops_left, f"{job.id} would be sent around for ever"
        job.hops_left = route.hops_left
        self._at[job.id] = route.replica
        self.replicas[route.replica].submit(job)
        self._keep_looking()

    def _declined(self, at: int, job: Job) -> None:
        assert job.hops_left > 0, f"{job.id} was declined by the last replica that could serve it"
        job.tier = Tier.NEW
        self._at[job.id] = None
        self._tried.setdefault(job.id, []).append(at)
        self.hops += 1
        self.kernel.after(self.hop_s, lambda: self._forward(job))

    def _forward(self, job: Job) -> None:
        if job.id in self._at:  # else the client hung up meanwhile
            self._route(job)

    def _keep_looking(self) -> None:
        """Snapshots are taken while there is work: without any, nothing changes."""
        if self.stale_s and not self._ticking:
            self._ticking = True
            self._ticks = max(self._ticks, int(self.kernel.now_s / self.stale_s)) + 1
            self.kernel.at(max(self.kernel.now_s, self._ticks * self.stale_s), self._look)

    def _look(self) -> None:
        self._snapshot = [state_of(replica) for replica in self.replicas]
        self._ticking = False
        if self._at:
            self._keep_looking()
