"""What the tasks are like: how many configs crash, and how good the engine's default is.

    python benchmarks/tuning/survey.py --out DIR [--tasks a,b]

Crash share: of 400 uniform random configs, repaired and passed by the guard, those whose start, or load, crashes.
Default: its true capacity over the best that is known (random and TPE, without noise, from the default on).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from loop import context_of, space_of
from names import names_among
from optimum import seek_optimum
from tasks import TASKS, Task
from truth import SEED, Worlds, no_loads
from world import World

from sloguard.crash import diagnose
from sloguard.engine.base import LoadPlan
from sloguard.errors import EngineCrash
from sloguard.rng import stream
from sloguard.space.repair import refusal, repair
from sloguard.trial import Config

CONFIGS = 400
UNIFORM, SOUGHT = 30, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=names_among(TASKS), default=list(TASKS))
    options = parser.parse_args()
    print("| task | GPU, model | workload | TTFT, TPOT ms | noise | crash | refused | default | best req/s | causes |")
    print("|---" * 10 + "|")
    for task in (TASKS[name] for name in options.tasks):
        print(row(task, Worlds(options.out / "worlds")), flush=True)


def row(task: Task, worlds: Worlds) -> str:
    causes, refused = crashes(task)
    share = sum(causes.values()) / CONFIGS
    default = worlds.truth(task, Config())
    _, truth = seek_optimum(task, worlds, [Config()], UNIFORM, SOUGHT)
    worth = f"{default.rate / truth.rate:.2f} (starts {default.starts:.0%})" if truth.rate else "-"
    model = task.model.split("/")[-1]
    promise = f"{task.ttft_ms:g}, {task.tpot_ms:g}"
    told = ", ".join(f"{cause} {count / CONFIGS:.0%}" for cause, count in causes.most_common(3))
    cells = (
        task.name,
        f"{task.gpu}, {model}",
        task.workload,
        promise,
        f"{task.noise:.0%}",
        f"{share:.0%}",
        f"{refused:.0%}",
        worth,
        f"{truth.rate:.2f}",
        told,
    )
    return f"| {' | '.join(cells)} |"


def crashes(task: Task) -> tuple[Counter[str], float]:
    """How many of `CONFIGS` configs crash, by cause and phase, and the share of draws that the guard refused."""
    engine = World(task, 0)
    space, context, rng = space_of(task, engine), context_of(task, engine), stream(0, "survey", task.name)
    causes: Counter[str] = Counter()
    drawn = kept = 0
    with TemporaryDirectory() as directory:
        while kept < CONFIGS:
            config = repair(space.sample(rng), space, context).config
            drawn += 1
            if refusal(config, space, context) is not None:
                if drawn > 100 * CONFIGS:
                    raise ValueError(f"{task.name}: the guard lets {kept} of {drawn} configs pass")
                continue
            kept += 1
            try:
                World(task, kept).run(config, LoadPlan(no_loads(), SEED), Path(directory))
            except EngineCrash as error:
                crash = diagnose(error.evidence)
                causes[f"{crash.cause} ({crash.phase})"] += 1
    return causes, 1 - kept / drawn


if __name__ == "__main__":
    main()
