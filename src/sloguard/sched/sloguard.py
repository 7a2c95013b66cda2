"""`sloguard`: decide as late as possible, and set aside what costs most.

batches    as `slos-serve` builds them (dynamic_batch.py): no longer than the nearest deadlines allow, streams that ran
           ahead of their pace pause for prompts, drafts where the engine offers them
deciding   a promise is made when a prompt starts, not when it comes. Until then nothing is reserved for it, and what
           came since may take its place
shedding   of the prompts that can't all be in time, the costliest wait (shed.py): most promises are kept so. One that
           could not be in time even alone is best effort, as is one that is not asked for by a time
pace       together, the promised decodes must leave a part of the engine's time, or nobody keeps pace
memory     a promise is made only if all that are promised fit to their ends (memory_ahead.py), each with the answer it
           is likely to give: many are held to their mean, which errs less than many cautious guesses
best effort  as in `slos-serve`: leftovers, evicted first, with a share that grows with the age of the eldest
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import inf

import numpy as np

from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch
from sloguard.sched.dynamic_batch import MARGIN, SCARCE, DynamicBatch, tiers_of
from sloguard.sched.job import Job, Tier
from sloguard.sched.memory_ahead import MemoryAhead, Row
from sloguard.sched.outlook import Outlook
from sloguard.sched.patience import SHARE as PATIENCE
from sloguard.sched.patience import Patience
from sloguard.sched.pb_star import Tiers
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sched.scene import KEPT_SHARE, Due, Scene, look, prompt_due_s, share_of
from sloguard.sched.scene import pace_s as pace_of_s
from sloguard.sched.shed import Prompt, set_aside

BUSY = 0.95  # of the time, what promised decodes may take
FULL = 1.05  # of memory, what promises may be expected to fill at their peak: more pays than less
SPARE_FULL = 0.9  # and what best-effort jobs may fill it to
PROBE_TOKENS = (512, 1536)  # between which the cost of a prompt token is taken
LEAST_DECODES = 8  # from which on that of a decode is


class Sloguard:
    """How daring it is: `busy` is the share of the time that promised decodes may take, `full` that of memory that
    promises may be expected to fill at their peak, `patience` the share of the usual TTFT that a batch may take.

    Ablations: without `shed` prompts wait in order of deadline until they are late; without `speculation` nothing is
    drafted. Raises SpecError for shares that are none.
    """

    def __init__(
        self,
        *,
        shed: bool = True,
        speculation: bool = True,
        busy: float = BUSY,
        full: float = FULL,
        patience: float = PATIENCE,
    ) -> None:
        for name, share, most in (("busy", busy, 1.0), ("full", full, 2.0), ("patience", patience, 1.0)):
            if not 0 < share <= most:
                raise SpecError(name, share, "is no such share", f"Give more than 0, and {most:g} at most.")
        self.shed, self.speculation = shed, speculation
        self._busy, self._full = busy, full
        self._undecided: set[str] = set()
        self._pace_s = inf
        self._patience = Patience(patience)
        self._scarce = False
        self._outlook = Outlook(cautious=False)

    def plan(self, now_s: float, view: View) -> Plan:
        if not self.speculation:
            view = replace(view, speculation=None)
        scene = look(now_s, view)
        self._outlook.learn(view, (job for _, _, job in scene.queue))
        hopeless = self._hopeless(view, scene)
        scene.set_tiers(scene.new)
        if scene.tpots_s:
            self._pace_s = scene.tpots_s[0]
        tiers = tiers_of(view, scene)
        pace_s = min(tiers.tau_s, default=self._pace_s)
        new = list(scene.new)
        declined = hopeless
        kept_share = share_of(scene)
        if new or scene.idle:
            rows = [self._row(view, job) for _, _, job in chain(scene.decodes, scene.prompts, scene.queue)]
            aged = kept_share >= KEPT_SHARE and scene.eldest  # from now on, no promise takes what it needs
            memory = MemoryAhead([*rows, self._row(view, aged)] if aged else rows)
            if new:
                seats = view.limits.max_num_seqs - scene.promised - bool(aged)
                declined += self._choose(view, scene, tiers, pace_s, memory, seats)
            if not aged and scene.idle and not self._spare_fits(view, scene, memory):
                scene.idle.clear()
            self._scarce = memory.peak_tokens() > SCARCE * view.kv.capacity_tokens
        patience_s = self._patience.longest_s(view.time, len(scene.decodes), scene.kv_tokens)
        batch = DynamicBatch(view, scene, tiers, pace_s, None, kept_share, not self._scarce, patience_s)
        made = batch.plan(True)
        for job in new:
            if job.id in made.admit and job.tier is Tier.NEW:
                job.tier = Tier.PROMISED
        return replace(made, decline=declined) if declined else made

    def _hopeless(self, view: View, scene: Scene) -> tuple[str, ...]:
        """Sets jobs aside whose pace no engine step could keep; returns those for another replica to try."""
        step_s = view.time.seconds(Batch((), 1, 1)) * MARGIN
        hopeless = [job for job in scene.new if step_s > self._busy * pace_of_s(job)]
        for job in hopeless:
            scene.new.remove(job)
            if not job.hops_left:
                job.tier = Tier.BEST_EFFORT
                scene.idle.append(job)
        return tuple(job.id for job in hopeless if job.hops_left)

    def _choose(
        self, view: View, scene: Scene, tiers: Tiers, pace_s: float, memory: MemoryAhead, seats: int
    ) -> tuple[str, ...]:
        """Queues the prompts that may start now; returns those that had better be another replica's."""
        self._patience.see(job for job in scene.new if job.id not in self._undecided)
        self._undecided = {job.id for job in scene.new}
        costs = _Costs.of(view, scene)
        in_time: list[Due] = []
        set_back: list[Job] = []
        for order, job in enumerate(scene.new):
            due_s = prompt_due_s(job)
            if costs.prompt * (job.known_tokens - view.kv.cached_tokens(job)) <= due_s - scene.now_s - costs.step:
                in_time.append((due_s, scene.jobs + order, job))
            elif job.hops_left:
                set_back.append(job)
            else:
                job.tier = Tier.BEST_EFFORT
                scene.idle.append(job)
        in_time.sort()
        gone = self._shed(view, scene, in_time, costs, pace_s) if self.shed else set[str]()
        load, tightest_s = costs.load(scene, tiers)
        room_tokens = self._full * view.kv.capacity_tokens
        for entry in in_time:
            job = entry[2]
            row = self._row(view, job)
            added, tau_s = costs.decode / pace_of_s(job), tiers.tau_s[scene.tier_of(job)]
            busy = costs.step / min(tightest_s, tau_s) + load + added
            full = seats <= 0 or busy > self._busy or (len(memory) and memory.peak_tokens(row) > room_tokens)
            if full or job.id in gone:
                set_back.append(job)
            else:
                memory.add(row)
                load += added
                tightest_s = min(tightest_s, tau_s)
                seats -= 1
                insort(scene.queue, entry)
        scene.new.clear()
        declined = tuple(job.id for job in set_back if job.hops_left)
        if not (scene.promised or scene.spare or scene.idle) and len(declined) < len(set_back):
            job = next(job for job in set_back if not job.hops_left)  # there is nobody whom it keeps out
            scene.queue.append((prompt_due_s(job), scene.jobs, job))
        return declined

    def _shed(self, view: View, scene: Scene, in_time: Sequence[Due], costs: _Costs, pace_s: float) -> set[str]:
        """Ids of the new prompts that would keep others from being in time."""
        due_s = np.array([due for due, _, _ in scene.decodes]) - scene.now_s
        tpot_s = np.array([pace_of_s(job) for _, _, job in scene.decodes])
        promised = {job.id for _, _, job in chain(scene.prompts, scene.queue)}
        prompts: list[Prompt] = []
        order = sorted((*scene.prompts, *scene.queue, *in_time))
        for prompt_due, _, job in order:
            left_s = max(0.0, prompt_due - scene.now_s)
            tokens = float(np.sum(np.maximum(np.floor((left_s - due_s) / tpot_s) + 1, 0)))
            room_s = left_s - tokens * costs.decode - costs.step * max(1.0, left_s / pace_s)
            cached = 0 if job.computed_tokens else view.kv.cached_tokens(job)
            work_s = costs.prompt * (job.remaining_tokens - cached)
            prompts.append(Prompt(work_s, room_s, job.value, job.id in promised))
        return {order[i][2].id for i in set_aside(prompts)}

    # Memory.

    def _spare_fits(self, view: View, scene: Scene, memory: MemoryAhead) -> bool:
        """Whether the next best-effort job may start: a full memory would only have to evict it again."""
        spare_tokens = sum(sum(self._row(view, job)) for job in (*scene.spare, scene.idle[0]))
        alone = not len(memory) and not scene.spare
        return alone or memory.peak_tokens() + spare_tokens <= SPARE_FULL * view.kv.capacity_tokens

    def _row(self, view: View, job: Job) -> Row:
        return self._outlook.to_come(view, job), job.known_tokens


@dataclass(frozen=True, slots=True)
class _Costs:
    """Seconds: of the shortest `step`, and of each `prompt` token and `decode` in a batch of many."""

    step: float
    prompt: float
    decode: float

    @classmethod
    def of(cls, view: View, scene: Scene) -> _Costs:
        few, many = PROBE_TOKENS
        seconds = view.time.seconds
        prompt = (seconds(Batch(((many, 0),))) - seconds(Batch(((few, 0),)))) / (many - few)
        n = max(len(scene.decodes), LEAST_DECODES)
        kv_tokens = scene.kv_tokens * n // max(len(scene.decodes), 1)
        decode = (seconds(Batch((), 2 * n, 2 * kv_tokens)) - seconds(Batch((), n, kv_tokens))) / n
        return cls(seconds(Batch(((1, 0),))) * MARGIN, prompt * MARGIN, decode * MARGIN)

    def load(self, scene: Scene, tiers: Tiers) -> tuple[float, float]:
        """The part of the time that promised decodes take, those of prompts on their way included, beside the constant
        part of each step; and how often the tightest of them needs a step, seconds.
        """
        load, tightest_s = 0.0, inf
        for n, tau_s, verified in zip(scene.n, tiers.tau_s, tiers.verified, strict=True):
            if n:
                load += n * (self.decode + (verified - 1) * self.prompt) / tau_s
                tightest_s = min(tightest_s, tau_s)
        for _, _, job in chain(scene.prompts, scene.queue):
            load += self.decode / pace_of_s(job)
            tightest_s = min(tightest_s, tiers.tau_s[scene.tier_of(job)])
        return load, tightest_s
