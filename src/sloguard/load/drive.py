"""Offers requests to a server at their due instants, whatever became of the ones before (an open loop)."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from sloguard.errors import SpecError
from sloguard.load.client import SPARE_CONNECTIONS, Client, Exchange
from sloguard.load.preflight import Unavailable, answer_text, preflight
from sloguard.load.prompts import Extra, no_extra, render_stages
from sloguard.load.target import Abilities, Target
from sloguard.load.tokens import Counting
from sloguard.request import End, Request, Timeline

REFUSALS = (429, 503)
SENDS_PER_TURN = 16  # answers are read between, so that a burst does not blind the client
ABORT_CHECK_S = 0.1
PROGRESS_S = 0.5
RECENT = 100  # finished requests shown with each progress: bounds what judging them may cost
PREWARM_WINDOW_S = 0.1
PREWARM_LIMIT = 1024
CONNECT_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Offered:
    """One timeline for each request, in the order given, and what a reader of the figures must know."""

    timelines: tuple[Timeline, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `recent` holds the last finished requests, at most 100."""

    elapsed_s: float
    offered: int
    sent: int
    in_flight: int
    ends: Mapping[End, int]
    recent: Sequence[Timeline]


OnProgress = Callable[[Progress], None]


def offer(
    target: Target,
    requests: Sequence[Request],
    *,
    seed: int,
    request_timeout_s: float = 60.0,
    deadline_s: float | None = None,
    warmup: int = 0,
    extra: Extra = no_extra,
    on_progress: OnProgress | None = None,
    abort_when: Callable[[], bool] | None = None,
    stop_when: Callable[[Timeline], bool] | None = None,
) -> Offered:
    """Sends every request at its `arrival_s` after the start of the run and returns what happened to each.

    A request that is not answered `request_timeout_s` after it was sent ends TIMED_OUT. At `deadline_s` after the
    start, what is under way ends TIMED_OUT and what was not sent CANCELLED. `warmup` requests like the first ones,
    with prompts of their own, are answered before the start and left out. `extra` adds fields to the bodies of both
    (`promise_fields` of load/promises.py, for example). `on_progress` is called twice a second.

    `abort_when` says that the server is the caller's own and has died: what is unfinished ends FAILED. With it, a
    server that does not answer at all gives FAILED timelines too; without it, that is a SpecError naming the URL.
    `stop_when`, told of each request as it ends, ends the run: what is unfinished, or was not sent, ends CANCELLED.
    """
    if not requests:
        return Offered((), ())
    with Client(target) as client:
        try:
            abilities, notes = preflight(client, target, seed)
        except Unavailable as reason:
            if abort_when is None:
                fix = "Start the server, or check the URL."
                raise SpecError("--base-url", target.base_url, f"the server {reason}", fix) from None
            return Offered(tuple(_unsent(r, End.FAILED, f"the server {reason}") for r in requests), ())
        if warmup:
            warm = [_warmup_request(requests[i % len(requests)], i) for i in range(warmup)]
            _Run(
                client, _jobs(target, abilities, warm, seed, extra), request_timeout_s, None, None, abort_when, None
            ).go()
        jobs = _jobs(target, abilities, requests, seed, extra)
        with _collector_paused():
            _prewarm(client, [r.arrival_s for r in requests])
            _Run(client, jobs, request_timeout_s, deadline_s, on_progress, abort_when, stop_when).go()
    return Offered(tuple(job.timeline() for job in jobs), (*notes, *_notes(jobs, abilities)))


@dataclass(slots=True)
class _Job:
    """One request under way. Instants are absolute until `timeline`."""

    request: Request
    payloads: tuple[bytes, ...]
    start_s: float = 0.0
    stage: int = 0
    later_due_s: list[float] = field(default_factory=list)  # of the stages after the first
    sent_s: float | None = None
    answers: list[Exchange] = field(default_factory=list)
    ended_s: float | None = None
    end: End | None = None
    error: str = ""

    def timeline(self) -> Timeline:
        stages = [answer.tokens for answer in self.answers]
        token_s = np.concatenate([np.empty(0), *(tokens.token_s() for tokens in stages)])
        chunk_tokens = np.concatenate([np.empty(0, dtype=np.int32), *(tokens.chunk_tokens() for tokens in stages)])
        prompt_tokens = [tokens.prompt_tokens for tokens in stages]
        return Timeline(
            request=self.request,
            due_s=self.request.arrival_s,
            sent_s=None if self.sent_s is None else self.sent_s - self.start_s,
            token_s=token_s - self.start_s,
            end=self.end or End.CANCELLED,
            error=self.error,
            prompt_tokens=sum(n for n in prompt_tokens if n is not None) if any(prompt_tokens) else None,
            stage_due_s=(self.request.arrival_s, *(due_s - self.start_s for due_s in self.later_due_s)),
            ended_s=None if self.ended_s is None else self.ended_s - self.start_s,
            chunk_tokens=chunk_tokens[chunk_tokens > 0],
        )


def _unsent(request: Request, end: End, error: str) -> Timeline:
    return Timeline(request, request.arrival_s, None, np.empty(0), end, error)


def _jobs(target: Target, abilities: Abilities, requests: Iterable[Request], seed: int, extra: Extra) -> list[_Job]:
    return [_Job(request, render_stages(target, abilities, request, seed, extra)) for request in requests]


def _warmup_request(like: Request, number: int) -> Request:
    """Due at once, and with a prompt that no measured request shares."""
    return replace(like, id=f"warmup-{number}", arrival_s=0.0, prefix=None)


class _Run:
    """One pass over a list of jobs."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[_Job],
        request_timeout_s: float,
        deadline_s: float | None,
        on_progress: OnProgress | None,
        abort_when: Callable[[], bool] | None,
        stop_when: Callable[[Timeline], bool] | None,
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._request_timeout_s = request_timeout_s
        self._deadline_s = float("inf") if deadline_s is None else deadline_s
        self._on_progress = on_progress
        self._abort_when = abort_when
        self._stop_when = stop_when
        self._stopped = False
        self._waiting = deque(sorted(jobs, key=lambda job: job.request.arrival_s))
        self._under_way: dict[int, tuple[_Job, Exchange]] = {}
        self._expiries: deque[tuple[float, int]] = deque()  # sorted, for every exchange is given the same time
        self._sent = 0
        self._exchanges = 0
        self._ends: Counter[End] = Counter()
        self._recent: deque[_Job] = deque(maxlen=RECENT)

    def go(self) -> None:
        start_s = perf_counter()
        self._start_s = start_s
        for job in self._jobs:
            job.start_s = start_s
        stop_s = start_s + self._deadline_s
        next_abort_check_s, next_progress_s = start_s, start_s
        while self._waiting or self._under_way:
            now_s = perf_counter()
            next_due_s = self._send_due(now_s)
            now_s = perf_counter()
            if self._stopped:
                self._end_all(End.CANCELLED, "the run was ended", End.CANCELLED)
            elif now_s >= stop_s:
                self._end_all(End.TIMED_OUT, "the run's deadline passed", End.CANCELLED)
            elif now_s >= next_abort_check_s:
                next_abort_check_s = now_s + ABORT_CHECK_S
                if self._abort_when is not None and self._abort_when():
                    self._end_all(End.FAILED, "the engine died", End.FAILED)
                self._expire(now_s)
            if self._on_progress is not None and now_s >= next_progress_s:
                next_progress_s = now_s + PROGRESS_S
                self._on_progress(self._progress(now_s))
            wake_s = min(next_due_s, next_abort_check_s, stop_s)
            for exchange in self._client.poll(wake_s - perf_counter()):
                self._finished(exchange)
        if self._on_progress is not None:
            self._on_progress(self._progress(perf_counter()))

    def _send_due(self, now_s: float) -> float:
        """Sends what is due, a few at a time; returns when the next is."""
        since_start_s = now_s - self._start_s
        waiting = self._waiting
        for _ in range(SENDS_PER_TURN):
            if not waiting or waiting[0].request.arrival_s > since_start_s:
                break
            job = waiting.popleft()
            self._sent += 1
            self._send_stage(job)
        return self._start_s + waiting[0].request.arrival_s if waiting else float("inf")

    def _send_stage(self, job: _Job) -> None:
        self._exchanges += 1
        exchange = Exchange(job.payloads[job.stage], self._exchanges)
        job.answers.append(exchange)
        self._under_way[exchange.job] = (job, exchange)
        self._expiries.append((perf_counter() + self._request_timeout_s, exchange.job))
        self._client.send(exchange)

    def _finished(self, exchange: Exchange) -> None:
        job, _ = self._under_way.pop(exchange.job)
        if job.sent_s is None:
            job.sent_s = exchange.sent_s
        end, error = _outcome(exchange)
        stages = len(job.request.stages)
        if end is End.COMPLETED and job.stage + 1 < stages:
            asked = job.request.stages[job.stage].output_tokens
            given = exchange.tokens.output_tokens
            if given == asked:
                job.stage += 1
                job.later_due_s.append(exchange.tokens.at_s[-1])
                return self._send_stage(job)
            error = f"stage {job.stage + 1} of {stages} gave {given} of {asked} tokens"
            end = End.FAILED  # its stages could not be told apart
        return self._end(job, end, error)

    def _end(self, job: _Job, end: End, error: str) -> None:
        job.end, job.error, job.ended_s = end, error, perf_counter()
        job.payloads = ()
        for answer in job.answers:
            answer.payload = b""
        self._ends[end] += 1
        self._recent.append(job)
        if self._stop_when is not None and not self._stopped:
            self._stopped = self._stop_when(job.timeline())

    def _expire(self, now_s: float) -> None:
        while self._expiries and self._expiries[0][0] <= now_s:
            _, number = self._expiries.popleft()
            if number in self._under_way:
                self._give_up(number, End.TIMED_OUT, f"no complete answer in {self._request_timeout_s:g} s")

    def _give_up(self, number: int, end: End, error: str) -> None:
        job, exchange = self._under_way.pop(number)
        self._client.abandon(exchange, end, error)
        if job.sent_s is None:
            job.sent_s = exchange.sent_s
        self._end(job, end, error)

    def _end_all(self, end: End, error: str, unsent: End) -> None:
        for number in list(self._under_way):
            self._give_up(number, end, error)
        while self._waiting:
            job = self._waiting.popleft()
            self._end(job, unsent, f"not sent: {error}")

    def _progress(self, now_s: float) -> Progress:
        recent = [job.timeline() for job in self._recent]
        return Progress(
            now_s - self._start_s, len(self._jobs), self._sent, len(self._under_way), dict(self._ends), recent
        )


def _outcome(exchange: Exchange) -> tuple[End, str]:
    if exchange.end is not None:
        return exchange.end, exchange.error
    if exchange.reader.status == 200:
        return (End.COMPLETED, "") if exchange.tokens.output_tokens else (End.FAILED, "an answer without tokens")
    return (End.REFUSED if exchange.reader.status in REFUSALS else End.FAILED), answer_text(exchange)


def _prewarm(client: Client, arrivals_s: Sequence[float]) -> None:
    """Opens as many connections as fall due within any 100 ms, so that handshakes don't delay the run's requests."""
    times = np.sort(np.array(arrivals_s))
    burst = int(np.max(np.searchsorted(times, times + PREWARM_WINDOW_S, "right") - np.arange(len(times))))
    client.open(min(len(times), max(SPARE_CONNECTIONS, min(burst, PREWARM_LIMIT))))
    give_up_s = perf_counter() + CONNECT_WAIT_S
    while client.opening and perf_counter() < give_up_s:
        client.poll(0.05)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keeps the garbage collector from stopping the clock: a run makes no cycles worth collecting while it lasts."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.unfreeze()


def _notes(jobs: Sequence[_Job], abilities: Abilities) -> list[str]:
    done = [(job, answer) for job in jobs if job.end is End.COMPLETED for answer in job.answers]
    notes: list[str] = []
    counting = Counter(answer.tokens.counting for _, answer in done)
    notes += [f"tokens of {n} of {len(done)} answers: {how}" for how, n in counting.items() if how != Counting.EXACT]
    asked = [stage.output_tokens for job in jobs if job.end is End.COMPLETED for stage in job.request.stages]
    short = sum(answer.tokens.output_tokens < n for n, (_, answer) in zip(asked, done, strict=True))
    if short:
        why = "although the server took ignore_eos and min_tokens" if abilities.forced_lengths else "as models may"
        notes.append(f"{short} of {len(done)} answers were shorter than asked, {why}")
    return notes
