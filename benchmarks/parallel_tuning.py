"""Trials in parallel: the same budget in less time, and what does it cost in quality?

    python benchmarks/parallel_tuning.py [--parallel 4] [--budget 24] [--seeds 8]

Studies of a simulated engine (Llama-3.1-8B on A100-40GB, 8 requests/s, TTFT p99 500 ms, ITL p99 100 ms), trial after
trial and `--parallel` at a time. Times are virtual: start, load and stop of every engine, as a real study would take.
With several at a time the optimizer chooses without knowing the outcomes of those that run, so it learns less from as
many trials. Shares are of the best goodput that any study of the seed found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from sloguard.study.build import build_study
from sloguard.study.lanes import Lane
from sloguard.study.log import StudyLog
from sloguard.study.parallel import run_parallel
from sloguard.study.runner import Study, attempt
from sloguard.study.spec import StudySpec
from sloguard.trial import Proposal, Trial

NEAR = 0.95
Curve = list[tuple[float, float]]  # hours into the study, best score until then (0: none feasible)


class Here:
    """Makes trials in this process: a simulated one takes no GPU."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def make(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        return attempt(self._study, proposal, number, trial_dir)

    def end(self) -> None:
        """Nothing is left running."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--budget", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--optimizer", default="tba-tpe")
    options = parser.parse_args()
    ways = (1, options.parallel)
    with ProcessPoolExecutor() as pool:
        asked = [(way, seed) for seed in range(options.seeds) for way in ways]
        made = dict(zip(asked, pool.map(curve, *_columns(asked, options)), strict=True))
    best = [max(made[way, seed][-1][1] for way in ways) for seed in range(options.seeds)]
    names = ("trials at a time", "hours", f"best, share after {options.budget}", f"hours to {NEAR:.0%}", "reached it")
    print("| " + " | ".join(names) + " |\n|" + " ---: |" * len(names))
    for way in ways:
        curves = [made[way, seed] for seed in range(options.seeds)]
        shares = [found[-1][1] / top for found, top in zip(curves, best, strict=True)]
        reached = [hours_to(found, NEAR * top) for found, top in zip(curves, best, strict=True)]
        there = [hours for hours in reached if hours is not None]
        hours = f"{fmean(there):.2f}" if there else ""
        print(
            f"| {way} | {fmean(found[-1][0] for found in curves):.2f} | {fmean(shares):.3f} | {hours} | "
            f"{len(there)} of {options.seeds} |"
        )
    return 0


def _columns(asked: Sequence[tuple[int, int]], options: argparse.Namespace) -> list[list[object]]:
    rows = [(way, seed, options.budget, options.optimizer) for way, seed in asked]
    return [list(column) for column in zip(*rows, strict=True)]


def curve(lanes: int, seed: int, budget: int, optimizer: str) -> Curve:
    spec = StudySpec(
        "sim",
        "meta-llama/Llama-3.1-8B",
        optimizer,
        budget,
        seed,
        {"ttft": 0.5, "itl": 0.1},
        gpu="A100-40GB",
        request_rate=8.0,
        num_requests=200,
        objective="goodput",
        rechecks=0,
    )
    study, goal = build_study(spec), spec.goal
    with TemporaryDirectory() as name, ExitStack() as stack:
        log = StudyLog(Path(name))
        stack.enter_context(log.writer())
        log.append_header({"spec": {}, "engine": {}})
        made = [Lane(lambda: Here(study)) for _ in range(lanes)]
        for lane in made:
            stack.callback(lane.close)
        free_s = [0.0] * lanes
        found: Curve = [(0.0, 0.0)]
        for trial in run_parallel(study, log, budget, made, simulated=True):
            lane = log.proposals()[trial.number][0]
            free_s[lane] += trial.cost_s
            score = (goal.score(trial) or 0.0) if trial.feasible else 0.0
            found.append((free_s[lane] / 3600, max(found[-1][1], score)))
    return found


def hours_to(found: Curve, score: float) -> float | None:
    return next((hours for hours, best in found if best >= score), None)


if __name__ == "__main__":
    sys.exit(main())
