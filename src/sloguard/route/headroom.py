"""Send a job where its promise can be kept with the most room to spare, as far as the batch times tell.

Notation, for one replica and a job with deadline d:

    n, K       jobs with a promised pace and their KV tokens, as if all decoded already, the job among them
    P(w)       seconds to prefill w tokens beside n decodes, in batches as long as the tightest pace
    W(x)       prompt tokens due by x that are not done: those queued at the snapshot and those sent since, less what
               should have ended by now, one prompt after the other; and the job's own
    s          when the step in progress ends
    headroom   min over deadlines x >= d of x - s - P(W(x)): the new job delays all that is due after it;
               -inf where the n decodes alone are too slow, or KV memory lacks for the prompts

    near       of those whose room is nearly the most, the one that was sent a job longest ago: arrivals spread in time,
               which a stale view can't see to. A difference counts as near up to a share of the time left
    margin     a share of the time left that is kept free: raised by each refusal, for the replica that refused, and
               decaying since
    affinity   a replica that holds a beginning of the prompt, and has the room, is taken
    explore    1 % of the jobs go anywhere, so that a replica that once refused is not avoided for ever
    last hop   nobody could promise: as best effort, where there is least to do
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import numpy as np

from sloguard.perf.batch_time import Batch
from sloguard.route.base import ReplicaState, Route
from sloguard.route.prefixes import PrefixMap
from sloguard.sched.job import Job

NO_PACE_S = 0.1  # length of a batch where no job was promised a pace
CANDIDATES = 16  # looked at for a job, of more replicas drawn anew each time
EXPLORE = 0.01
NEAR = 0.05  # of the time left: best of 0 to 0.5 with 4 replicas seen fresh
NEAR_STALE = 0.2  # and with views 0.2 s old
MOST_PRESSURE = 2.0  # a prompt that is late could be told as any number
PUT_OFF = 0.1  # of the jobs: as much as promises may leave
MARGIN_STEP, MARGIN_MOST, MARGIN_DECAY = 0.02, 0.5, 0.999  # one refusal in fifty jobs holds a margin of 40 %


@dataclass(frozen=True, slots=True)
class Sent:
    """A job on its way to a replica whose snapshot does not show it yet."""

    sent_s: float
    due_s: float
    tokens: int
    tpot_s: float | None
    blocks: int


def headroom_s(now_s: float, job: Sent, state: ReplicaState, sent: Iterable[Sent] = ()) -> float:
    """Seconds to spare for the tightest of the deadlines that `job` would delay, its own among them."""
    coming = [*sent, job]
    if state.waiting_blocks + sum(other.blocks for other in coming) > state.free_blocks:
        return -inf
    paced = [other.tpot_s for other in coming if other.tpot_s is not None]
    budget_s = min((*paced, *(tpot_s for tpot_s, _ in state.paces[:1])), default=NO_PACE_S)
    decodes = len(paced) + sum(jobs for _, jobs in state.paces)
    kv_tokens = state.kv_tokens + sum(tokens for _, tokens in state.due) + sum(other.tokens for other in coming)
    batch = min(state.time.inverse(budget_s, decodes=decodes, kv_tokens=kv_tokens), state.limits.max_num_batched_tokens)
    if not batch:
        return -inf

    least_s, most_s = (state.time.seconds(Batch(((size, 0),), decodes, kv_tokens)) for size in (1, batch))

    def prefill_s(tokens: int) -> float:
        full, rest = divmod(tokens, batch)
        return full * most_s + (least_s + (most_s - least_s) * rest / batch if rest else 0.0)

    due: list[tuple[float, int]] = []
    ends_s = state.busy_until_s
    arrived = [(state.taken_s, *work) for work in state.due] + [(o.sent_s, o.due_s, o.tokens) for o in coming[:-1]]
    for sent_s, due_s, tokens in arrived:
        ends_s = max(ends_s, sent_s) + prefill_s(tokens)
        if ends_s > now_s:
            due.append((due_s, tokens))
    due.append((job.due_s, job.tokens))
    start_s = max(now_s, state.busy_until_s)
    spare_s, before = inf, 0
    for due_s, tokens in sorted(due):
        before += tokens
        if due_s >= job.due_s:
            spare_s = min(spare_s, due_s - start_s - prefill_s(before))
    return spare_s


class Headroom:
    """`packing` says which of the replicas with enough room is taken: the one with the "most", or with the "least",
    which keeps the others free for jobs that need much.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        packing: Literal["most", "least"] = "most",
        explore: float = EXPLORE,
        affinity: bool = True,
    ) -> None:
        if packing not in ("most", "least"):
            raise ValueError(f"packing is 'most' or 'least', not {packing!r}")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore is a share of the jobs, from 0 to 1, not {explore}")
        self._rng, self._explore, self._affinity = rng, explore, affinity
        self._packing = packing
        self._turn = 0
        self._last_turn: defaultdict[int, int] = defaultdict(int)
        self._prefixes = PrefixMap()
        self._margins: defaultdict[int, float] = defaultdict(float)
        self._seen: dict[int, ReplicaState] = {}
        self._sent: defaultdict[int, dict[str, Sent]] = defaultdict(dict)  # since it was seen like this

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        total = len(replicas)
        if total == 1:
            return Route(0)
        if tried:
            self._refused(tried[-1], job)
        untried = [at for at in range(total) if at not in tried]
        if untried:
            chosen = self._best(now_s, job, replicas, untried)
        else:
            chosen = min(range(total), key=lambda at: replicas[at].tokens)
        self._margins[chosen] *= MARGIN_DECAY
        state = replicas[chosen]
        self._sent_since(chosen, state)[job.id] = self._sending(now_s, job, state, 0)
        self._prefixes.sent(job, chosen)
        self._turn += 1
        self._last_turn[chosen] = self._turn
        return Route(chosen, len(untried))

    def _best(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], untried: list[int]) -> int:
        if self._rng.random() < self._explore:
            return untried[self._rng.integers(len(untried))]
        found = self._prefixes.find(job) if self._affinity else None
        holder, held_blocks = found if found and found[0] in untried else (-1, 0)
        looked_at = untried
        if len(untried) > CANDIDATES:
            drawn = self._rng.choice(untried, CANDIDATES, replace=False).tolist()
            looked_at = sorted({*drawn, holder} - {-1})
        left_s = job.ttft_due_s - now_s
        room: dict[int, tuple[float, int]] = {}  # seconds, and of equals the one with fewer tokens
        for at in looked_at:
            state = replicas[at]
            sent = self._sent_since(at, state)
            held = held_blocks * state.block_tokens if at == holder and state.prefix_caching else 0
            spare_s = headroom_s(now_s, self._sending(now_s, job, state, held), state, sent.values())
            if isfinite(left_s):
                spare_s -= self._margins[at] * left_s
            if at == holder and held and spare_s >= 0:
                return at
            room[at] = (spare_s, -state.tokens - sum(other.tokens for other in sent.values()))
        enough = {at: of for at, of in room.items() if of[0] >= 0}
        if not enough:
            return max(room, key=lambda at: room[at])
        if self._packing == "least" or not isfinite(left_s):
            return min(enough, key=lambda at: (enough[at][0], -enough[at][1]))
        stale = any(replicas[at].taken_s < now_s for at in enough)
        least_s = max(spare_s for spare_s, _ in enough.values()) - left_s * (NEAR_STALE if stale else NEAR)
        return min((at for at in enough if enough[at][0] >= least_s), key=lambda at: self._last_turn[at])

    def _sent_since(self, replica: int, state: ReplicaState) -> dict[str, Sent]:
        """What this view of the replica does not show. Instants can't tell: a job may be sent as a view is taken."""
        if self._seen.get(replica) is not state:
            self._seen[replica] = state
            before = self._sent[replica]
            self._sent[replica] = {name: before[name] for name in state.unseen if name in before}
        return self._sent[replica]

    def _sending(self, now_s: float, job: Job, state: ReplicaState, held_tokens: int) -> Sent:
        tokens = max(1, job.prompt_tokens - held_tokens)
        return Sent(now_s, job.ttft_due_s, tokens, job.tpot_s, -(-tokens // state.block_tokens))

    def _refused(self, replica: int, job: Job) -> None:
        self._margins[replica] = min(MARGIN_MOST, self._margins[replica] + MARGIN_STEP)
        self._sent[replica].pop(job.id, None)


def pressure(now_s: float, state: ReplicaState) -> float:
    """How much is taken of what the promises of a replica's jobs leave: above 1 some can't be kept.

    The most of four: the time that promised prompts need of the time until they are due, the length of a step with all
    promised decodes of the tightest pace, the KV memory that is in use or waited for, and the share of jobs that asked
    for a promise and did not get one: a scheduler that puts those off has room for all the others.
    """
    taken = 1 - (state.free_blocks - state.waiting_blocks) / state.blocks
    taken = max(taken, state.put_off / max(1, state.jobs) / PUT_OFF)
    decodes = sum(jobs for _, jobs in state.paces)
    budget_s = state.paces[0][0] if state.paces else NO_PACE_S
    if decodes:
        taken = max(taken, state.time.seconds(Batch((), decodes, state.kv_tokens)) / budget_s)
    size = min(
        state.time.inverse(budget_s, decodes=decodes, kv_tokens=state.kv_tokens), state.limits.max_num_batched_tokens
    )
    before = 0
    for due_s, tokens in state.due:
        before += tokens
        needed_s = -(-before // max(1, size)) * budget_s
        taken = max(taken, needed_s / max(due_s - now_s, 1e-3))
    return min(taken, MOST_PRESSURE)
