"""SLOs-Serve (arXiv 2504.08784): promises are made where they can be kept, and batches are built to keep them.

admission  new jobs are decided at the step that first sees them (admission.py). What can't be promised is declined
           while another replica may be asked, and is best effort after that
again      best-effort jobs that are still in time are considered again where the paper replans: after more than 10
           arrivals, more than 6 finished jobs, or 0.1 s
memory     a promise reserves the blocks of the whole answer as expected (View.lengths). Those promised before need,
           together, the peak of their sum: it falls by a whole job whenever one of them ends
batches    dynamic_batch.py, with drafts per tier where the engine offers them (speculate.py); none takes longer than a
           part of the TTFT that is usually asked for, or a job that comes meanwhile is late before it is seen
waiting    best-effort jobs have first call on a share of each batch's prefill tokens, at least one: it grows from 0 to
           `KEPT_SHARE` over the first `KEPT_AFTER_S` seconds of the eldest one's age, and promises count on the rest
           only. The eldest has first call on it, and the memory of the other best-effort jobs. Once the share is
           whole, no new promise is made that would need the eldest's memory or seat. So it is served in every batch
           from the age of `KEPT_AFTER_S` on, or else from when the promises made before leave it room
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from math import ceil, inf

from sloguard.errors import SpecError
from sloguard.sched.admission import Demand, Problem, by_density
from sloguard.sched.dynamic_batch import MARGIN, SCARCE, DynamicBatch, tiers_of
from sloguard.sched.job import Job, Tier
from sloguard.sched.memory_ahead import MemoryAhead, Row
from sloguard.sched.outlook import Outlook
from sloguard.sched.patience import Patience
from sloguard.sched.pb_star import PbStar, Tiers
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View
from sloguard.sched.scene import KEPT_SHARE, Scene, in_time, look, prompt_due_s, share_of

ADMISSIONS = ("auto", "dp", "greedy", "edf")
REPLAN_ARRIVALS, REPLAN_FINISHES, REPLAN_S = 10, 6, 0.1
EXACT_UPTO = 10  # new jobs
MAX_STATES = 1000  # of the exact choice: with what PB* takes, the paper's 2 ms (benchmarks/planner.py)
MAX_OFFERS = 64  # jobs considered at once, earliest deadline first: the others are as if they came later


@dataclass(slots=True)
class AdmissionStats:
    """Decisions by how they were made (`all_fit`: everything offered held, so there was nothing to choose), and jobs
    by outcome.
    """

    all_fit: int = 0
    dp: int = 0
    greedy: int = 0
    edf: int = 0
    promised: int = 0
    best_effort: int = 0
    declined: int = 0


class SlosServe:
    """`admission`: "dp" is exact whatever it takes, "greedy" by density, "edf" by deadline, "auto" exact where that is
    quick, else greedy. `fixed_batch` replaces batches bounded by deadlines by ones of so many tokens. Without
    `best_effort`, what is not promised runs only while nothing promised is there.
    """

    def __init__(
        self,
        *,
        speculation: bool = True,
        fixed_batch: int | None = None,
        best_effort: bool = True,
        admission: str = "auto",
    ) -> None:
        if admission not in ADMISSIONS:
            raise SpecError("admission", admission, "no such way to choose", f"Choose one of {', '.join(ADMISSIONS)}.")
        if fixed_batch is not None and fixed_batch < 1:
            raise SpecError("fixed_batch", fixed_batch, "no token fits such a batch", "Give at least 1.")
        self.speculation, self.fixed_batch, self.best_effort = speculation, fixed_batch, best_effort
        self.admission = admission
        self.stats = AdmissionStats()
        self._patience = Patience()
        self._outlook = Outlook(cautious=True)
        self._missed_out: set[str] = set()  # made best effort here, and still in time when last looked at
        self._replanned_s = -inf
        self._reckoned_s = -inf
        self._peak_blocks = 0
        self._arrivals = self._finishes = self._running = 0
        self._pace_s = inf  # the tightest TPOT seen last: whoever comes next may ask for it

    def plan(self, now_s: float, view: View) -> Plan:
        if not self.speculation:
            view = replace(view, speculation=None)
        scene = look(now_s, view)
        self._arrivals += len(scene.new)
        self._patience.see(scene.new)
        self._finishes += max(0, self._running - len(view.running))
        self._outlook.learn(view, (job for _, _, job in scene.queue))
        offers = self._offers(scene)
        scene.set_tiers(offers)
        tiers = tiers_of(view, scene)
        self._pace_s = pace_s = min(tiers.tau_s, default=self._pace_s)
        kept_share = share_of(scene) if self.best_effort else 0.0
        declined = self._decide(view, scene, tiers, kept_share, offers) if offers else ()
        skip = self._peak_blocks < SCARCE * view.kv.blocks
        patience_s = self._patience.longest_s(view.time, len(scene.decodes), scene.kv_tokens)
        batch = DynamicBatch(view, scene, tiers, pace_s, self.fixed_batch, kept_share, skip, patience_s)
        made = batch.plan(self.best_effort)
        self._running = len(view.running) + len(made.admit) - len(made.evict)
        holds_until_s = -inf if self._missed_out else made.holds_until_s  # they are to be looked at again
        return replace(made, decline=declined, holds_until_s=holds_until_s)

    # Admission.

    def _offers(self, scene: Scene) -> list[Job]:
        """What is to be decided now: new jobs, and at the paper's moments those that could not be promised before and
        are still in time. A job that came as best effort belongs to a request that is lost already.
        """
        if not self._missed_out:
            self._replanned_s, self._arrivals, self._finishes = scene.now_s, 0, 0
            return scene.new
        due = self._arrivals > REPLAN_ARRIVALS or self._finishes > REPLAN_FINISHES
        if not due and scene.now_s < self._replanned_s + REPLAN_S:
            return scene.new
        self._replanned_s, self._arrivals, self._finishes = scene.now_s, 0, 0
        others = [
            job for job in chain(scene.spare, scene.idle) if job.id in self._missed_out and in_time(job, scene.now_s)
        ]
        self._missed_out = {job.id for job in others}
        return scene.new + others

    def _decide(self, view: View, scene: Scene, tiers: Tiers, kept_share: float, offers: list[Job]) -> tuple[str, ...]:
        """Sets the tiers of `offers` and puts them where they belong; returns those to decline."""
        runs = {job.id for job in scene.spare}
        kept_seats = 1 if kept_share >= KEPT_SHARE else 0
        seats = max(0, view.limits.max_num_seqs - kept_seats - scene.promised)
        offered = sorted(offers, key=prompt_due_s)[: min(seats, MAX_OFFERS)]
        chosen = self._choose(view, scene, tiers, kept_share, offered, runs) if offered else set[str]()
        declined: list[str] = []
        for job in offers:
            if job.id in chosen:
                scene.promise(job, job.id in runs)
                self.stats.promised += 1
            elif job.tier is Tier.NEW and job.hops_left:
                declined.append(job.id)
                self.stats.declined += 1
            elif job.tier is Tier.NEW:
                job.tier = Tier.BEST_EFFORT
                self._missed_out.add(job.id)
                scene.idle.append(job)
                self.stats.best_effort += 1
        scene.new.clear()
        scene.spare = [job for job in scene.spare if job.id not in chosen]
        scene.idle = [job for job in scene.idle if job.id not in chosen]
        return tuple(declined)

    def _choose(
        self, view: View, scene: Scene, tiers: Tiers, kept_share: float, offered: list[Job], runs: set[str]
    ) -> set[str]:
        """The ids of those that are promised."""
        now_s, kv, block = scene.now_s, view.kv, view.kv.block_tokens
        self._reckon_memory(view, scene)
        demands: list[Demand] = []
        pairs = 0.0  # of prefill attention, of all of them
        for job in offered:
            computed = job.computed_tokens if job.id in runs else kv.cached_tokens(job)
            tokens = job.known_tokens - computed if not (job.id in runs and job.decoding) else 0
            blocks = ceil((job.known_tokens + self._outlook.to_come(view, job)) / block)
            due_s = (prompt_due_s(job) - now_s) / MARGIN if tokens else 0.0
            demands.append(Demand(due_s, tokens, scene.tier_of(job), blocks, job.value, id=job.id))
            pairs += tokens * (computed + tokens / 2)
        for waits, some in ((False, scene.prompts), (True, scene.queue)):
            for due_s, _, job in some:
                computed = kv.cached_tokens(job) if waits else job.computed_tokens
                tokens = job.known_tokens - computed
                pairs += tokens * (computed + tokens / 2)
                left_s = max(0.0, due_s - now_s) / MARGIN
                demands.append(Demand(left_s, tokens, scene.tier_of(job), promised=True))
        kept_blocks = 0
        if kept_share >= KEPT_SHARE and (eldest := scene.eldest):
            kept_blocks = ceil((eldest.prompt_tokens + self._outlook.answer(view, eldest)) / block)
        ahead = PbStar(
            view.time,
            tiers,
            kv_tokens=self._peak_blocks * block / max(scene.promised, 1),
            context_tokens=int(pairs / max(1, sum(demand.tokens for demand in demands))),
            max_tokens=min(self.fixed_batch or view.limits.max_num_batched_tokens, view.limits.max_num_batched_tokens),
            longest_s=self._pace_s,
            share=1 - kept_share,
        )
        problem = Problem(demands, scene.n, kv.blocks - self._peak_blocks - kept_blocks, ahead)
        chosen = [problem.demands[i] for i in self._solve(problem)]
        self._peak_blocks += sum(demand.blocks for demand in chosen)
        return {demand.id for demand in chosen}

    def _solve(self, problem: Problem) -> set[int]:
        stats, free = self.stats, problem.free
        if problem.holds(set(free)):
            stats.all_fit += 1
            return set(free)
        if self.admission == "edf":
            stats.edf += 1
            return problem.in_order(free)
        if self.admission == "dp" or (self.admission == "auto" and len(free) <= EXACT_UPTO):
            best = problem.best_choice(MAX_STATES if self.admission == "auto" else None)
            if best is not None:
                stats.dp += 1
                return best
        stats.greedy += 1
        return problem.in_order(by_density(problem))

    # Memory.

    def _reckon_memory(self, view: View, scene: Scene) -> None:
        """What promised jobs need at their peak: anew every `REPLAN_S`, and in between each promise adds its whole."""
        if scene.now_s < self._reckoned_s + REPLAN_S:
            return
        self._reckoned_s = scene.now_s
        jobs = [job for some in (scene.decodes, scene.prompts, scene.queue) for _, _, job in some]
        rows: list[Row] = []
        for job in jobs:
            held = job.known_tokens + view.kv.block_tokens  # a job's last block may be all but empty
            rows.append((self._outlook.to_come(view, job), held))
        self._peak_blocks = MemoryAhead(rows).peak_tokens() // view.kv.block_tokens
