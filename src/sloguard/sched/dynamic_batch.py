"""The next batch (SLOs-Serve, arXiv 2504.08784, algorithm 2).

bound      the nearest token deadline ends the batch: of a decode, or of a prompt that can be finished by it; but no
           batch is longer than the tightest pace, or whoever comes next waits too long: without decodes it may be as
           long as patience.py allows
decodes    those that are due: whose window (one TPOT, or what a draft yields) opens before the batch ends; so looser
           tiers skip batches. Those that are not due yet take what prompts leave; without prompts all of them run
prompts    fill the rest in order of deadline, the last one cut
others     best-effort jobs come last, but for the tokens that are kept for them
memory     where it is short, best-effort jobs are evicted, the youngest first, then the promised one that has computed
           least; nothing promised is evicted to admit another
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from math import ceil, inf

from sloguard.perf.batch_time import Batch
from sloguard.sched.job import Job, Tier
from sloguard.sched.patience import LEAST_CHUNK_TOKENS, LEAST_STEPS
from sloguard.sched.pb_star import Tiers
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sched.scene import Due, Scene
from sloguard.sched.speculate import draft_tiers, spare_draft

MARGIN = 1.02  # by which a step may take longer than predicted without a deadline being missed
HOLD_STEPS = 256
SCARCE = 0.5  # share of the memory that promises take from which on all decodes run: who ends sooner frees it sooner
LEFTOVERS = 0.5  # of the time that promises leave of a batch, for best effort: whoever comes next waits for its end


def tiers_of(view: View, scene: Scene) -> Tiers:
    """How often each tier must be served, and with which drafts where the engine offers them."""
    offered, tpots_s = view.speculation, [tpot_s / MARGIN for tpot_s in scene.tpots_s]
    if not (offered and offered.max_draft_tokens and tpots_s):
        return Tiers.plain(tpots_s)
    return draft_tiers(view.time, tpots_s, scene.n, offered, scene.kv_tokens / max(sum(scene.n), 1))


class DynamicBatch:
    """Builds one plan. `pace_s` is the tightest pace known, `fixed_tokens` a size that replaces the bound in time,
    `kept_share` the part of the prefill tokens that best-effort jobs have first call on. Without `skip` all promised
    decodes run. Where no deadline is missed by it, no batch takes longer than `patience_s`.
    """

    def __init__(
        self,
        view: View,
        scene: Scene,
        tiers: Tiers,
        pace_s: float,
        fixed_tokens: int | None,
        kept_share: float,
        skip: bool,
        patience_s: float = inf,
    ) -> None:
        self._view, self._scene, self._tiers, self._pace_s = view, scene, tiers, pace_s
        self._kv, self._time = view.kv, view.time
        self._patience_s = patience_s
        self._timed, self._kept_share, self._skip = fixed_tokens is None, kept_share, skip
        limit = view.limits.max_num_batched_tokens
        self._max_tokens = min(fixed_tokens or limit, limit) if view.limits.enable_chunked_prefill else limit
        self._tokens: dict[str, int] = {}
        self._admit: dict[str, int] = {}
        self._evicted: dict[str, Job] = {}
        self._spare = sorted(scene.spare, key=lambda job: (job.arrival_s, job.id))  # best-effort jobs that still run
        self._eldest = scene.eldest if kept_share else None
        self._chunks: list[tuple[int, int]] = []
        self._queued = {job.id for _, _, job in scene.queue}
        self._least = min(LEAST_CHUNK_TOKENS, self._max_tokens)
        self._decodes = self._kv_tokens = self._drafted = self._draft_steps = self._placed = 0

    def plan(self, best_effort: bool) -> Plan:
        scene = self._scene
        prompts = sorted((*scene.prompts, *scene.queue))
        skip = bool(prompts) and self._timed and self._skip
        opens_s = self._opening_s() if skip else []
        bound_s = self._bound_s(prompts, sorted(opens_s))
        due, later = self._due(bound_s, opens_s) if skip else ([job for _, _, job in scene.decodes], [])
        self._decode(due)
        room = self._room(bound_s, 0)
        kept = min(max(1, ceil(self._kept_share * room)), self._wanted_by_others()) if self._kept_share else 0
        self._fill(prompts, bound_s, kept)
        if later:
            self._decode(self._fitting(later, bound_s, kept))
        if best_effort or not scene.promised:
            if scene.promised:
                taken_s = self._time.seconds(self._batch()) if self._placed else 0.0
                bound_s = min(bound_s, taken_s + LEFTOVERS * max(0.0, bound_s - taken_s))
            self._others(bound_s, max(kept, self._room(bound_s, 0)))
        if not self._tokens:
            self._something(prompts)
        return Plan(self._tokens, self._admit, tuple(self._evicted), holds_until_s=self._holds_until_s())

    # When the batch must end, and who must be in it.

    def _bound_s(self, prompts: Sequence[Due], opens_s: Sequence[float]) -> float:
        if not self._timed:
            return inf
        scene, time = self._scene, self._time
        decodes = len(scene.decodes)
        bound_s = self._keepable_s()
        if not decodes and self._patience_s < inf:
            bound_s = max(bound_s, self._patience_s)
        if decodes:
            nearest_s = (min(scene.decodes)[0] - scene.now_s) / MARGIN
            shortest_s = time.seconds(Batch((), decodes, scene.kv_tokens))
            bound_s = min(bound_s, max(nearest_s, shortest_s))
        by: list[tuple[float, int, int]] = []  # seconds left, tokens wanted by then, and what the last prompt has
        wanted = 0
        for due_s, _, job in prompts:
            context = self._kv.cached_tokens(job) if job.id in self._queued else job.computed_tokens
            wanted += job.known_tokens - context
            by.append(((due_s - scene.now_s) / MARGIN, wanted, context))
        if self._patience_s < bound_s and prompts:
            room = time.inverse(self._patience_s, decodes=decodes, kv_tokens=scene.kv_tokens)
            if all(wanted <= room * (left_s // self._patience_s) for left_s, wanted, _ in by):
                bound_s = self._patience_s
        for before, (left_s, wanted, context) in enumerate(by):  # the first deadline by which all until then can finish
            if left_s >= bound_s:
                break
            beside = bisect_left(opens_s, scene.now_s + left_s) if opens_s else decodes
            kv_tokens = scene.kv_tokens * beside // max(decodes, 1)
            fits = time.inverse(left_s, decodes=beside + before, kv_tokens=kv_tokens, context_tokens=context)
            if left_s > 0 and fits >= wanted:
                return left_s
        return bound_s

    def _keepable_s(self) -> float:
        """The tightest pace; one that no step with a piece of a prompt could keep bounds nothing."""
        scene = self._scene
        decodes, kv_tokens = len(scene.decodes), scene.kv_tokens
        if not scene.promised:
            held = [job.computed_tokens + 1 for job in scene.spare if job.decoding]
            decodes, kv_tokens = len(held), sum(held)
        step_s = self._time.seconds(Batch(((self._least, 0),), decodes, kv_tokens))
        return self._pace_s if self._pace_s >= step_s else LEAST_STEPS * step_s

    def _opening_s(self) -> list[float]:
        """[decodes] from when on each is due."""
        scene, tau_s = self._scene, self._tiers.tau_s
        window_s = dict(zip(scene.tpots_s, tau_s, strict=True))
        return [
            due_s - (window_s.get(job.tpot_s or 0.0) or tau_s[scene.tier_of(job)]) for due_s, _, job in scene.decodes
        ]

    def _due(self, bound_s: float, opens_s: Iterable[float]) -> tuple[list[Job], list[Job]]:
        """Decodes that are due in a batch of this length, and the others by deadline."""
        end_s = self._scene.now_s + bound_s
        due: list[Job] = []
        later: list[Due] = []
        for entry, open_s in zip(self._scene.decodes, opens_s, strict=True):
            if open_s < end_s:
                due.append(entry[2])
            else:
                later.append(entry)
        later.sort()
        return due, [job for _, _, job in later]

    # Placing.

    def _batch(self) -> Batch:
        """What is in it so far."""
        return Batch(tuple(self._chunks), self._decodes, self._kv_tokens, self._drafted, self._draft_steps)

    def _room(self, bound_s: float, context_tokens: int) -> int:
        """Tokens that the batch still takes of a prompt of which so many are there."""
        room = self._max_tokens - self._placed
        if bound_s < inf and room > 0:
            chunks, tokens = tuple(self._chunks), sum(tokens for tokens, _ in self._chunks)
            if chunks:  # they count as drafts, with what else they cost taken from the time
                plain = Batch((), self._decodes, self._kv_tokens, tokens)
                bound_s -= self._time.seconds(replace(plain, chunks=chunks, draft_tokens=0)) - self._time.seconds(plain)
            fits = self._time.inverse(
                bound_s,
                decodes=self._decodes,
                kv_tokens=self._kv_tokens,
                context_tokens=context_tokens,
                draft_tokens=self._drafted + tokens,
                draft_steps=self._draft_steps,
            )
            room = min(room, fits)
        return room

    def _decode(self, jobs: Iterable[Job], verified: int = 0) -> None:
        """A token for each of these, or as many as are `verified`, or what its tier verifies."""
        tokens, evicted, kv = self._tokens, self._evicted, self._kv
        drafting = (verified or max(self._tiers.verified, default=1)) > 1
        left = self._max_tokens - self._placed
        count = kv_tokens = 0
        wanted = 1
        for job in jobs:
            if left <= 0:
                break
            if evicted and job.id in evicted:
                continue
            if drafting:
                known = self._view.limits.max_model_len - job.known_tokens
                wanted = max(1, min(verified or self._tiers.verified[self._scene.tier_of(job)], known, left))
            given = wanted if kv.grow(job, wanted) else 1  # nobody is evicted for a draft
            if given == wanted > 1 or kv.grow(job, 1) or self._make_room(job, 1):
                tokens[job.id] = given
                left -= given
                count += 1
                kv_tokens += job.computed_tokens + 1
                if drafting:
                    self._drafted += given - 1
                    self._draft_steps = max(self._draft_steps, given - 1)
        self._decodes += count
        self._kv_tokens += kv_tokens
        self._placed = self._decodes + self._drafted + sum(n for n, _ in self._chunks)

    def _fill(self, prompts: Iterable[Due], bound_s: float, kept: int) -> None:
        """Chunks of promised prompts, beside `kept` tokens."""
        blocked = False
        for _, _, job in prompts:
            waits = job.id in self._queued
            if job.id in self._evicted or (blocked and waits):
                continue
            context = self._kv.cached_tokens(job) if waits else job.computed_tokens
            room = self._room(bound_s, context) - kept
            if room <= 0:
                break
            blocked |= not self._place(job, room, waits)  # nobody overtakes a prompt that waits for memory

    def _place(self, job: Job, room: int, waits: bool) -> int:
        """Puts a chunk of at most `room` tokens into the batch; 0 where it is too small or memory doesn't hold it."""
        context = self._kv.cached_tokens(job) if waits else job.computed_tokens
        wanted = job.known_tokens - context
        chunk = min(wanted, room)
        least = 1 if job is self._eldest else self._least
        if chunk < wanted and (chunk < least or not self._view.limits.enable_chunked_prefill):
            return 0
        if waits and not self._seat(job, context, chunk):
            return 0
        if not waits and not (self._kv.grow(job, chunk) or self._make_room(job, chunk)):
            return 0
        self._tokens[job.id] = chunk
        self._chunks.append((chunk, context))
        self._placed += chunk
        return chunk

    def _seat(self, job: Job, cached: int, chunk: int) -> bool:
        """Lets a waiting job run. A promised one and the eldest may take the place of best-effort jobs."""
        limits = self._view.limits
        running = len(self._view.running) - len(self._evicted) + len(self._admit)
        first = job.tier is not Tier.BEST_EFFORT or job is self._eldest
        while True:
            spare = limits.watermark_blocks if running else 0
            if running < limits.max_num_seqs and self._kv.admit(
                job, cached, chunk, whole=limits.scheduler_reserve_full_isl, spare_blocks=spare
            ):
                self._admit[job.id] = cached
                return True
            if not (first and self._spare) or not self._fits_alone(job, cached, chunk):
                return False
            self._evict(self._spare.pop())
            running -= 1

    def _fits_alone(self, job: Job, cached: int, chunk: int) -> bool:
        """Whether it would, with all best-effort jobs evicted: else they would be for nothing."""
        limits, gone = self._view.limits, self._spare
        others = len(self._view.running) - len(self._evicted) + len(self._admit) - len(gone)
        return others < limits.max_num_seqs and self._kv.fits_without(
            job,
            cached,
            chunk,
            gone,
            whole=limits.scheduler_reserve_full_isl,
            spare_blocks=limits.watermark_blocks if others else 0,
        )

    def _make_room(self, job: Job, tokens: int) -> bool:
        """Evicts until `job` can grow; False where it must leave itself."""
        best_effort = job.tier is Tier.BEST_EFFORT
        while not self._kv.grow(job, tokens):
            if self._spare:
                victim = self._spare[-1]
                if victim is job:  # the youngest waits with its KV until others leave
                    return False
                self._spare.pop()
            elif best_effort:
                return False
            else:
                scene = self._scene
                rivals = (j for some in (scene.decodes, scene.prompts) for _, _, j in some if j.id not in self._evicted)
                victim = min(rivals, key=lambda j: j.computed_tokens)
            self._evict(victim)
            if victim is job:
                return False
        return True

    def _evict(self, job: Job) -> None:
        self._kv.release(job)
        self._evicted[job.id] = job
        tokens = self._tokens.pop(job.id, 0)
        if tokens and job.decoding:
            self._decodes -= 1
            self._kv_tokens -= job.computed_tokens + 1
            self._drafted -= tokens - 1
        elif tokens:
            self._chunks.remove((tokens, job.computed_tokens))
        self._placed -= tokens

    def _fitting(self, jobs: Sequence[Job], bound_s: float, kept: int = 0) -> Sequence[Job]:
        """As many of these decodes, from the first on, as fit the batch beside `kept` tokens."""
        if bound_s == inf:
            return jobs[: max(0, self._max_tokens - self._placed)]
        kv_tokens = list(accumulate((job.computed_tokens + 1 for job in jobs), initial=self._kv_tokens))
        chunks = tuple(self._chunks)

        def seconds(more: int) -> float:
            batch = Batch(chunks, self._decodes + more, kv_tokens[more], self._drafted + kept, self._draft_steps)
            return self._time.seconds(batch)

        upto = min(len(jobs), max(0, self._max_tokens - self._placed))
        if seconds(upto) <= bound_s:
            return jobs[:upto]
        return jobs[: bisect_right(range(upto), bound_s, lo=1, key=seconds) - 1]

    # Best effort.

    def _wanted_by_others(self) -> int:
        """Tokens that best-effort jobs could use at once, counted up to a whole batch."""
        wanted = 0
        for job in chain(self._scene.spare, self._scene.idle):
            wanted += job.remaining_tokens
            if wanted >= self._max_tokens:
                break
        return wanted

    def _others(self, bound_s: float, room: int) -> None:
        """Best-effort jobs within `room` tokens, or as many decodes as fit: the eldest, then those that run, decodes
        first, then the queue.
        """
        scene, eldest = self._scene, self._eldest
        if eldest and not (eldest.decoding and eldest in self._spare):
            room -= self._serve(eldest, room, eldest in scene.idle)
        decodes = [job for job in self._spare if job.decoding]
        fitting, before = self._fitting(decodes, bound_s), self._placed
        chosen = fitting if len(fitting) >= room else decodes[: max(room, eldest in decodes)]
        self._decode(chosen, self._spare_draft(chosen, bound_s))
        room -= self._placed - before
        for job in scene.spare:
            if room > 0 and job is not self._eldest and not job.decoding:
                room -= self._serve(job, room, False)
        for job in scene.idle:
            if job is not self._eldest:
                placed = self._serve(job, room, True) if room > 0 else 0
                if not placed:
                    break
                room -= placed

    def _spare_draft(self, decodes: Sequence[Job], bound_s: float) -> int:
        """Tokens that each of these best-effort decodes verifies."""
        offered = self._view.speculation
        if not (offered and decodes):
            return 1
        kv_tokens = sum(job.computed_tokens + 1 for job in decodes)
        return spare_draft(self._time, self._batch(), len(decodes), kv_tokens, offered, bound_s)

    def _serve(self, job: Job, room: int, waits: bool) -> int:
        """Tokens of a best-effort job's prompt that are placed, up to `room`."""
        if job.id in self._evicted or self._placed >= self._max_tokens:
            return 0
        return self._place(job, min(room, self._max_tokens - self._placed), waits)

    def _something(self, prompts: Sequence[Due]) -> None:
        """The batch is empty: no deadline may keep an engine idle that has work."""
        scene, self._least = self._scene, 1
        self._decode(job for _, _, job in sorted(scene.decodes))
        if self._tokens:
            return
        room = self._max_tokens
        if self._view.limits.enable_chunked_prefill:
            room = min(room, max(LEAST_CHUNK_TOKENS, self._room(self._pace_s, 0)))
        jobs = chain((job for _, _, job in prompts), scene.spare, scene.idle)
        waiting = self._queued | {job.id for job in scene.idle}
        for job in jobs:
            if job.id not in self._evicted and self._place(job, room, job.id in waiting):
                return

    def _holds_until_s(self) -> float:
        """While all that runs decodes within the tightest pace and nobody waits, the next batches are the same."""
        scene, view = self._scene, self._view
        count = len(self._tokens)
        if self._drafted or self._chunks or self._evicted or view.waiting or count < len(view.running) or not count:
            return -inf
        step_s = self._time.seconds(Batch((), count, self._kv_tokens))
        last_s = self._time.seconds(Batch((), count, self._kv_tokens + HOLD_STEPS * count))
        bound_s = self._pace_s * (LEFTOVERS if scene.promised and scene.spare else 1)
        return scene.now_s + HOLD_STEPS * step_s if last_s <= bound_s else -inf
