"""Tunes simulated tasks in several ways, from several seeds, and says how near each came to the optimum.

    python benchmarks/tuning/run.py --out DIR [--seeds 20] [--tasks a,b|all] [--ways x,y] [--jobs 2] [--data DIR]

Without --tasks: a dozen of the simulated ones (tasks.py), and those from real measurements where their data are.

What was run is on record in DIR (runs/, worlds/, priors/), and the same command goes on where it was stopped. Ways
whose library is not installed are left out: run them from an environment that has it, into the same DIR. Optuna's GP
and constrained BO need `sloguard[bo]`; SMAC3 is no extra of sloguard's: `pip install smac` beside it.
Tables and figures (table.py) are of what is on record of these tasks, in all ways. A task that changed is run anew;
after a change of sloguard itself, take another DIR. survey.py with the same DIR helps to find the optima.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import tabular
from loop import on_record, run_one, run_path, space_of
from names import names_among, read_tasks
from prior import PRIORS
from table import OURS, show
from tabular import DATA, ONE_EACH, SEQUENTIAL, SILICON, TABULAR, WORLD
from tasks import DOZEN, TASKS
from truth import fingerprint
from ways import WAYS, make_optimizer
from world import World

from sloguard.errors import MissingExtra
from sloguard.optim.base import Goal, Problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tasks", type=read_tasks, default=[*DOZEN, *TABULAR])
    parser.add_argument("--ways", type=names_among(WAYS), default=list(WAYS))
    parser.add_argument("--data", type=Path, default=DATA, help="of the measured tasks (tabular.py)")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks = [task for task in options.tasks if task in TASKS or there(options.data, task)]
    try:
        run(options.out, options.data, tasks, options.ways, options.seeds, options.jobs)
        show(options.out, OURS, options.jobs, tasks)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on ({options.out})", file=sys.stderr)
        return 130
    return 0


def there(data: Path, task: str) -> bool:
    """Whether the data of a measured task are."""
    path = data / (SEQUENTIAL if TABULAR[task] is None else SILICON)
    if not path.is_file():
        print(f"left out: {task} (no {path})", file=sys.stderr)
    return path.is_file()


def run(out: Path, data: Path, tasks: Sequence[str], ways: Sequence[str], seeds: int, jobs: int) -> None:
    (out / "runs").mkdir(parents=True, exist_ok=True)
    usable = installed(ways)
    todo = [
        (task, way, seed)
        for seed in range(1, seeds + 1)
        for task in tasks
        for way in usable
        if task in TASKS or way in ONE_EACH
        if not on_record(run_path(out, task, way, seed), fingerprint(TASKS[task]) if task in TASKS else WORLD)
    ]
    began_s = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        asked = {executor.submit(one, out, data, *each): each for each in todo}
        for done, future in enumerate(as_completed(asked), start=1):
            future.result()
            passed_s = time.monotonic() - began_s
            print(f"{done:5}/{len(todo)} {passed_s:6.0f} s  {' '.join(map(str, asked[future]))}", file=sys.stderr)


def one(out: Path, data: Path, task: str, way: str, seed: int) -> None:
    if task in TABULAR:
        tabular.run_one(out, task, way, seed, data)
        return
    prior = WAYS[way].prior
    run_one(out, TASKS[task], way, seed, () if prior is None else (PRIORS[prior](out, TASKS[task]),))


def installed(ways: Sequence[str]) -> list[str]:
    """Those whose libraries are there; the others are said."""
    task = next(iter(TASKS.values()))
    problem = Problem(space_of(task, World(task, 0)), Goal("capacity"), 1, lambda config: config)
    found: list[str] = []
    for way in ways:
        try:
            make_optimizer(WAYS[way], problem)
            found.append(way)
        except (MissingExtra, ModuleNotFoundError) as error:
            print(f"left out: {way} ({error})", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
