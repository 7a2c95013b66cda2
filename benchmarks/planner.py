"""How long do policies take to decide a step?

    python benchmarks/planner.py [--running 256 512 1024 2048] [--waiting 64] [--steps 300] [--repeats 5] [--json FILE]

An engine without a GPU carries out each plan in 30 ms. A job that ends is replaced by one that decodes already, and as
many jobs wait at each step: new ones come, and those that have waited longest give up. Half of the jobs are promised
50 ms a token, half 100 ms, and three quarters of those that wait could not be promised anything any more. Prints p50
and p99 of one `plan` call for every policy, and how they grow.

Then the admission problem alone: 10 new jobs beside 8 promised, exact choice, greedy by density and by deadline, their
time and what they promise of what can be promised (1: everything the exact choice does).

Times are CPU times of the thread, and the best of `--repeats` runs is shown: other processes on the machine would only
add to them. Bars: p99 of a step at
256 running and 64 waiting <= 1 ms; p99 of an exact choice <= 2 ms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
from collections.abc import Callable
from time import thread_time

import numpy as np

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.registry import load
from sloguard.sched.admission import Demand, Problem, by_density
from sloguard.sched.job import Job, Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Quantile
from sloguard.sched.pb_star import PbStar, Tiers
from sloguard.sched.policy import POLICIES, Limits, Policy, View
from sloguard.sched.slos_serve import EXACT_UPTO, MAX_STATES

TPOTS_S = (0.05, 0.1)
WARM_UP = 20
ARRIVALS = 1  # a step: as many as end


def engine_time(running: int) -> BatchTime:
    """About an H100 with an 8B model at 256 running; with more, an engine that keeps their pace as well."""
    faster = 256 / running
    small = Piece(8e-3, 8e-6 * faster, 8e-6 * faster, 40e-9 * faster, 0.0)
    large = Piece(5e-3, 20e-6 * faster, 20e-6 * faster, 40e-9 * faster, 2e-9 * faster)
    return BatchTime((small, large), cpu_step_s=0.2e-3, cpu_sequence_s=50e-6 * faster)


class Engine:
    """Keeps `running` jobs decoding and `waiting` jobs waiting, whatever the policy does with them."""

    def __init__(self, policy: Policy, running: int, waiting: int, seed: int) -> None:
        self.policy, self.rng = policy, np.random.default_rng(seed)
        self.time = engine_time(running)
        self.kv = KvCache(running * 120)
        self.limits = Limits(running + 64, max(8192, 4 * running), 8192)
        self.lengths = Quantile()
        self.now_s, self.made = 100.0, 0
        self.target, self.queue = running, waiting
        self.running: dict[str, Job] = {}
        self.waiting: dict[str, Job] = {}
        for _ in range(running):
            self._add_decoding()
        for index in range(waiting):
            job = self._job()
            job.tier = Tier.NEW if index % 4 == 0 else Tier.BEST_EFFORT
            self.waiting[job.id] = job

    def _job(self) -> Job:
        self.made += 1
        prompt, output = int(self.rng.integers(20, 1000)), int(self.rng.integers(50, 400))
        tpot_s = TPOTS_S[self.made % 2]
        return Job(f"j{self.made}", self.now_s, prompt, output, ttft_s=0.3 + prompt * 2e-4, tpot_s=tpot_s)

    def _add_decoding(self) -> None:
        job = self._job()
        job.tier = Tier.PROMISED
        job.generated_tokens = int(self.rng.integers(1, job.output_tokens))
        job.computed_tokens = job.known_tokens - 1
        job.arrival_s -= job.generated_tokens * 0.05
        job.first_token_s = job.arrival_s + 0.2
        assert self.kv.admit(job, 0, job.computed_tokens, whole=False)
        self.running[job.id] = job

    def step(self) -> float:
        """Carries out one plan; returns the seconds that deciding it took."""
        view = View(list(self.running.values()), self.waiting.values(), self.kv, self.limits, self.time, self.lengths)
        begun_s = thread_time()
        plan = self.policy.plan(self.now_s, view)
        taken_s = thread_time() - begun_s
        self.now_s += 0.03
        for name in plan.evict:
            job = self.running.pop(name)
            job.computed_tokens = 0
            self.waiting[name] = job
        for name, cached in plan.admit.items():
            job = self.running[name] = self.waiting.pop(name)
            job.computed_tokens = cached
        for name, tokens in plan.tokens.items():
            job = self.running[name]
            job.computed_tokens += tokens
            if job.computed_tokens == job.known_tokens:
                job.generated_tokens += 1
                job.first_token_s = job.first_token_s or self.now_s
        for job in [job for job in self.running.values() if job.generated_tokens >= job.output_tokens]:
            self._leave(job)
            self.lengths.finished(job)
        for job in list(self.running.values())[: max(0, len(self.running) - self.target)]:
            self._leave(job)
        while len(self.running) < self.target:
            self._add_decoding()
        for _ in range(ARRIVALS):
            job = self._job()
            self.waiting[job.id] = job
        while len(self.waiting) > self.queue:
            del self.waiting[next(iter(self.waiting))]
        while len(self.waiting) < self.queue:
            job = self._job()
            job.tier = Tier.BEST_EFFORT
            self.waiting[job.id] = job
        return taken_s

    def _leave(self, job: Job) -> None:
        self.kv.release(job)
        del self.running[job.id]


def steps_ms(name: str, running: int, waiting: int, steps: int, seed: int) -> tuple[float, float]:
    """p50 and p99 of a plan."""
    engine = Engine(load(POLICIES, name, "--policy", "plan")(), running, waiting, seed)
    for _ in range(WARM_UP):
        engine.step()
    gc.collect()
    gc.freeze()  # what was built up before is not looked at again
    taken = [engine.step() * 1e3 for _ in range(steps)]
    gc.unfreeze()
    return float(np.percentile(taken, 50)), float(np.percentile(taken, 99))


def admission_problem(rng: np.random.Generator, new: int, promised: int) -> tuple[list[Demand], int]:
    """Demands for about twice what fits."""
    demands = [
        Demand(
            due_s=0.15 + float(rng.random() * 0.6),
            tokens=int(rng.integers(50, 2000)),
            tier=int(rng.integers(2)),
            blocks=int(rng.integers(10, 120)),
            promised=index < promised,
        )
        for index in range(new + promised)
    ]
    demands = [Demand(d.due_s, d.tokens // 8, d.tier, promised=True) if d.promised else d for d in demands]
    return demands, int(rng.integers(200, 800))


def fresh(demands: list[Demand], blocks: int) -> Problem:
    """With nothing worked out yet."""
    ahead = PbStar(engine_time(256), Tiers.plain(TPOTS_S), kv_tokens=600, context_tokens=250)
    return Problem(demands, (60, 60), blocks, ahead)


def admission(problems: int, new: int, seed: int) -> dict[str, dict[str, float]]:
    """Milliseconds and share of the best value, by way of choosing."""
    ways: dict[str, Callable[[Problem], set[int] | None]] = {
        f"exact, up to {MAX_STATES} states": lambda problem: problem.best_choice(MAX_STATES),
        "greedy by density": lambda problem: problem.in_order(by_density(problem)),
        "greedy by deadline": lambda problem: problem.in_order(problem.free),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, int] = dict.fromkeys(ways, 0)
    best = gave_up = 0
    rng = np.random.default_rng(seed)
    for _ in range(problems):
        demands, blocks = admission_problem(rng, new, 8)

        exact = fresh(demands, blocks).best_choice()
        assert exact is not None
        best += len(exact)
        for way, choose in ways.items():
            begun_s = thread_time()
            chosen = choose(fresh(demands, blocks))
            taken[way].append((thread_time() - begun_s) * 1e3)
            gave_up += chosen is None
            found[way] += len(exact if chosen is None else chosen)
    return {
        way: {
            "p50_ms": float(np.percentile(taken[way], 50)),
            "p99_ms": float(np.percentile(taken[way], 99)),
            "of_best": found[way] / best,
        }
        for way in ways
    } | {"exact gave up": {"share": gave_up / problems}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policy", nargs="+", default=sorted(POLICIES))
    parser.add_argument("--json")
    args = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"one plan, {args.waiting} waiting, ms: p50 / p99, best of {args.repeats} runs of {args.steps} steps\n")
    print(f"{'policy':<16}" + "".join(f"{f'{running} running':>18}" for running in args.running))
    rows: list[dict[str, object]] = []
    for name in args.policy:
        cells: list[str] = []
        for running in args.running:
            runs = [steps_ms(name, running, args.waiting, args.steps, seed) for seed in range(args.repeats)]
            p50, p99 = min(p50 for p50, _ in runs), min(p99 for _, p99 in runs)
            rows.append({"policy": name, "running": running, "waiting": args.waiting, "p50_ms": p50, "p99_ms": p99})
            cells.append(f"{f'{p50:.2f} / {p99:.2f}':>18}")
        print(f"{name:<16}" + "".join(cells), flush=True)

    runs = [admission(200, EXACT_UPTO, seed) for seed in range(args.repeats)]
    print(f"\nadmission of {EXACT_UPTO} new jobs beside 8 promised, best of {args.repeats} runs of 200 problems\n")
    table: dict[str, dict[str, float]] = {}
    for way in runs[0]:
        table[way] = {figure: min(run[way][figure] for run in runs) for figure in runs[0][way]}
        if "of_best" in table[way]:
            table[way]["of_best"] = float(np.mean([run[way]["of_best"] for run in runs]))
        print(f"{way:<28}" + "".join(f"{figure} {number:.3f}   " for figure, number in table[way].items()))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": rows, "admission": table}, file, indent=1)


if __name__ == "__main__":
    main()
