"""What a policy with promises has before it: the jobs of a view by promise and by what they need next.

A promised job without a TTFT or a TPOT is given one that nobody would call late, so that it is neither starved nor in
the way of others. One that has fallen too far behind to recover its pace keeps the pace from where it is: it is still
served, but makes nobody else late.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from sloguard.sched.job import Job, Tier
from sloguard.sched.policy import View

NO_TTFT_S = 10.0
NO_TPOT_S = 1.0
BROKEN_TOKENS = 5  # a pace is judged every 10 tokens with 5 % tolerance: half of that is recovered by shorter steps
MAX_TIERS = 4
KEPT_SHARE = 0.1  # of the prefill tokens, for best-effort jobs once the eldest is `KEPT_AFTER_S` old
KEPT_AFTER_S = 30.0

Due = tuple[float, int, Job]  # deadline, a number of its own that decides ties, job


@dataclass(slots=True)
class Scene:
    """`decodes`, `prompts` and `queue` are promised; `queue` has no KV yet. `spare` runs and `idle` waits without a
    promise, in order. `new` has not been decided. `counts` is the number of promised decodes by TPOT, `kv_tokens` what
    they read.
    """

    now_s: float
    jobs: int  # seen so far: the next one's order
    counts: dict[float, int] = field(default_factory=dict[float, int])
    kv_tokens: int = 0
    decodes: list[Due] = field(default_factory=list[Due])
    prompts: list[Due] = field(default_factory=list[Due])
    queue: list[Due] = field(default_factory=list[Due])
    spare: list[Job] = field(default_factory=list[Job])
    idle: list[Job] = field(default_factory=list[Job])
    new: list[Job] = field(default_factory=list[Job])
    tpots_s: tuple[float, ...] = ()  # [L] of promised jobs and of those offered, tightest first
    n: tuple[int, ...] = ()  # [L] promised decodes

    @property
    def promised(self) -> int:
        return len(self.decodes) + len(self.prompts) + len(self.queue)

    @property
    def eldest(self) -> Job | None:
        """Of the best-effort jobs."""
        return min(chain(self.spare, self.idle), key=lambda job: (job.arrival_s, job.id), default=None)

    def set_tiers(self, offered: Iterable[Job]) -> None:
        tpots_s = {pace_s(job) for job in offered}
        tpots_s.update(pace_s(job) for some in (self.prompts, self.queue) for _, _, job in some)
        self.tpots_s = _tiers(sorted(tpots_s | self.counts.keys()))
        n = [0] * len(self.tpots_s)
        for tpot_s, count in self.counts.items():
            n[self._tier(tpot_s)] += count
        self.n = tuple(n)

    def tier_of(self, job: Job) -> int:
        return self._tier(pace_s(job))

    def _tier(self, tpot_s: float) -> int:
        """The loosest that is tight enough."""
        return bisect_right(self.tpots_s, tpot_s) - 1

    def promise(self, job: Job, runs: bool) -> None:
        """Puts a job where promised ones are; whoever calls takes it from where it was."""
        job.tier = Tier.PROMISED
        entry = (prompt_due_s(job), self.jobs, job)
        self.jobs += 1
        if not runs:
            insort(self.queue, entry)
        elif job.decoding:
            self.decodes.append(entry)
            self.counts[pace_s(job)] = self.counts.get(pace_s(job), 0) + 1
            self.kv_tokens += job.computed_tokens + 1
            tier = self.tier_of(job)
            self.n = (*self.n[:tier], self.n[tier] + 1, *self.n[tier + 1 :])
        else:
            insort(self.prompts, entry)


def look(now_s: float, view: View) -> Scene:
    """Sorts the jobs of a view. Jobs without any promise are best effort from the start."""
    scene = Scene(now_s, len(view.running) + len(view.waiting))
    decodes, prompts, spare, counts = scene.decodes, scene.prompts, scene.spare, scene.counts
    best_effort = Tier.BEST_EFFORT
    kv_tokens = 0
    for order, job in enumerate(view.running):  # read each field once: this loop is most of what a step costs
        if job.tier is best_effort:
            spare.append(job)
            continue
        generated, computed = job.generated_tokens, job.computed_tokens
        if generated and computed + 1 == job.prompt_tokens + generated:
            tpot_s = job.tpot_s or NO_TPOT_S
            if job.paced_from is not None:
                from_s, tokens = job.paced_from
                due_s = from_s + (generated - tokens + 1) * tpot_s
            else:
                start_s = job.first_token_s or 0.0
                ttft_s = job.ttft_s
                if ttft_s is not None and start_s < job.arrival_s + ttft_s:
                    start_s = job.arrival_s + ttft_s
                due_s = start_s + generated * tpot_s
            if due_s < now_s - BROKEN_TOKENS * tpot_s:
                due_s = now_s + tpot_s
            decodes.append((due_s, order, job))
            counts[tpot_s] = counts.get(tpot_s, 0) + 1
            kv_tokens += computed + 1
        else:
            prompts.append((prompt_due_s(job), order, job))
    scene.kv_tokens = kv_tokens
    for order, job in enumerate(view.waiting, len(view.running)):
        if job.tier is best_effort:
            scene.idle.append(job)
        elif job.tier is Tier.PROMISED:
            scene.queue.append((prompt_due_s(job), order, job))
        elif job.ttft_s is None and job.tpot_s is None:
            job.tier = best_effort
            scene.idle.append(job)
        else:
            scene.new.append(job)
    prompts.sort()
    scene.queue.sort()
    return scene


def share_of(scene: Scene) -> float:
    """The part of a batch's prefill tokens that is kept for best-effort jobs: it grows with the age of the eldest."""
    eldest = scene.eldest
    return KEPT_SHARE * min(1.0, max(0.0, scene.now_s - eldest.arrival_s) / KEPT_AFTER_S) if eldest else 0.0


def pace_s(job: Job) -> float:
    return job.tpot_s or NO_TPOT_S


def prompt_due_s(job: Job) -> float:
    """When the token is due that the job's known ones must be computed for."""
    if job.generated_tokens:
        return job.token_due_s if job.tpot_s else job.arrival_s + NO_TTFT_S
    return job.arrival_s + (NO_TTFT_S if job.ttft_s is None else job.ttft_s)


def in_time(job: Job, now_s: float) -> bool:
    """Whether a job was asked for something, and nothing of it has been missed yet."""
    asked = job.ttft_s is not None or job.tpot_s is not None
    return asked and prompt_due_s(job) > now_s and (job.first_token_s or 0.0) <= job.ttft_due_s


def _tiers(tpots_s: Sequence[float]) -> tuple[float, ...]:
    """At most `MAX_TIERS` of them; those left out are held to the next tighter one."""
    if len(tpots_s) <= MAX_TIERS:
        return tuple(tpots_s)
    return tuple(tpots_s[i * len(tpots_s) // MAX_TIERS] for i in range(MAX_TIERS))
