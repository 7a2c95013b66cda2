"""One study: a way to tune, on a task, from a seed; and its record, one JSON line a trial.

All ways are asked alike: the same search for the capacity within one start, the same arrivals and noise for one seed.
All of them, baselines too, race: they are told the rate that the best config so far keeps, and a config that can't beat
it is dropped after one load. The one named `(no race)` is not. Where a way is confirmed, the best are measured again at
the end, as `tune` does: what would be deployed is marked in the record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks import Task
from truth import fingerprint
from ways import WAYS, Way, make_optimizer
from world import World

from sloguard.engine.simulated import SimulatedEngine
from sloguard.optim.base import Earlier, Goal, Problem, best
from sloguard.report.files import write_text_atomic
from sloguard.space.repair import RepairContext, Repaired, refusal, repair
from sloguard.space.space import Space
from sloguard.space.vllm import space_for
from sloguard.study.asking import CapacitySearch
from sloguard.study.confirm import explored
from sloguard.study.log import StudyLog
from sloguard.study.results import Results
from sloguard.study.runner import Study, run_study
from sloguard.trial import Config, Crashed, Trial

BUDGET = 15
COUNT, RECHECKS = 200, 2  # requests of a load at the least; fresh starts of each candidate: as `tune` has them
GOAL = Goal("capacity")


def space_of(task: Task, engine: SimulatedEngine) -> Space:
    facts = engine.facts()
    space = space_for(
        "vllm",
        version=facts.version,
        offered=facts.offered,
        device=facts.device,
        gpu=facts.gpu,
        max_len=task.max_len,
        allow_lossy=True,  # nobody reads what is answered here
    )
    return space.without(dict(task.fixed))


def context_of(task: Task, engine: SimulatedEngine) -> RepairContext:
    facts = engine.facts()
    return RepairContext(version=facts.version, model=facts.model, gpu=facts.gpu, fixed=task.fixed)


def study_of(
    task: Task,
    engine: SimulatedEngine,
    way: Way,
    seed: int,
    budget: int = BUDGET,
    earlier: tuple[Earlier, ...] = (),
) -> Study:
    space, context = space_of(task, engine), context_of(task, engine)

    def repaired(config: Config) -> Repaired:
        return repair(config, space, context)

    def refused(config: Config) -> str | None:
        return refusal(config, space, context) if way.guarded else None

    problem = Problem(space, GOAL, budget, lambda config: repaired(config).config, earlier)
    question = CapacitySearch(task.requests, task.contract, seed, task.near, COUNT)
    return Study(
        engine,
        make_optimizer(way, problem),
        space,
        repaired,
        refused,
        question,
        GOAL,
        seed,
        way.default_first,
        way.race,
        RECHECKS if way.confirmed else 0,
        retry_wait_s=0.0,
    )


def trials_of(study: Study, budget: int) -> Iterator[tuple[Trial, float, float]]:
    """Each trial as it ends, with the CPU seconds of its proposal and of its run."""
    proposed_s = 0.0

    def note(number: int, proposal: object) -> None:
        nonlocal proposed_s
        proposed_s = time.process_time()

    with TemporaryDirectory(dir=_memory_dir()) as directory:
        log = StudyLog(Path(directory))
        with log.writer():
            log.append_header({"spec": {}, "engine": study.engine.describe()})
            began_s = time.process_time()
            for trial in run_study(study, log, budget, note):
                now_s = time.process_time()
                yield trial, proposed_s - began_s, now_s - proposed_s
                began_s = time.process_time()


def _memory_dir() -> str | None:
    """Logs of a simulated study are no loss, so they need no disk."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() else None


def leaders(trials: Sequence[Trial], goal: Goal = GOAL) -> list[int | None]:
    """The number of the best after each trial, as a study that ends there would have it; those that measured again at
    the end change nothing.
    """
    found: list[int | None] = []
    for count in range(1, len(trials) + 1):
        leader = best(explored(trials[:count]), goal)
        found.append(leader.number if leader else None)
    return found


def record(
    trial: Trial, proposal_cpu_s: float, trial_cpu_s: float, leader: int | None, deployed: Trial | None
) -> dict[str, Any]:
    kind = trial.to_json()["outcome"]["kind"]
    capacity, crash = trial.capacity, trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    return {
        "number": trial.number,
        "recheck": trial.recheck,
        "leader": leader,
        "deployed": trial is deployed,
        "config": dict(trial.config),
        "overrides": dict(trial.overrides),
        "kind": kind,
        "cause": None if crash is None else f"{crash.category}/{crash.cause}/{crash.phase}",
        "feasible": trial.feasible,
        "score": GOAL.score(trial) or 0.0,
        "low": capacity.low if capacity else 0.0,
        "high": capacity.to_json()["high"] if capacity else None,
        "dropped": bool(capacity and capacity.dropped),
        "legs": len(capacity.legs) if capacity else 0,
        "avoided": len(trial.avoided),
        "cost_s": round(trial.cost_s, 3),
        "proposal_cpu_s": round(proposal_cpu_s, 4),
        "trial_cpu_s": round(trial_cpu_s, 4),
    }


def run_path(out: Path, task: str, way: str, seed: int) -> Path:
    return out / "runs" / f"{task}.{way}.{seed}.jsonl"


def run_one(out: Path, task: Task, way_name: str, seed: int, earlier: Sequence[Earlier] = ()) -> Path:
    """Runs the study and writes its record, unless it is there."""
    path = run_path(out, task.name, way_name, seed)
    if on_record(path, fingerprint(task)):
        return path
    study = study_of(task, World(task, seed), WAYS[way_name], seed, earlier=tuple(earlier))
    made = list(trials_of(study, BUDGET))
    trials = [trial for trial, *_ in made]
    deployed = Results(trials, GOAL, study.try_default).best
    lines = [record(*one, leader, deployed) for one, leader in zip(made, leaders(trials), strict=True)]
    write_records(path, lines, fingerprint(task))
    return path


def write_records(path: Path, records: Sequence[dict[str, Any]], world: str) -> None:
    write_text_atomic(path, "".join(json.dumps({**line, "world": world}) + "\n" for line in records))


def on_record(path: Path, world: str) -> bool:
    """Whether the study was made, and in the world as it is now."""
    return path.exists() and json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0]).get("world") == world
