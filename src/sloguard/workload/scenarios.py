"""Named workloads, scenarios and recorded workloads, turned into requests before any clock starts.

Arrivals, lengths and classes come from streams of their own, so changing the rate changes no length, and all trials of
a study with one seed are offered the same requests.

- A workload is lengths and arrivals; what is promised is said elsewhere. `tune` and `bench` offer workloads.
- A scenario is one application or several, each with its promises (applications.py). `simulate` and `capacity` offer
  scenarios, or a trace with the promises of one. In `NAME-s` every TPOT is twice as long.

The lengths of the workloads are the percentiles (`LEVELS`) of public data within stated bounds. Prompt and output
are drawn apart, for in the data kept their logs correlate by less than 0.07. Means and percentiles 5 to 95 of what is
drawn lie within 7 % of the data's, the distributions within 0.05 (Kolmogorov-Smirnov).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sloguard.errors import SpecError
from sloguard.request import Request, Stage
from sloguard.rng import stream
from sloguard.slo import BEST_EFFORT, NO_SLO, StageSLO
from sloguard.workload import figures
from sloguard.workload.applications import APPLICATIONS, Application
from sloguard.workload.arrivals import Constant, Gamma, Hyperexponential, OnOff, Poisson, Replay, Scaling, check_rate
from sloguard.workload.lengths import Independent, Lengths, Quantiles
from sloguard.workload.traces import DEFAULT_CLASS, Row, Trace, read_trace

Process = Poisson | Gamma | Constant | OnOff | Hyperexponential
RATE_FLAG = "--rate"  # of `simulate`; that of `tune` and `bench` is --request-rate
SHARE_TOLERANCE = 1e-6  # three shares of 0.333333 pass, a forgotten class does not


@dataclass(frozen=True, slots=True)
class SloClass:
    """A share (0 to 1) of the requests, and what each of them is promised."""

    name: str
    share: float
    slo: StageSLO


@dataclass(frozen=True, slots=True)
class Workload:
    """`arrivals.rate` and `num_requests` are what is offered where the user says nothing else."""

    name: str
    arrivals: Process
    lengths: Lengths
    num_requests: int


# Source @commit of each in the comment; n is how many of its rows lie within the bounds.
WORKLOADS = {
    workload.name: workload
    for workload in (
        # Chat. ShareGPT, multi-turn with history in the prompt, Llama-2 tokens (project-etalon/etalon @d5f18de1):
        # 14568 of 30731 rows have at most 2048 tokens in all, the filter that vLLM's and SLO-Guard's benchmarks know.
        Workload(
            name="interactive",
            arrivals=Poisson(rate=4.0),
            lengths=Independent(
                prompt=Quantiles((1, 9, 18, 28, 102, 528, 995, 1362, 1538, 1787, 2043)),
                output=Quantiles((2, 4, 33, 62, 175, 375, 577, 778, 880, 985, 1024)),
                max_total_tokens=2048,
            ),
            num_requests=200,
        ),
        # Summaries, all at once. arXiv summarisation, Llama-2 tokens (microsoft/vidur @7d475133): 27027 of 28257 rows
        # have at most 4096 tokens in all and 1024 of output.
        Workload(
            name="batch",
            arrivals=Constant(rate=float("inf")),
            lengths=Independent(
                prompt=Quantiles((1, 614, 1123, 1486, 2090, 2787, 3393, 3712, 3818, 3936, 4054)),
                output=Quantiles((5, 35, 59, 77, 112, 162, 229, 316, 389, 650, 1024)),
                max_total_tokens=4096,
            ),
            num_requests=100,
        ),
        # Code completion in bursts. Azure LLM inference trace 2023, code (Azure/AzurePublicDataset @b469a113): 5450 of
        # 8819 rows have at most 2048 tokens in all and 1024 of output. There, 73 % of the seconds are empty; here 75 %.
        Workload(
            name="bursty",
            arrivals=OnOff(rate=4.0, on_s=2.0, off_s=6.0),  # 32 requests in each burst
            lengths=Independent(
                prompt=Quantiles((3, 14, 51, 89, 242, 812, 1317, 1708, 1864, 1991, 2039)),
                output=Quantiles((6, 6, 6, 7, 9, 13, 23, 54, 84, 211, 841)),
                max_total_tokens=2048,
            ),
            num_requests=192,  # six whole bursts
        ),
    )
}


def build_requests(
    workload: str,
    *,
    rate: float | None,
    num_requests: int | None,
    seed: int,
    classes: Sequence[SloClass] = (),
    arrivals: Process | None = None,
    scaling: Scaling = Scaling.STRETCH,
    begin: float = 0.0,
) -> list[Request]:
    """The requests of a named workload, a trace or a file of lengths (`workload` is a name or a path), by arrival.

    `rate` in requests/s: None is the workload's own, or as recorded; inf is all at once. A trace is brought to a rate
    by `scaling`; THIN is refused where there is no recorded arrival or no rate. `num_requests`: None is the workload's
    own, or the whole trace. `arrivals` replaces the process of a workload that has no recorded one; `rate` still sets
    its rate. Each request gets one of `classes` by their shares. A trace is played from where the share `begin` of its
    requests are over, in a loop: without a seed, that tells two loads of it apart.

    Raises SpecError naming the flag, or the file, line and field.
    """
    _check_size(rate, num_requests, "--request-rate")
    _check_classes(classes)
    if scaling is Scaling.THIN and (workload in WORKLOADS or rate is None):
        problem = "no rate is given to thin to" if rate is None else f"{workload} is no recorded trace"
        raise SpecError("--trace-scaling", str(scaling), problem, "It takes a trace and a --request-rate.")
    if named := WORKLOADS.get(workload):
        count = named.num_requests if num_requests is None else num_requests
        rows = _drawn(_at_rate(arrivals or named.arrivals, rate), named.lengths, count, seed)
    else:
        trace = _read(workload, None if scaling is Scaling.THIN or begin else num_requests)
        if classes and trace.has_slos:
            raise SpecError(
                "--workload", workload, "its slo columns clash with the SLOs given", "Give SLOs in one place."
            )
        if trace.timed:
            rows = _replayed(trace.begun_at(begin), rate, num_requests, seed, arrivals, scaling, "--request-rate")
        else:
            if scaling is Scaling.THIN:
                raise SpecError("--trace-scaling", str(scaling), f"{workload} has no arrival times", "Drop it.")
            rows = _resampled(trace, rate, num_requests, seed, arrivals, "--request-rate")
    return _requests(_promised(rows, classes, seed))


def recorded(workload: str) -> int | None:
    """How many requests a trace has; None for what is drawn, each time anew. Raises SpecError."""
    if workload in WORKLOADS:
        return None
    trace = _read(workload, None)
    return len(trace.rows) if trace.timed else None


@dataclass(frozen=True, slots=True)
class Scenario:
    """Applications, each with an equal share of the requests. `arrivals.rate` is what was recorded."""

    name: str
    arrivals: Process
    applications: tuple[Application, ...]


CONV = Poisson(rate=figures.CONV_RATE)
CODE = Hyperexponential(rate=figures.CODE_RATE, kinds=figures.CODE_GAPS)
RELAXED = "-s"  # SLOs-Serve's "-S" variants
_FIRM = (
    *(Scenario(app.name, CODE if app.name == "coder" else CONV, (app,)) for app in APPLICATIONS),
    Scenario("mixed", CONV, APPLICATIONS),
)
SCENARIOS = {scenario.name: scenario for scenario in _FIRM} | {
    scenario.name + RELAXED: Scenario(
        scenario.name + RELAXED, scenario.arrivals, tuple(app.relaxed(2) for app in scenario.applications)
    )
    for scenario in _FIRM
}


def scenario_requests(
    name: str,
    *,
    rate: float | None,
    num_requests: int,
    seed: int,
    max_total_tokens: int | None = None,
    best_effort_share: float = 0.0,
) -> list[Request]:
    """Requests of a scenario by arrival; the class of each is its application.

    `rate` in requests/s: None is the recorded one. Requests that are longer than their application's limit or, where
    given, `max_total_tokens` are left out and others drawn. A share of the requests, of a class of its own, is
    promised nothing. A TTFT promised as a multiple still is one: see `resolve_slos`.

    Raises SpecError naming the flag.
    """
    scenario = scenario_named(name)
    _check_size(rate, num_requests)
    if not 0 <= best_effort_share <= 1:
        raise SpecError("--best-effort-share", best_effort_share, "not a share from 0 to 1", "Correct it.")
    times_s = _at_rate(scenario.arrivals, rate).times(stream(seed, "arrivals"), num_requests)
    apps = scenario.applications
    drawn: list[int] = (stream(seed, "classes").random(num_requests) * len(apps)).astype(int).tolist()
    stages = [
        iter(app.draw(stream(seed, "lengths", app.name), drawn.count(i), max_total_tokens))
        for i, app in enumerate(apps)
    ]
    requests = [
        Request(f"r{index}", at_s, next(stages[i]), apps[i].name)
        for index, (at_s, i) in enumerate(zip(times_s.tolist(), drawn, strict=True))
    ]
    unpromised = stream(seed, BEST_EFFORT).random(num_requests) < best_effort_share
    return [_unpromised(r) if free else r for r, free in zip(requests, unpromised.tolist(), strict=True)]


def scenario_named(name: str) -> Scenario:
    """Raises SpecError where there is none."""
    if name not in SCENARIOS:
        raise SpecError("--scenario", name, "no such scenario", f"Choose one of {', '.join(SCENARIOS)}.")
    return SCENARIOS[name]


class Traced(NamedTuple):
    """`dropped` requests were too long, of those recorded up to the last one offered."""

    requests: list[Request]
    dropped: int


def trace_requests(
    path: str | Path,
    *,
    rate: float | None,
    num_requests: int | None,
    seed: int,
    slo: StageSLO | str | None = None,
    max_total_tokens: int | None = None,
) -> Traced:
    """The requests of a recorded trace, or drawn from a file of lengths, without those that are too long.

    `rate` in requests/s stretches the trace (a file of lengths has Poisson arrivals); None is as recorded.
    `num_requests`: None is all. `slo` is what each is promised, or the name of a scenario of one application, whose
    first stage says it and whose name is the class; None is what the trace's own slo columns say.

    Raises SpecError naming the flag, or the file, line and field.
    """
    _check_size(rate, num_requests)
    try:
        trace = read_trace(Path(path), num_requests if max_total_tokens is None else None, "--trace")
    except FileNotFoundError:
        raise SpecError("--trace", str(path), "no such file", "Give a .csv or .jsonl file, or one gzipped.") from None
    if slo is not None and trace.has_slos:
        raise SpecError("--trace", str(path), "its slo columns clash with the SLOs given", "Give SLOs in one place.")
    longest = max_total_tokens or math.inf
    long = [row.input_tokens + row.output_tokens > longest for row in trace.rows]
    rows = tuple(row for row, is_long in zip(trace.rows, long, strict=True) if not is_long)
    if not rows:
        problem = f"each of its {len(long)} requests has more than {longest} tokens"
        raise SpecError("--trace", str(path), problem, "Serve a model with a longer context.")
    kept = Trace(trace.path, rows)
    if kept.timed:
        offered = _replayed(kept, rate, num_requests, seed, None, Scaling.STRETCH, RATE_FLAG)
        last = [i for i, is_long in enumerate(long) if not is_long][len(offered) - 1]
        dropped = sum(long[:last])
    else:
        offered, dropped = _resampled(kept, rate, num_requests, seed, None, RATE_FLAG), sum(long)
    if slo is not None:
        slo_class, promised = (DEFAULT_CLASS, slo) if isinstance(slo, StageSLO) else _promise_of(slo)
        offered = [row._replace(slo_class=slo_class, slo=promised) for row in offered]
    return Traced(_requests(offered), dropped)


def resolve_slos(requests: Sequence[Request], zero_load_ttft_s: Callable[[int, int], float]) -> list[Request]:
    """The same requests with every TTFT in seconds.

    `zero_load_ttft_s(prompt_tokens, cached_tokens)` is the time an idle engine takes for a stage's whole prompt, of
    which the conversation before it (`cached_tokens`) is context that needn't be computed.
    """
    return [replace(request, stages=_resolved(request.stages, zero_load_ttft_s)) for request in requests]


def _resolved(stages: Sequence[Stage], zero_load_ttft_s: Callable[[int, int], float]) -> tuple[Stage, ...]:
    known_tokens = 0
    resolved: list[Stage] = []
    for stage in stages:
        zero_load_s = zero_load_ttft_s(known_tokens + stage.prompt_tokens, known_tokens)
        resolved.append(replace(stage, slo=stage.slo.resolve(zero_load_s)))
        known_tokens += stage.prompt_tokens + stage.output_tokens
    return tuple(resolved)


def _unpromised(request: Request) -> Request:
    stages = tuple(replace(stage, slo=NO_SLO) for stage in request.stages)
    return replace(request, stages=stages, slo_class=BEST_EFFORT)


def _promise_of(name: str) -> tuple[str, StageSLO]:
    app, *others = scenario_named(name).applications
    if others:
        fix = f"Choose one of {', '.join(s.name for s in SCENARIOS.values() if len(s.applications) == 1)}."
        raise SpecError("--scenario", name, "promises several things, and a trace says not which to whom", fix)
    return app.name, app.first_slo


def _check_size(rate: float | None, num_requests: int | None, rate_flag: str = RATE_FLAG) -> None:
    if rate is not None:
        check_rate(rate, rate_flag)
    if num_requests is not None and num_requests < 1:
        raise SpecError("--num-requests", num_requests, "not a positive number", "Ask for at least 1 request.")


def _at_rate(process: Process, rate: float | None) -> Process:
    return process if rate is None else replace(process, rate=rate)


def _drawn(process: Process, lengths: Lengths, n: int, seed: int) -> list[Row]:
    times_s = process.times(stream(seed, "arrivals"), n)
    tokens = lengths.draw(stream(seed, "lengths"), n)
    return [Row(at_s, *pair) for at_s, pair in zip(times_s.tolist(), tokens.tolist(), strict=True)]


def _read(workload: str, limit: int | None) -> Trace:
    try:
        return read_trace(Path(workload), limit)
    except FileNotFoundError:
        fix = f"Choose one of {', '.join(WORKLOADS)}, or give the path of a trace (.csv or .jsonl, or those gzipped)."
        raise SpecError("--workload", workload, "neither a named workload nor a file", fix) from None


def _replayed(
    trace: Trace,
    rate: float | None,
    n: int | None,
    seed: int,
    arrivals: Process | None,
    scaling: Scaling,
    rate_flag: str,
) -> list[Row]:
    if arrivals is not None:
        raise SpecError("--workload", str(trace.path), "its arrivals are recorded", "Give no arrival process with it.")
    index, times_s = Replay(trace.arrival_s(), rate, scaling, rate_flag).pick(stream(seed, "arrivals"), n)
    rows: list[int] = index.tolist()
    return [trace.rows[i]._replace(arrival_s=at_s) for i, at_s in zip(rows, times_s.tolist(), strict=True)]


def _resampled(
    trace: Trace, rate: float | None, n: int | None, seed: int, arrivals: Process | None, rate_flag: str
) -> list[Row]:
    problem = f"{trace.path} holds lengths without arrival times, so neither rate nor number follows from it"
    if arrivals is None and rate is None:
        raise SpecError(rate_flag, rate, problem, "State the rate in requests per second, or inf.")
    if n is None:
        raise SpecError("--num-requests", n, problem, "State how many requests to draw.")
    times_s = _at_rate(arrivals or Poisson(1.0), rate).times(stream(seed, "arrivals"), n)
    index = (stream(seed, "lengths").random(n) * len(trace.rows)).astype(int)  # whole, and with replacement
    rows: list[int] = index.tolist()
    return [trace.rows[i]._replace(arrival_s=at_s) for i, at_s in zip(rows, times_s.tolist(), strict=True)]


def _check_classes(classes: Sequence[SloClass]) -> None:
    names = [c.name for c in classes]
    if len(set(names)) < len(names):
        raise SpecError("SLO classes", names, "two have one name", "Name each class once.")
    for c in classes:
        if not 0 < c.share <= 1:
            raise SpecError(f"SLO class {c.name} share", c.share, "not a share above 0 and up to 1", "Correct it.")
    total = sum(c.share for c in classes)
    if classes and abs(total - 1) > SHARE_TOLERANCE:
        raise SpecError("SLO class shares", total, "they do not sum to 1", "Make them sum to 1.")


def _promised(rows: Sequence[Row], classes: Sequence[SloClass], seed: int) -> Sequence[Row]:
    if not classes:
        return rows
    upto = np.cumsum([c.share for c in classes])
    drawn: list[int] = np.searchsorted(upto[:-1], stream(seed, "classes").random(len(rows)), side="right").tolist()
    return [row._replace(slo_class=classes[i].name, slo=classes[i].slo) for row, i in zip(rows, drawn, strict=True)]


def _requests(rows: Sequence[Row]) -> list[Request]:
    return [
        Request(
            id=f"r{index}",
            arrival_s=row.arrival_s or 0.0,
            stages=(Stage(row.input_tokens, row.output_tokens, row.slo),),
            slo_class=row.slo_class,
            prefix=row.prefix,
        )
        for index, row in enumerate(rows)
    ]
