"""Studies made up by hand: what a page is made of, without an engine."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

from fakes import served, some_requests
from sloguard.contract import Attained, Contract, Limit, Metric, Verdict
from sloguard.crash import Crash
from sloguard.metrics import summarise
from sloguard.study.header import Header
from sloguard.study.record import Record
from sloguard.study.results import Results
from sloguard.study.spec import StudySpec
from sloguard.trial import Avoided, Capacity, Config, Crashed, Leg, Measured, Outcome, Trial, Value

SLOS = {"ttft": 0.4, "tpot": 0.025}
OOM = Crashed(Crash("oom", "gpu_memory", "CUDA out of memory", "Use less.", "startup"))
HOSTILE = "<script>alert('x')</script> & \"quoted\" $x^2$ \x00"


def kept(rate: float, *, ttft_s: float = 0.1, tpot_s: float = 0.02, next_rate: float | None = None) -> Measured:
    """A config that keeps `rate` and fails a little above."""
    timelines = served(some_requests(100), ttft_s, tpot_s)
    legs = (Leg(rate, True, 97, 100, True, 0.0), Leg(next_rate or rate * 1.04, False, 60, 70, False, 0.5))
    summary = replace(summarise(timelines), met=97, attainment=0.97)
    return Measured(summary, Verdict((), 100, Attained(97, 100, 0.95)), 5.0, {}, (), Capacity(legs, 0.05))


def dropped(rate: float, to_beat: float) -> Measured:
    measured = kept(rate)
    legs = (Leg(to_beat, False, 30, 60, False, 1.5),)
    verdict = Verdict((), 60, Attained(30, 60, 0.95))
    return replace(measured, verdict=verdict, capacity=Capacity(legs, 0.05, to_beat))


def nothing_kept() -> Measured:
    measured = kept(1.0, ttft_s=0.9)
    verdict = Verdict((), 60, Attained(0, 60, 0.95))
    return replace(measured, verdict=verdict, capacity=Capacity((Leg(0.1, False, 0, 60, True, inf),), 0.05))


def at_a_rate(ttft_s: float, limit_s: float = 0.5) -> Measured:
    """Of a study at a given rate, under a limit on p99 TTFT."""
    timelines = served(some_requests(100), ttft_s, 0.02)
    verdict = Contract((Limit(Metric.TTFT, 99, limit_s),)).judge(timelines)
    return Measured(summarise(timelines), verdict, 5.0)


def trial(number: int, outcome: Outcome, recheck: int | None = None, cost_s: float = 60.0, **config: Value) -> Trial:
    """Trial 1 is the default: it asks for nothing."""
    proposed = Config() if (recheck or number) == 1 else Config(config)
    return Trial(number, proposed, Config(config), outcome, cost_s, recheck=recheck)


def record(
    trials: list[Trial], directory: Path = Path("study"), best_yaml: str | None = None, **spec: object
) -> Record:
    asked = StudySpec(**{**ASKED, **spec})  # pyright: ignore[reportArgumentType]
    engine = {
        "engine": asked.engine,
        "simulated": str(asked.engine == "sim").lower(),
        "version": "0.32.0",
        "gpu": "A100-40GB",
        "model": asked.model,
    }
    results = Results(trials, asked.goal, asked.try_default)
    yaml = best_yaml if results.best is None else best_yaml or "model: M\nmax-num-seqs: 64\n"
    return Record(
        Path("study"),
        Header(asked, asked.model, engine, "0.1.0", 0, warned=False),
        results,
        "d" * 64,
        yaml,
        yaml is not None,
    )


ASKED = {
    "engine": "sim",
    "model": "meta-llama/Llama-3.1-8B",
    "optimizer": "guided",
    "budget": 7,
    "seed": 42,
    "slo_p99_s": {},
    "slo_s": SLOS,
    "gpu": "A100-40GB",
}


def whole(text: str = "CUDA out of memory", choice: str = "fcfs") -> list[Trial]:
    """One of everything: a default, better ones, dropped, crashed and refused, and a confirmation."""
    oom = Crashed(Crash("oom", "gpu_memory", text, f"Use less: {text}", "startup"))
    too_big = (Avoided(Config({"seqs": 900}), Config({"seqs": 900}), f"no room: {text}"),)
    explored = [
        trial(1, kept(4.0), seqs=256, mem=0.92, policy="fcfs"),
        trial(2, oom, cost_s=20.0, seqs=1024, mem=0.96, policy="fcfs"),
        trial(3, dropped(3.0, 3.6), seqs=8, mem=0.8, policy=choice),
        replace(trial(4, kept(4.6), seqs=128, mem=0.9, policy=choice), avoided=too_big),
        trial(5, kept(5.0), seqs=64, mem=0.91, policy=choice),
        trial(6, oom, cost_s=25.0, seqs=512, mem=0.95, policy="fcfs"),
        trial(7, kept(4.8), seqs=90, mem=0.93, policy="fcfs"),
    ]
    best, other, default = explored[4], explored[6], explored[0]
    again = [(best, 5.1), (other, 4.7), (default, 3.9), (best, 4.9), (other, 4.8), (default, 4.1)]
    rechecks = [trial(8 + n, kept(rate), recheck=of.number, **dict(of.config)) for n, (of, rate) in enumerate(again)]
    return [*explored, *rechecks]
