"""Disaggregated serving as in DistServe (arXiv 2401.09670): some replicas only prefill, others only decode.

    submit -> queue -> prefill replica -> first token -> KV crosses the link -> decode replica -> other tokens

dispatch    to the prefill replica with the fewest tokens to compute before this job's first token, and from there to
            the decode replica with the most free memory
pull        KV stays where it was computed until a decode replica has room for it, first come first served; memory of
            prefill replicas is the buffer, and a prompt starts only where there is room for it
link        each prefill replica sends over a link of its own, one prompt after the other, as fast as `Link` says
stages      a later stage goes to the decode replica that holds the conversation: only it knows what was generated
evicted     a job that loses its KV on a decode replica computes all of it again there

`fcfs` on both kinds of replica is DistServe's scheduling; those that prefill take whole prompts (`whole_prompts`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sloguard.sched.job import Job
from sloguard.sched.policy import Limits
from sloguard.sim.cluster import MakeReplica
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnTokens, Replica

RETRY_S = 0.05  # how long until memory is looked at again that was freed unnoticed, by a client that hung up


@dataclass(frozen=True, slots=True)
class Link:
    """Between two replicas: NVLink, PCIe or a network."""

    kv_token_bytes: float
    bytes_s: float
    latency_s: float = 0.0

    def seconds(self, tokens: int) -> float:
        return self.latency_s + tokens * self.kv_token_bytes / self.bytes_s


def whole_prompts(limits: Limits) -> Limits:
    """The same for a replica that only prefills: no prompt is cut, and any fits a step."""
    tokens = max(limits.max_num_batched_tokens, limits.max_model_len)
    return replace(limits, enable_chunked_prefill=False, max_num_batched_tokens=tokens)


@dataclass(slots=True, eq=False)
class _Sender:
    """A prefill replica, its queue and its link. `taken_blocks` hold prompts being computed or waiting to cross."""

    replica: Replica
    queue: deque[Job] = field(default_factory=deque[Job])
    queued_tokens: int = 0
    taken_blocks: int = 0
    link_free_s: float = 0.0


class Pools:
    """Raises ValueError for replicas whose KV blocks differ in size, and without replicas of either kind."""

    def __init__(
        self,
        kernel: Kernel,
        make_prefill: Sequence[MakeReplica],
        make_decode: Sequence[MakeReplica],
        link: Link,
        on_tokens: OnTokens,
    ) -> None:
        if not make_prefill or not make_decode:
            raise ValueError("disaggregated serving needs at least one replica to prefill and one to decode")
        self.kernel, self.link, self.hops = kernel, link, 0
        self._on_tokens = on_tokens
        self._senders = [
            _Sender(make(kernel, partial(self._prefilled, at), _never)) for at, make in enumerate(make_prefill)
        ]
        self._receivers = [make(kernel, on_tokens, _never) for make in make_decode]
        self._coming_blocks = [0] * len(self._receivers)
        self.replicas = [*(sender.replica for sender in self._senders), *self._receivers]
        sizes = {replica.kv.block_tokens for replica in self.replicas}
        if len(sizes) != 1:
            raise ValueError(f"pools need replicas with KV blocks of one size, not {sorted(sizes)}")
        self.block_tokens = sizes.pop()
        self.max_model_len = min(replica.limits.max_model_len for replica in self.replicas)
        self._answers: dict[str, int] = {}  # output tokens of the jobs that prefill: to their replica they have one
        self._held: deque[tuple[Job, _Sender]] = deque()  # prefilled, and no room to decode yet
        self._homes: dict[str, Replica] = {}  # of conversations with stages to come
        self._hang_up: dict[str, Callable[[], None]] = {}  # how to drop each job from where it is now
        self._retrying = False

    def submit(self, job: Job) -> None:
        if home := self._homes.get(job.stream):
            self._decode(job, home)
            return

        def before_first_token(sender: _Sender) -> int:
            return sender.queued_tokens + job.prompt_tokens - sender.replica.kv.cached_tokens(job)

        sender = min(self._senders, key=before_first_token)
        sender.queue.append(job)
        sender.queued_tokens += job.prompt_tokens

        def hang_up() -> None:
            sender.queue.remove(job)
            sender.queued_tokens -= job.prompt_tokens

        self._hang_up[job.id] = hang_up
        self._prefill(sender)

    def abort(self, job: Job) -> None:
        self._hang_up.pop(job.id)()

    def finished(self, job: Job) -> None:
        del self._hang_up[job.id]
        self._pull()

    def ended(self, stream: str) -> None:
        self._homes.pop(stream, None)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _prefill(self, sender: _Sender) -> None:
        """Starts what there is memory for, in order."""
        replica = sender.replica
        while sender.queue and sender.taken_blocks + self._blocks(sender.queue[0].prompt_tokens) <= replica.kv.blocks:
            job = sender.queue.popleft()
            sender.taken_blocks += self._blocks(job.prompt_tokens)
            self._answers[job.id], job.output_tokens = job.output_tokens, 1
            self._hang_up[job.id] = partial(self._drop_prefilling, job, sender)
            replica.submit(job)

    def _drop_prefilling(self, job: Job, sender: _Sender) -> None:
        sender.replica.abort(job)
        job.output_tokens = self._answers.pop(job.id)
        sender.queued_tokens -= job.prompt_tokens
        self._free(job, sender)

    def _free(self, job: Job, sender: _Sender) -> None:
        sender.taken_blocks -= self._blocks(job.prompt_tokens)
        self._prefill(sender)

    def _prefilled(self, at: int, jobs: list[Job], times_s: list[float]) -> None:
        sender = self._senders[at]
        kv = sender.replica.kv
        for job in jobs:
            job.output_tokens = self._answers.pop(job.id)
            sender.queued_tokens -= job.prompt_tokens
            if job.output_tokens == 1:
                self._free(job, sender)
                continue
            cached = kv.cached_tokens(job)
            kept = kv.admit(job, cached, job.prompt_tokens - cached, whole=False)
            assert kept, "its replica has just let go of this memory"
            self._held.append((job, sender))
            self._hang_up[job.id] = partial(self._drop_held, job, sender)
        self._on_tokens(jobs, times_s)
        self._pull()

    def _drop_held(self, job: Job, sender: _Sender) -> None:
        self._held.remove((job, sender))
        self._let_go(job, sender)

    def _let_go(self, job: Job, sender: _Sender) -> None:
        sender.replica.kv.release(job)
        self._free(job, sender)

    def _pull(self) -> None:
        """Starts transfers in order while there is room."""
        while self._held:
            job, sender = self._held[0]
            room = [self._room(at) for at in range(len(self._receivers))]
            at = room.index(max(room))
            if room[at] < self._blocks(job.known_tokens):
                self._retry()
                return
            self._held.popleft()
            self._transfer(job, sender, at)

    def _room(self, at: int) -> int:
        replica = self._receivers[at]
        replica.sync()
        queued = sum(self._blocks(job.known_tokens) for job in replica.queued)
        return replica.kv.free_blocks - queued - self._coming_blocks[at]

    def _transfer(self, job: Job, sender: _Sender, at: int) -> None:
        blocks = self._blocks(job.known_tokens)
        self._coming_blocks[at] += blocks
        sender.link_free_s = max(sender.link_free_s, self.kernel.now_s) + self.link.seconds(job.prompt_tokens)
        wanted = True

        def hang_up() -> None:
            nonlocal wanted
            wanted = False  # what crosses the link can't be called back

        def arrive() -> None:
            self._coming_blocks[at] -= blocks
            self._let_go(job, sender)
            if wanted:
                job.transferred_tokens = job.prompt_tokens
                self._decode(job, self._receivers[at])

        self._hang_up[job.id] = hang_up
        self.kernel.at(sender.link_free_s, arrive)

    def _decode(self, job: Job, replica: Replica) -> None:
        if job.stages_left:
            self._homes[job.stream] = replica
        self._hang_up[job.id] = partial(replica.abort, job)
        replica.submit(job)

    def _retry(self) -> None:
        def again() -> None:
            self._retrying = False
            self._pull()

        if not self._retrying:
            self._retrying = True
            self.kernel.after(RETRY_S, again)


def _never(job: Job) -> None:
    raise AssertionError(f"{job.id} was declined, but nobody else can serve it")
