"""The figures of simulated runs: one row for a workload, policy and router, seeds taken together.

Percentiles are over the requests of all seeds; rates and attainment are means over seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from sloguard.contract import percentile
from sloguard.metrics import ClassSummary, Dist, summarise
from sloguard.request import End, Timeline
from sloguard.sched.job import Tier
from sloguard.sim.replica import ReplicaStats
from sloguard.sim.serve import Run
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import requests_of, run

LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2el_s"}


@dataclass(frozen=True, slots=True)
class Ran:
    """What figures are made of: all of a `Run` that can be sent from one process to another."""

    timelines: list[Timeline]
    requests_by_tier: Counter[Tier]
    hops: int
    stats: list[ReplicaStats]

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run.timelines, run.requests_by_tier, run.hops, [replica.stats for replica in run.replicas])


def run_seed(spec: SimSpec, rate: float | None, seed: int) -> Ran:
    """Serves the row's requests of one seed; `rate` None is the workload's own."""
    return Ran.of(run(spec, requests_of(spec, rate, seed).requests, seed, timed=True))


def simulate_row(spec: SimSpec, runs: Sequence[Ran], rate: float | None) -> dict[str, Any]:
    """The figures of one row; `runs` has one a seed. `rate` is what was asked for, requests/s in all."""
    each = [summarise(run.timelines, spec.tpot_rule) for run in runs]
    timelines = [t for run in runs for t in run.timelines]
    pooled = summarise(timelines, spec.tpot_rule)
    row: dict[str, Any] = {
        **spec.to_json(),
        "scenario": spec.workload,
        "engines": spec.engines,
        "gpus": spec.gpus,
        "seeds": len(runs),
        "rate": rate,
        "rate_offered": _mean([_offered_rate(run.timelines) for run in runs]),
        "requests": pooled.offered,
        "completed": pooled.completed,
        "attainment": _mean([run.attainment for run in each]),
        "attainment_by_seed": [run.attainment for run in each],
        "goodput_rps": _mean([run.request_goodput for run in each]),
        "goodput_tps": _mean([run.token_goodput for run in each]),
        "throughput_rps": _mean([run.request_throughput for run in each]),
        "throughput_tps": _mean([run.output_throughput for run in each]),
    }
    for name, attribute in LATENCIES.items():
        dist: Dist = getattr(pooled, attribute)
        row |= {f"{name}_{level}_ms": _ms(getattr(dist, level)) for level in ("p50", "p95", "p99")}
    row["classes"] = {name: _class(one) for name, one in pooled.by_class.items()}
    stages = summarise([stage for t in timelines for stage in stage_timelines(t)], spec.tpot_rule)
    row["stages"] = {name: _class(one) for name, one in stages.by_class.items()}
    return row | _engine_figures(runs)


def stage_timelines(timeline: Timeline) -> list[Timeline]:
    """Each stage of a request as a request of its own, of class `CLASS/KIND`. One that never began has failed."""
    request, dues = timeline.request, timeline.stage_due_s or (timeline.due_s,)
    cuts = np.cumsum([stage.output_tokens for stage in request.stages])[:-1]
    found: list[Timeline] = []
    for number, (stage, token_s) in enumerate(zip(request.stages, np.split(timeline.token_s, cuts), strict=True)):
        due_s = dues[number] if number < len(dues) else timeline.last_s
        whole = len(token_s) == stage.output_tokens
        alone = replace(
            request,
            id=f"{request.id}/{number}",
            arrival_s=due_s,
            stages=(stage,),
            slo_class=f"{request.slo_class}/{stage.kind}",
        )
        end = End.COMPLETED if whole else timeline.end
        found.append(Timeline(alone, due_s, due_s, token_s, end if end is not End.COMPLETED or whole else End.FAILED))
    return found


def _engine_figures(runs: Sequence[Ran]) -> dict[str, Any]:
    """Tiers count requests, by how their last stage was served."""
    stats = [one for run in runs for one in run.stats]
    plan_ms = np.sort(np.array([s for one in stats for s in one.plan_s])) * 1000
    steps = sum(one.steps for one in stats)
    tiers = {tier: sum(run.requests_by_tier[tier] for run in runs) for tier in Tier}
    return {
        "steps": steps,
        "mean_batch_tokens": sum(one.step_tokens for one in stats) / steps if steps else None,
        "evictions": sum(one.evictions for one in stats),
        "hops": sum(run.hops for run in runs),
        "promised": tiers[Tier.PROMISED],
        "best_effort": tiers[Tier.BEST_EFFORT],
        "undecided": tiers[Tier.NEW],
        "planner_p50_ms": percentile(plan_ms, 50) if len(plan_ms) else None,
        "planner_p99_ms": percentile(plan_ms, 99) if len(plan_ms) else None,
    }


def _offered_rate(timelines: Sequence[Timeline]) -> float | None:
    last_s = max(t.due_s for t in timelines)
    return len(timelines) / last_s if last_s else None


def _class(one: ClassSummary) -> dict[str, Any]:
    return {
        "offered": one.offered,
        "attainment": one.attainment,
        "ttft_p50_ms": _ms(one.ttft_s.p50),
        "ttft_p99_ms": _ms(one.ttft_s.p99),
        "tpot_p50_ms": _ms(one.tpot_s.p50),
        "tpot_p99_ms": _ms(one.tpot_s.p99),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
