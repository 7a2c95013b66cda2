"""Offers requests to a simulated replica and writes down what a client would have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sloguard.request import End, Request, Timeline
from sloguard.sched.job import Job
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnTokens, Replica

MakeReplica = Callable[[Kernel, OnTokens], Replica]


@dataclass(slots=True)
class _Call:
    """A request on its way: the stage being served and the tokens received so far."""

    request: Request
    tokens_s: list[float] = field(default_factory=list[float])
    stage_due_s: list[float] = field(default_factory=list[float])
    job: Job | None = None
    history_tokens: int = 0  # prompt and output of the stages before: the next stage's prompt starts with them
    end: End = End.TIMED_OUT
    ended_s: float | None = None
    error: str = ""


def simulate(
    requests: Sequence[Request], make_replica: MakeReplica, *, request_timeout_s: float = float("inf")
) -> list[Timeline]:
    """One timeline per request, in the order given. Open loop: a request is sent when it is due.

    A request that takes longer than `request_timeout_s` is given up (TIMED_OUT); one longer than the replica's
    `max_model_len` is refused with vLLM's message. Each stage is sent when the one before it ends, with the whole
    conversation as its prompt.
    """
    kernel = Kernel()
    calls: dict[str, _Call] = {}
    due: dict[str, _Call] = {}

    def on_tokens(jobs: list[Job], times_s: list[float]) -> None:
        for job in jobs:
            call = due[job.id]
            call.tokens_s.extend(times_s)
            if job.generated_tokens == job.output_tokens:
                finish(call, job)

    def finish(call: _Call, job: Job) -> None:
        del due[job.id]
        call.job = None
        call.history_tokens = job.prompt_tokens + job.output_tokens
        if len(call.stage_due_s) < len(call.request.stages):
            send(call)
        else:
            call.end, call.ended_s = End.COMPLETED, kernel.now_s

    replica = make_replica(kernel, on_tokens)

    def send(call: _Call) -> None:
        call.job = _job(call, kernel.now_s, replica.kv.block_tokens)
        call.stage_due_s.append(kernel.now_s)
        refusal = too_long(call.job.prompt_tokens, call.job.output_tokens, replica.limits.max_model_len)
        if refusal:
            call.end, call.ended_s, call.error, call.job = End.REFUSED, kernel.now_s, refusal, None
            return
        due[call.job.id] = call
        replica.submit(call.job)

    def give_up(call: _Call) -> None:
        if call.job is not None:
            call.error, call.ended_s = f"no complete answer within {request_timeout_s:g} s", kernel.now_s
            replica.abort(call.job)
            due.pop(call.job.id)

    for request in requests:
        call = calls[request.id] = _Call(request)
        kernel.at(request.arrival_s, lambda call=call: send(call))
        if request_timeout_s < float("inf"):
            kernel.at(request.arrival_s + request_timeout_s, lambda call=call: give_up(call))
    kernel.run()
    return [_timeline(calls[request.id]) for request in requests]


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


def _job(call: _Call, now_s: float, block_tokens: int) -> Job:
    request = call.request
    number = len(call.stage_due_s)
    stage = request.stages[number]
    prompt_tokens = call.history_tokens + stage.prompt_tokens
    return Job(
        id=f"{request.id}/{number}",
        arrival_s=now_s,
        prompt_tokens=prompt_tokens,
        output_tokens=stage.output_tokens,
        stream=request.id,
        prefix_keys=shared_keys(request, prompt_tokens, block_tokens),
        ttft_s=stage.slo.ttft_s,
        tpot_s=stage.slo.tpot_s,
        app=f"{request.slo_class}/{stage.kind}",
        stages_left=len(request.stages) - number - 1,
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
        sent_s=request.arrival_s,
        token_s=np.array(call.tokens_s, dtype=np.float64),
        end=call.end,
        error=call.error,
        prompt_tokens=request.prompt_tokens,
        stage_due_s=tuple(call.stage_due_s) if len(request.stages) > 1 else (),
        ended_s=call.ended_s,
    )
