"""QoServe (arXiv 2503.22562): chunks as large as the decodes' slack allows, and prompts that can't make it stand back.

    slack       the least time until a running job's next token is due, by cumulative deadlines
    chunk       the largest on the grid 128, 136 ... 2552 with 1.2*T(decodes, chunk) <= slack; 128 where none is
    priority    arrival + TTFT + alpha*(prompt tokens left), smaller first: between earliest deadline and shortest job
    alpha       8 ms a token, 1 ms at low load. Low: the prompts here take less than the shortest TTFT promised to them
    relegated   a prompt with now + (tokens left)/throughput > due: after all others, for good
    throughput  moving average of the prompt tokens a second of steps that filled their chunk

Relegated jobs, and jobs that were promised nothing, are best effort: last to be served, first to be evicted, and their
slack counts for nothing. What had been promised before it came here (the later stages of a request) is not relegated.
The paper leaves open how load is told, how fast the average forgets, and from where it starts: at the predicted
throughput of the largest chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sloguard.perf.batch_time import Batch
from sloguard.sched.job import Job, Tier
from sloguard.sched.placing import FOREVER_S, Placing, PromptWork, Ranked, ranked
from sloguard.sched.plan import Plan
from sloguard.sched.policy import View

GRID_TOKENS = range(128, 2553, 8)
LEAST_TOKENS, MOST_TOKENS = GRID_TOKENS[0], GRID_TOKENS[-1]
SAFETY = 1.2  # predicted times are taken to be this much longer
BUSY_TOKEN_S, QUIET_TOKEN_S = 8e-3, 1e-3
FORGETTING = 0.1  # weight of the newest throughput


class QoServe:
    """Dynamic chunks, hybrid priority, eager relegation."""

    def __init__(self) -> None:
        self._work = PromptWork()
        self._throughput = 0.0
        self._full_step: tuple[float, int] | None = None  # since when, and its prompt tokens

    def plan(self, now_s: float, view: View) -> Plan:
        self._learn(now_s, view)
        placing = Placing(view, _victim)
        placing.decode(placing.decodes)
        changes_s = FOREVER_S
        if placing.prompts or (view.waiting and placing.seats > 0):
            left = self._prompt_tokens(placing)
            changes_s = self._relegate(now_s, left)
            placing.limit(_chunk_tokens(now_s, placing))
            before = placing.budget
            placing.fill(self._order(left))
            if before and placing.budget <= 0:
                self._full_step = now_s, before
            if view.waiting and not view.limits.scheduler_reserve_full_isl:
                changes_s = now_s  # a smaller chunk may fit the memory that a larger one did not
        return placing.plan(holds_until_s=changes_s)

    def _learn(self, now_s: float, view: View) -> None:
        if not self._throughput:
            self._throughput = MOST_TOKENS / max(view.time.seconds(Batch(((MOST_TOKENS, 0),))), 1e-9)
        if self._full_step:
            begun_s, tokens = self._full_step
            if now_s > begun_s:
                self._throughput += FORGETTING * (tokens / (now_s - begun_s) - self._throughput)
            self._full_step = None

    def _prompt_tokens(self, placing: Placing) -> list[tuple[Job, int]]:
        """Prompts, running and waiting, with the tokens each has left."""
        waiting = placing.view.waiting
        work = self._work.of(waiting, placing.view.kv)
        left = [(job, job.remaining_tokens) for job in placing.prompts]
        return left + [(job, work[job.id]) for job in waiting]

    def _relegate(self, now_s: float, left: Iterable[tuple[Job, int]]) -> float:
        """Returns when the next one is relegated if nothing happens until then."""
        next_s = FOREVER_S
        for job, tokens in left:
            if job.tier is not Tier.NEW:
                continue
            if job.ttft_s is None:
                if job.tpot_s is None:
                    job.tier = Tier.BEST_EFFORT
                continue
            if job.first_token_s is not None:
                continue  # evicted after its first token, which is no longer at stake
            begin_s = job.arrival_s + job.ttft_s - tokens / self._throughput
            if begin_s < now_s:
                job.tier = Tier.BEST_EFFORT
            elif begin_s < next_s:
                next_s = begin_s
        return next_s

    def _order(self, left: Sequence[tuple[Job, int]]) -> Iterable[Job]:
        backlog, shortest_s = 0, FOREVER_S
        for job, tokens in left:
            if job.ttft_s is not None and job.tier is not Tier.BEST_EFFORT:
                backlog += tokens
                shortest_s = min(shortest_s, job.ttft_s)
        token_s = BUSY_TOKEN_S if backlog > shortest_s * self._throughput else QUIET_TOKEN_S
        jobs: list[Ranked] = [
            (
                2 * (job.tier is Tier.BEST_EFFORT) + (job.ttft_s is None),
                job.arrival_s + (job.ttft_s or 0.0) + token_s * tokens,
                job.id,
                job,
            )
            for job, tokens in left
        ]
        return ranked(jobs)


def _chunk_tokens(now_s: float, placing: Placing) -> int:
    least_due_s, kv_tokens = FOREVER_S, 0
    for job in placing.decodes:
        kv_tokens += job.computed_tokens + 1
        if job.tier is not Tier.BEST_EFFORT:
            least_due_s = min(least_due_s, job.token_due_s)
    if least_due_s == FOREVER_S:
        return MOST_TOKENS
    context = placing.prompts[0].computed_tokens if placing.prompts else 0
    slack_s = (least_due_s - now_s) / SAFETY
    fits = placing.view.time.inverse(slack_s, decodes=len(placing.decodes), kv_tokens=kv_tokens, context_tokens=context)
    return max(LEAST_TOKENS, min(MOST_TOKENS, fits - fits % GRID_TOKENS.step))


def _victim(running: Sequence[Job]) -> int:
    """Best effort first, then the latest due, then the last admitted."""

    def rank(i: int) -> tuple[bool, float, int]:
        job = running[i]
        return job.tier is Tier.BEST_EFFORT, job.ttft_due_s, i

    return max(range(len(running)), key=rank)
