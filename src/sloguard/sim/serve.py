"""Offers requests to simulated replicas and writes down what a client would have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, nextafter
from typing import Protocol

import numpy as np

from sloguard.request import End, Request, Timeline
from sloguard.route.base import Router
from sloguard.route.baselines import RoundRobin
from sloguard.sched.job import Job, Tier
from sloguard.sim.cluster import Cluster, MakeReplica
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnTokens, Replica

NO_PRIORITY = 10**9


class Service(Protocol):
    """What serves jobs: a cluster, or pools that split the work. Replicas have KV blocks of `block_tokens`."""

    replicas: list[Replica]
    block_tokens: int
    max_model_len: int
    hops: int

    def submit(self, job: Job) -> None: ...

    def abort(self, job: Job) -> None: ...

    def finished(self, job: Job) -> None:
        """All tokens of `job` have been delivered."""
        ...

    def ended(self, stream: str) -> None:
        """Nothing more comes of this conversation, whether it was served to its end or not."""
        ...


MakeService = Callable[[Kernel, OnTokens], Service]
OnDone = Callable[[Timeline, Tier], None]


@dataclass(slots=True)
class Run:
    """What came of serving. `timelines` and `tiers` are in the order of the requests, and empty where they were handed
    out one by one instead; a request's tier is the one its last stage was served in.

    `replicas` are as the run left them, with their `stats`; `end_s` is when the last request ended.
    """

    replicas: list[Replica]
    timelines: list[Timeline] = field(default_factory=list[Timeline])
    tiers: list[Tier] = field(default_factory=list[Tier])
    requests_by_tier: Counter[Tier] = field(default_factory=Counter[Tier])
    hops: int = 0
    end_s: float = 0.0
    stopped: bool = False


@dataclass(slots=True)
class _Call:
    """A request on its way: the stage being served and the tokens received so far."""

    request: Request
    tokens_s: list[float] = field(default_factory=list[float])
    stage_due_s: list[float] = field(default_factory=list[float])
    job: Job | None = None
    tier: Tier = Tier.NEW
    history_tokens: int = 0  # prompt and output of the stages before: the next stage's prompt starts with them
    end: End | None = None
    ended_s: float | None = None
    error: str = ""


class _Client:
    """Sends requests when they are due, in the order given, and their stages one after the other."""

    def __init__(
        self, kernel: Kernel, make_service: MakeService, timeout_s: float, on_end: Callable[[_Call], None]
    ) -> None:
        self.kernel, self.timeout_s, self.on_end = kernel, timeout_s, on_end
        self.service = make_service(kernel, self._on_tokens)
        self._calls: dict[str, _Call] = {}  # by the job that serves them
        self._sent_s = -inf

    def feed(self, calls: Iterator[_Call]) -> None:
        """Asks for the next request only when the one before is due: memory holds those that are under way."""
        if call := next(calls, None):
            self.kernel.at(call.request.arrival_s, lambda: self._arrive(call, calls), first=True)

    def _arrive(self, call: _Call, others: Iterator[_Call]) -> None:
        self.feed(others)
        if self.timeout_s < inf:
            self.kernel.at(self.kernel.now_s + self.timeout_s, lambda: self._give_up(call), first=True)
        self._send(call)

    def _send(self, call: _Call) -> None:
        # As on a real wire, nothing comes at the instant of another: vLLM may evict two for each other for ever if the
        # priority and the arrival of both are the same.
        self._sent_s = max(self.kernel.now_s, nextafter(self._sent_s, inf))
        job = _job(call, self._sent_s, self.service.block_tokens)
        call.stage_due_s.append(self.kernel.now_s)
        if refusal := too_long(job.prompt_tokens, job.output_tokens, self.service.max_model_len):
            self._end(call, End.REFUSED, refusal)
            return
        call.job = job
        self._calls[job.id] = call
        self.service.submit(job)

    def _on_tokens(self, jobs: list[Job], times_s: list[float]) -> None:
        for job in jobs:
            call = self._calls[job.id]
            call.tokens_s.extend(times_s)
            if job.generated_tokens >= job.output_tokens:
                self._finish(call, job)

    def _finish(self, call: _Call, job: Job) -> None:
        self.service.finished(job)
        del self._calls[job.id]
        call.job, call.tier = None, job.tier
        call.history_tokens = job.prompt_tokens + job.output_tokens
        if job.stages_left:
            self._send(call)
        else:
            self._end(call, End.COMPLETED)

    def _give_up(self, call: _Call) -> None:
        if job := call.job:
            self.service.abort(job)  # which first brings the tokens up to now
            del self._calls[job.id]
            call.job, call.tier = None, job.tier
            self._end(call, End.TIMED_OUT, f"no complete answer within {self.timeout_s:g} s")

    def _end(self, call: _Call, end: End, error: str = "") -> None:
        call.end, call.ended_s, call.error = end, self.kernel.now_s, error
        self.service.ended(call.request.id)
        self.on_end(call)


def serve(
    requests: Iterable[Request],
    make_service: MakeService,
    *,
    request_timeout_s: float = inf,
    on_done: OnDone | None = None,
    stop_when: Callable[[Timeline], bool] | None = None,
) -> Run:
    """Serves `requests`, which come in the order of their arrival. Open loop: a request is sent when it is due.

    A request that takes longer than `request_timeout_s` is given up (TIMED_OUT); one longer than `max_model_len` is
    refused with vLLM's message. Each stage is sent when the one before it ends, with the whole conversation as its
    prompt, and in the same tier.

    `on_done` gets each timeline as its request ends, and then none is kept. `stop_when`, asked at each end, ends the
    run: then requests that are under way, and those never sent, count as CANCELLED.
    Raises ValueError for an arrival before the one ahead of it.
    """
    kernel = Kernel()
    calls: list[_Call] = []

    def under_way() -> Iterator[_Call]:
        for request in requests:
            call = _Call(request)
            if on_done is None:
                calls.append(call)
            yield call

    def ended(call: _Call) -> None:
        run.requests_by_tier[call.tier] += 1
        run.end_s = kernel.now_s
        if on_done is None and stop_when is None:
            return
        timeline = _timeline(call)
        if on_done is not None:
            on_done(timeline, call.tier)
        if stop_when is not None and stop_when(timeline):
            run.stopped = True
            kernel.stop()

    client = _Client(kernel, make_service, request_timeout_s, ended)
    run = Run(client.service.replicas)
    coming = under_way()
    client.feed(coming)
    kernel.run()
    if on_done is None:
        for _ in coming:  # never sent, after a stop: they join `calls`
            pass
        run.timelines = [_timeline(call) for call in calls]
        run.tiers = [call.tier for call in calls]
    run.hops = client.service.hops
    return run


def simulate_cluster(
    requests: Iterable[Request],
    make_replicas: Sequence[MakeReplica],
    router: Router | None = None,
    *,
    stale_s: float = 0.0,
    hop_s: float = 0.0,
    request_timeout_s: float = inf,
    on_done: OnDone | None = None,
    stop_when: Callable[[Timeline], bool] | None = None,
) -> Run:
    """`serve` on replicas behind a router, round-robin where none is given. They need not be alike.

    The router sees the replicas as they were at the last multiple of `stale_s`, or as they are (0); a job that one
    declines reaches the next after `hop_s`.
    """

    def cluster(kernel: Kernel, on_tokens: OnTokens) -> Cluster:
        return Cluster(kernel, make_replicas, router or RoundRobin(), on_tokens, stale_s=stale_s, hop_s=hop_s)

    return serve(requests, cluster, request_timeout_s=request_timeout_s, on_done=on_done, stop_when=stop_when)


def simulate(
    requests: Sequence[Request],
    make_replica: MakeReplica,
    *,
    replicas: int = 1,
    router: Router | None = None,
    stale_s: float = 0.0,
    hop_s: float = 0.0,
    request_timeout_s: float = inf,
    stop_when: Callable[[Timeline], bool] | None = None,
) -> list[Timeline]:
    """One timeline per request, in the order given, from so many equal replicas."""
    order = sorted(range(len(requests)), key=lambda at: requests[at].arrival_s)
    run = simulate_cluster(
        [requests[at] for at in order],
        [make_replica] * replicas,
        router,
        stale_s=stale_s,
        hop_s=hop_s,
        request_timeout_s=request_timeout_s,
        stop_when=stop_when,
    )
    in_order = dict(zip(order, run.timelines, strict=True))
    return [in_order[at] for at in range(len(requests))]


def too_long(prompt_tokens: int, output_tokens: int, max_model_len: int) -> str:
    """What vLLM answers with status 400 to a request that can't fit, or nothing."""
    if prompt_tokens + output_tokens <= max_model_len:
        return ""
    return (
        f"This model's maximum context length is {max_model_len} tokens. However, you requested {output_tokens} output "
        f"tokens and your prompt contains {prompt_tokens} input tokens, for a total of "
        f"{prompt_tokens + output_tokens} tokens. Please reduce the length of the input prompt or the number of "
        "requested output tokens."
    )


def _job(call: _Call, sent_s: float, block_tokens: int) -> Job:
    request = call.request
    number = len(call.stage_due_s)
    stage = request.stages[number]
    prompt_tokens = call.history_tokens + stage.prompt_tokens
    return Job(
        id=f"{request.id}/{number}",
        arrival_s=sent_s,
        prompt_tokens=prompt_tokens,
        output_tokens=stage.output_tokens,
        stream=request.id,
        prefix_keys=shared_keys(request, prompt_tokens, block_tokens),
        ttft_s=stage.slo.ttft_s,
        tpot_s=stage.slo.tpot_s,
        app=f"{request.slo_class}/{stage.kind}",
        priority=NO_PRIORITY if stage.slo.ttft_s is None else round(stage.slo.ttft_s * 1000),
        stages_left=len(request.stages) - number - 1,
        tier=call.tier,
    )


def shared_keys(request: Request, prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
    """Keys of the full KV blocks that lie within the request's shared prefix: equal for equal text before them."""
    if request.prefix is None:
        return ()
    ids, width = request.prefix.block_ids, request.prefix.block_tokens
    shared_tokens = min(len(ids) * width, request.stages[0].prompt_tokens, prompt_tokens)
    keys: list[int] = []
    text = 0
    covered = 0
    for index in range(shared_tokens // block_tokens):
        while covered * width < (index + 1) * block_tokens:
            text = hash((text, ids[covered]))  # of integers only, so the same in every process
            covered += 1
        keys.append(hash((text, index)))
    return tuple(keys)


def _timeline(call: _Call) -> Timeline:
    request = call.request
    return Timeline(
        request=request,
        due_s=request.arrival_s,
        sent_s=request.arrival_s if call.stage_due_s else None,
        token_s=np.array(call.tokens_s, dtype=np.float64),
        end=call.end or End.CANCELLED,
        error=call.error if call.end else "the run was stopped",
        prompt_tokens=request.prompt_tokens,
        stage_due_s=tuple(call.stage_due_s) if len(request.stages) > 1 else (),
        ended_s=call.ended_s,
    )
