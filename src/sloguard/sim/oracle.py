"""How many requests any policy could serve in time: a linear program that knows arrivals and lengths.

It is a relaxation: every schedule of every policy on these replicas, without drafts, is a point of it, so its optimum
is an upper bound. Time is cut into buckets; a step that spans several counts in each by the share of its time there.
Stages that begin to decode in the same coarse bucket, with equal pace, are a cohort.

    x_r        in [0, 1]: request r attains. Nobody else gets any work
    h          share of a stage's prefill work that is done in a fine bucket, or in a coarse one where it has long
    D_c, K_c   decodes of a cohort in a coarse bucket, and KV tokens they read
    n, N       steps in a fine bucket, and in a coarse one, of all replicas together

    maximise sum x, subject to
    (1) prompt   h sums to x between the earliest opening of the stage and the due time of its first token
    (2) decode   D_c, K_c up to the end of a bucket >= sum over its requests of x * (decodes, reads due by then)
    (3) time     for each piece of the batch time: base*n + its cost of what is computed <= replicas * length of bucket;
                 what is only known to be done in a coarse bucket may be done in any of its fine ones
    (4) steps    N >= D_c / (members of the cohort that are open then); sum of n while a prompt may run >= x
    (5) memory   K_c in all <= N * KV tokens of a replica; D_c in all <= N * max_num_seqs

Why each holds. (3): a step takes max over pieces of a linear function, and the sum of maxima is at least the maximum of
the sums; padding only adds. Work under one piece is counted in shares of the work under another at the least favourable
ratio of the two over the prompt. (4): a step yields at most one token to a request. (5): a step reads only what memory
holds. Tokens that the prefix cache might hold are taken as held, before anybody computed them. A stage after the first
opens when the one before it could have ended on an idle replica, and its due times count from when that one was due at
the latest. Paces are judged by `TpotRule.DEADLINE`.

A run that ends is easier than one that goes on: answers may be finished after the last arrival. So a bound may also be
had for the same requests arriving again and again: time is then a circle, as long as their arrivals take.

An evicted job that is computed again gets one token from its prefill. The bound takes that for no cheaper than the
decode it stands for; only where nearly all of it hits the prefix cache might a batch time say otherwise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import numpy as np

from sloguard.contract import DEADLINE_CHECK_TOKENS, DEADLINE_TOLERANCE
from sloguard.perf.batch_time import BatchTime
from sloguard.request import Request, Stage
from sloguard.sim.capacity import TARGET, Bracket, search
from sloguard.sim.program import Floats, Ints, Program

# Buckets: shorter ones bound more tightly and take longer to solve.
FINE_S = 0.1  # at least: a fraction of a TTFT
MOST_FINE = 3000
COARSE_S = 2.0  # at least
WINDOW_COARSE = 12  # in which the decodes of a stage lie, on average


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds that a step takes at least, by one piece of a batch time or by the launching of its kernels."""

    base_s: float
    token_s: float
    pair_s: float
    context_s: float
    chunk_s: float
    decode_s: float
    kv_token_s: float

    def prefill_s(self, tokens: int, context: int) -> float:
        """Beyond the base, of a prompt in one chunk; in several it is no less."""
        pairs = tokens * (context + tokens / 2)
        return self.token_s * tokens + self.pair_s * pairs + self.context_s * context + self.chunk_s

    def decode_step_s(self, kv_tokens: int) -> float:
        return self.base_s + self.decode_s + self.kv_token_s * kv_tokens


def lines_of(time: BatchTime) -> list[Line]:
    """A step of this batch time takes at least the maximum of these."""
    cpu_s = time.cpu_sequence_s
    launch = Line(time.launch_s + time.cpu_step_s, 0.0, 0.0, 0.0, cpu_s, cpu_s, 0.0)
    return [launch] * (time.launch_s > 0) + [
        Line(
            piece.base_s + time.cpu_step_s,
            piece.prefill_token_s,
            piece.attention_pair_s,
            piece.context_token_s,
            cpu_s,
            piece.decode_s + cpu_s,
            piece.kv_token_s,
        )
        for piece in time.lower_pieces()
    ]


def _prefill_s(lines: Sequence[Line], tokens: int, context: int) -> float:
    """The least time of a prompt on an idle replica, in however many steps.

    In `c` steps it is max over lines of base*c + work: convex in c, so least at one step or where two lines cross. More
    than one can only help under a line with a negative base.
    """
    works = [(line.base_s, line.prefill_s(tokens, context)) for line in lines]
    crossings = [(w - v) / (a - b) for (a, v), (b, w) in combinations(works, 2) if a != b and min(a, b) < 0]
    return min(max(base_s * c + work_s for base_s, work_s in works) for c in (1.0, *crossings) if c >= 1)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a stage needs if its request is to attain."""

    request: int
    opens_s: float
    first_s: float  # the earliest its first token can come
    due_s: float  # of the first token
    tokens: int
    context: int  # tokens before them that the cache may hold
    shared: int  # tokens of the context that others may hold too
    decodes: tuple[tuple[int, float], ...]  # (so many decodes, due at), of each instant that is judged

    @property
    def pace_s(self) -> float:
        """Seconds a token that it has at least, rounded: stages of equal pace decode alike."""
        count, due_s = self.decodes[0]
        return round((due_s - self.due_s) / count, 6)

    @property
    def size(self) -> int:
        return self.context + self.tokens


def upper_bound(
    requests: Sequence[Request],
    time: BatchTime,
    replicas: int = 1,
    *,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    repeated: bool = False,
) -> int:
    """The most of `requests` that can attain on so many replicas, with `kv_tokens` of KV memory each.

    With `repeated` it is the long-run mean if they come again and again: no run that ends is bound by it.
    """
    lines = lines_of(time)
    demands, hopeless = demands_of(requests, lines)
    possible = np.ones(len(requests))
    possible[list(hopeless)] = 0.0
    if not demands:
        return int(possible.sum())
    arrivals_s = [r.arrival_s for r in requests]
    period_s = (max(arrivals_s) - min(arrivals_s)) * len(requests) / max(1, len(requests) - 1) if repeated else 0.0
    fluid = _Fluid(demands, possible, lines, replicas, period_s)
    fluid.add_prompts()
    fluid.add_decodes(kv_tokens, max_num_seqs)
    return int(fluid.program.maximum(fluid.x) + 1e-6)


def capacity_bound(
    make_requests: Callable[[float], Sequence[Request]],
    time: BatchTime,
    replicas: int = 1,
    *,
    guess: float = 1.0,
    target: float = TARGET,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    repeated: bool = False,
) -> Bracket:
    """The rates between which the bound on attainment falls below `target`: no policy's capacity is above `high`."""
    probes = search(guess)
    rate = next(probes)
    while True:
        requests = make_requests(rate)
        most = upper_bound(requests, time, replicas, kv_tokens=kv_tokens, max_num_seqs=max_num_seqs, repeated=repeated)
        try:
            rate = probes.send(most >= target * len(requests) - 1e-9)
        except StopIteration as found:
            return found.value


def demands_of(requests: Sequence[Request], lines: Sequence[Line]) -> tuple[list[Demand], set[int]]:
    """What the requests need, and those of them that would not attain on an idle replica either."""
    texts = Counter(ids[0] for r in requests if r.prefix and (ids := r.prefix.block_ids))
    demands: list[Demand] = []
    hopeless: set[int] = set()
    for number, request in enumerate(requests):
        shared = 0
        if request.prefix and request.prefix.block_ids and texts[request.prefix.block_ids[0]] > 1:
            shared = len(request.prefix.block_ids) * request.prefix.block_tokens
        opens_s = sent_s = request.arrival_s
        context = 0
        for index, stage in enumerate(request.stages):
            held = min(shared, stage.prompt_tokens - 1) if index == 0 else context
            tokens = stage.prompt_tokens - held if index == 0 else stage.prompt_tokens
            due_s, ends_s, decodes = _dues(stage, sent_s)
            first_s = opens_s + _prefill_s(lines, tokens, held)
            demand = Demand(number, opens_s, first_s, due_s, tokens, held, min(shared, held), decodes)
            if first_s > due_s:
                hopeless.add(number)
            if due_s < inf:
                demands.append(demand)
            step_s = max(line.decode_step_s(demand.size) for line in lines)
            opens_s = first_s + (stage.output_tokens - 1) * step_s
            if opens_s > ends_s:
                hopeless.add(number)
            sent_s = ends_s
            context = demand.size + stage.output_tokens
    return [d for d in demands if d.request not in hopeless], hopeless


def _dues(stage: Stage, sent_s: float) -> tuple[float, float, tuple[tuple[int, float], ...]]:
    """When the first and the last token are due, and the decodes in between, for a stage sent at `sent_s` or before."""
    slo, last = stage.slo, stage.output_tokens - 1
    ends_s = inf if slo.e2el_s is None else sent_s + slo.e2el_s
    first_s = min(ends_s, inf if slo.ttft_s is None else sent_s + slo.ttft_s)
    decodes: list[tuple[int, float]] = []
    if slo.tpot_s is not None and slo.ttft_s is not None:
        pace_s = slo.tpot_s * DEADLINE_TOLERANCE
        checked = [*range(DEADLINE_CHECK_TOKENS, last, DEADLINE_CHECK_TOKENS), last]
        decodes = [(k, min(ends_s, sent_s + slo.ttft_s + k * pace_s)) for k in checked if k]
    elif last and ends_s < inf:
        decodes = [(last, ends_s)]
    if decodes:
        ends_s = decodes[-1][1]
    return first_s, ends_s if last else first_s, tuple(decodes)


class _Fluid:
    """The linear program: `x` of its requests, and what `program` says of them. With a period, time is a circle."""

    def __init__(
        self, demands: Sequence[Demand], possible: Floats, lines: Sequence[Line], replicas: int, period_s: float
    ) -> None:
        self.demands, self.lines = demands, lines
        self.program = Program()
        self.start_s = min(d.opens_s for d in demands)
        end_s = max(max(d.due_s, d.decodes[-1][1] if d.decodes else 0.0) for d in demands)
        span_s = period_s or end_s - self.start_s
        windows_s = [d.decodes[-1][1] - d.first_s for d in demands if d.decodes] or [0.0]
        fine_s = max(FINE_S, span_s / MOST_FINE)
        each = round(max(COARSE_S, sum(windows_s) / len(windows_s) / WINDOW_COARSE) / fine_s)
        self.coarse = int(span_s / (fine_s * each)) + 1
        if period_s:  # whole buckets make up the circle
            fine_s = period_s / (self.coarse * each)
        self.fine_s, self.coarse_s = fine_s, fine_s * each
        fine = self.coarse * each
        self.x = self.program.columns(possible)
        self.n = self.program.columns(np.full(fine, inf))
        self.n_coarse = self.program.columns(np.full(self.coarse, inf))
        self.time = [self.program.rows(np.full(fine, replicas * fine_s)) for _ in lines]
        # What is done in a coarse bucket is done in its fine ones, at any pace.
        self.coarse_time = [self.program.rows(np.zeros(self.coarse)) for _ in lines]
        within = np.arange(fine) // each
        for line, rows, coarse_rows in zip(lines, self.time, self.coarse_time, strict=True):
            self.program.add(rows, self.n, line.base_s)
            spent_s = self.program.columns(np.full(fine, inf))
            self.program.add(rows, spent_s, 1.0)
            self.program.add(coarse_rows[within], spent_s, -1.0)
        steps = self.program.rows(np.zeros(self.coarse))
        self.program.add(steps, self.n_coarse, 1.0)
        self.program.add(steps[within], self.n, -1.0)

    def add_prompts(self) -> None:
        for demand in self.demands:
            x = self.x[demand.request]
            wide = demand.due_s - demand.opens_s > self.coarse_s
            n, time, bucket_s = (
                (self.n_coarse, self.coarse_time, self.coarse_s) if wide else (self.n, self.time, self.fine_s)
            )
            at, overlap_s = self._window(demand.opens_s, demand.due_s, bucket_s)
            costs_s = _prefill_costs_s(demand, self.lines)
            # One replica computes the prompt, so its own time in a bucket bounds the share as well.
            h = self.program.columns(np.minimum(1.0, overlap_s / max(*costs_s, 1e-9)))
            for columns in (h, n[at % len(n)]):
                row = self.program.rows(np.zeros(1))
                self.program.add(row, x, 1.0)
                self.program.add(row, columns, -1.0)
            for cost_s, rows in zip(costs_s, time, strict=True):
                self.program.add(rows[at % len(rows)], h, cost_s)

    def add_decodes(self, kv_tokens: int | None, max_num_seqs: int | None) -> None:
        memory, seats = (
            self.program.rows(np.zeros(self.coarse)) if limit else None for limit in (kv_tokens, max_num_seqs)
        )
        for rows, limit in ((memory, kv_tokens), (seats, max_num_seqs)):
            if rows is not None and limit is not None:
                self.program.add(rows, self.n_coarse, -float(limit))
        cohorts: dict[tuple[int, float, int], list[Demand]] = defaultdict(list)
        for demand in self.demands:
            if demand.decodes:
                opened = int((demand.first_s - self.start_s) / self.coarse_s)
                cohorts[opened, demand.pace_s, demand.shared].append(demand)
        for (opened, _, shared), members in cohorts.items():
            at, decodes, reads = self._cohort(opened, members)
            at %= self.coarse
            for line, rows in zip(self.lines, self.coarse_time, strict=True):
                self.program.add(rows[at], decodes, line.decode_s)
                self.program.add(rows[at], reads, line.kv_token_s)
            if memory is not None:
                self.program.add(memory[at], reads, 1.0)
                self.program.add(memory[at], decodes, -float(shared))
            if seats is not None:
                self.program.add(seats[at], decodes, 1.0)

    def _cohort(self, opened: int, members: Sequence[Demand]) -> tuple[Ints, Ints, Ints]:
        """Its buckets and, in each, columns of its decodes and of what they read."""
        last = max(int((d.decodes[-1][1] - self.start_s) / self.coarse_s) for d in members)
        at = np.arange(opened, last + 1)
        most, active = np.zeros(len(at)), np.zeros(len(at))
        for demand in members:
            buckets, overlap_s = self._window(demand.first_s, demand.decodes[-1][1], self.coarse_s)
            step_s = max(line.decode_step_s(demand.size) for line in self.lines)
            most[buckets - opened] += overlap_s / step_s
            active[buckets - opened] += 1
        decodes = self.program.columns(most)
        reads, ahead, ahead_reads = (self.program.columns(np.full(len(at), inf)) for _ in range(3))
        due, due_reads = self.program.rows(np.zeros(len(at))), self.program.rows(np.zeros(len(at)))
        for rows, done, kept in ((due, decodes, ahead), (due_reads, reads, ahead_reads)):
            self.program.add(rows, done, -1.0)
            self.program.add(rows, kept, 1.0)
            self.program.add(rows[1:], kept[:-1], -1.0)
        ends_s = self.start_s + (at + 1) * self.coarse_s
        for demand in members:
            counts, dues_s = (np.array(column, dtype=np.float64) for column in zip(*demand.decodes, strict=True))
            by_then = np.concatenate([[0.0], counts])[np.searchsorted(dues_s, ends_s, side="right")]
            by_then[int((dues_s[-1] - self.start_s) / self.coarse_s) - opened :] = counts[-1]
            x = self.x[demand.request]
            for rows, owed in ((due, by_then), (due_reads, by_then * (demand.size + (by_then + 1) / 2))):
                new = np.diff(owed, prepend=0.0)
                some = np.flatnonzero(new)
                self.program.add(rows[some], x, new[some])
        steps = self.program.rows(np.zeros(len(at)))
        self.program.add(steps, decodes, 1.0)
        self.program.add(steps, self.n_coarse[at % self.coarse], -active)
        return at, decodes, reads

    def _window(self, opens_s: float, closes_s: float, bucket_s: float) -> tuple[Ints, Floats]:
        """Buckets that overlap a span of time, and by how many seconds."""
        first = int((opens_s - self.start_s) / bucket_s)
        last = int((closes_s - self.start_s) / bucket_s)
        at = np.arange(first, last + 1)
        begins_s = self.start_s + at * bucket_s
        overlap_s = np.minimum(begins_s + bucket_s, closes_s) - np.maximum(begins_s, opens_s)
        return at, np.maximum(0.0, overlap_s)


def _prefill_costs_s(demand: Demand, lines: Sequence[Line]) -> list[float]:
    """Seconds of the whole prefill under each line: a share h of the work under the costliest takes at least h of them.

    At token u of the prompt a line costs rate(u), linear in u. So a stretch of the prompt costs line l at least the
    least ratio of their rates, which is that at either end, of what it costs the reference line.
    """

    def rates(line: Line) -> tuple[float, float]:
        fixed_s = line.chunk_s + line.context_s * demand.context  # of each chunk, so no less than its share of it
        first_s = line.token_s + fixed_s / demand.tokens + line.pair_s * demand.context
        return first_s, first_s + line.pair_s * demand.tokens

    reference = max(lines, key=lambda line: sum(rates(line)))
    whole_s = demand.tokens * sum(rates(reference)) / 2
    if not whole_s:
        return [0.0] * len(lines)
    ends = rates(reference)
    return [whole_s * min(rate / end for rate, end in zip(rates(line), ends, strict=True) if end) for line in lines]
