"""Studies on planted problems: the truth is a formula, so what an optimizer should find is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sloguard.contract import Check, Limit, Metric, Verdict
from sloguard.crash import Crash
from sloguard.metrics import Dist, Summary
from sloguard.optim.base import Exhausted, Goal, Optimizer, Problem
from sloguard.rng import stream
from sloguard.slo import Judgement
from sloguard.space.knobs import Categorical, Float, Int
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Measured, Outcome, Trial, Value

TTFT = Limit(Metric.TTFT, 99, 0.5)
OOM = Crash("oom", "kv_cache", "CUDA out of memory", "Lower the utilization.", "startup")
PORT = Crash("startup_failure", "port_in_use", "address already in use", "Free it.", "startup", environment=True)

SPACE = Space(
    (
        Categorical("dtype", ("fp16",)),
        Int("seqs", 4, 128, log=True),
        Int("tokens", 512, 8192, log=True),
        Float("util", 0.60, 0.95),
        Categorical("eager", (False, True)),
        Categorical("chunked", (False, True), when=("eager", False)),
        Categorical("prefix", (False, True)),
    )
)
SMALL = Space((Int("n", 1, 3), Categorical("a", ("x", "y")), Categorical("b", (False, True), when=("a", "x"))))

Evaluate = Callable[[Config], Outcome]


def problem(space: Space = SPACE, budget: int = 30, repair: Callable[[Config], Config] = lambda c: c) -> Problem:
    return Problem(space, Goal(), budget, repair)


def measured(goodput: float, ttft_s: float, effective: dict[str, Value] | None = None) -> Measured:
    """A run with one TTFT limit of 0.5 s."""
    dist = Dist(10, *[ttft_s] * 6)
    summary = Summary(
        offered=10,
        completed=10,
        met=10,
        ends={"completed": 10},
        duration_s=1.0,
        prompt_tokens=10,
        output_tokens=10,
        ttft_s=dist,
        tpot_s=dist,
        itl_s=dist,
        e2el_s=dist,
        queue_delay_s=Dist(),
        request_throughput=10.0,
        output_throughput=10.0,
        request_goodput=10.0,
        token_goodput=goodput,
        attainment=1.0,
        attainment_admitted=1.0,
        tpot_rule="mean",
        client_limited=False,
    )
    judgement = Judgement.MET if ttft_s <= TTFT.limit_s else Judgement.MISSED
    return Measured(summary, Verdict((Check(TTFT, ttft_s, judgement),), 10), 30.0, effective or {})


def number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value


def smooth(config: Config) -> Outcome:
    """All feasible; one peak of 100 at seqs = 48, tokens = 3000, util = 0.85, compiled, chunked, prefix caching."""
    miss = (
        (math.log(number(config["seqs"]) / 48) / math.log(32)) ** 2
        + (math.log(number(config["tokens"]) / 3000) / math.log(16)) ** 2
        + ((number(config["util"]) - 0.85) / 0.35) ** 2
    )
    bonus = (not config["eager"]) + bool(config.get("chunked")) + bool(config["prefix"])
    return measured(70 * math.exp(-4 * miss) + 10 * bonus, 0.3)


def cliff(config: Config) -> Outcome:
    """`smooth`, but crashes with util > 0.85 and seqs > 64, and late first tokens with few tokens a step.

    Goodput grows towards the cliff, as on a real engine.
    """
    util, seqs, tokens = (number(config[name]) for name in ("util", "seqs", "tokens"))
    if util > 0.85 and seqs > 64:
        return Crashed(OOM)
    return measured(util * seqs + 10 * bool(config["prefix"]), 0.25 * math.sqrt(8192 / tokens))


def crash_region(config: Config) -> Outcome:
    """`smooth` with its peak cut off: crashes with util > 0.75 and seqs > 16, a third of uniform draws."""
    util, seqs = number(config["util"]), number(config["seqs"])
    if util > 0.75 and seqs > 16:
        return Crashed(OOM)
    return smooth(config)


def crash_aside(config: Config) -> Outcome:
    """`smooth` with a third of uniform draws crashing away from the peak: what a crash teaches also pays."""
    if not config["prefix"] and number(config["util"]) > 0.70:
        return Crashed(OOM)
    return smooth(config)


def run(
    optimizer: Optimizer,
    problem: Problem,
    evaluate: Evaluate,
    seed: int,
    history: Sequence[Trial] = (),
    stop: int | None = None,
) -> list[Trial]:
    """What the runner does, without an engine: up to `stop` trials (the budget), fewer where the space is used up."""
    trials = list(history)
    while len(trials) < (problem.budget if stop is None else stop):
        n = len(trials) + 1
        try:
            proposed = optimizer.propose(trials, stream(seed, "propose", n))
        except Exhausted:
            break
        config = problem.repair(proposed)
        trials.append(Trial(n, proposed, config, evaluate(config), 60.0))
    return trials


def of(outcome: Outcome, n: int, space: Space = SPACE) -> list[Trial]:
    """`n` random trials that all came out the same."""
    configs = [space.sample(stream(7, "history", i)) for i in range(n)]
    return [Trial(i, config, config, outcome, 60.0) for i, config in enumerate(configs, start=1)]
