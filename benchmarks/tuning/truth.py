"""What a config is really worth: its capacity without noise, by 800 requests, and how often it starts.

Two searches: a coarse one finds about where to look, the fine one begins a tenth below. By fewer requests the optimum
would be the config that the arrivals happen to suit. Start-up has luck of its own
(fragments, the size of graphs), so the capacity is that of the first start which works, and `starts` is the share of
starts that do. Answers are kept, a line each, in OUT/worlds/TASK.jsonl. Two processes may write there: a line is one
write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks import Task
from world import Hidden, World

from sloguard.engine.base import Load, LoadPlan
from sloguard.engine.simulated import SimulatedEngine
from sloguard.errors import EngineCrash
from sloguard.request import Timeline
from sloguard.study.asking import CapacitySearch
from sloguard.trial import Ask, Config

SEED = 987_654_321  # arrivals that no study is offered
COARSE_COUNT, COARSE_TOLERANCE = 150, 0.1
FINE_COUNT, FINE_TOLERANCE = 800, 0.06  # between two rates the capacity is told by how far each is off
BELOW, STEP_DOWN, MOST_STEPS = 0.9, 0.88, 12
STARTS = 20


@dataclass(frozen=True, slots=True)
class Truth:
    """`rate` [requests/s]: 0 where no start works or nothing keeps the promises."""

    rate: float
    starts: float


class Worlds:
    """Truths by task and config, kept in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[str, dict[str, Truth]] = {}

    def known(self, task: Task) -> dict[str, Truth]:
        """Of a task, by `key_of`."""
        if task.name not in self._known:
            self._known[task.name] = self._read(task)
        return self._known[task.name]

    def truth(self, task: Task, overrides: Config) -> Truth:
        """Of what a user sets (nothing: the engine's default)."""
        known, key = self.known(task), key_of(overrides)
        if key not in known:
            known[key] = find_truth(task, overrides)
            self._write(task, key, known[key])
        return known[key]

    def _path(self, task: Task) -> Path:
        return self.directory / f"{task.name}.jsonl"

    def _read(self, task: Task) -> dict[str, Truth]:
        path, world = self._path(task), fingerprint(task)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return {r["config"]: Truth(r["rate"], r["starts"]) for r in records if r["world"] == world}

    def _write(self, task: Task, key: str, truth: Truth) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"config": key, "world": fingerprint(task), **asdict(truth)}) + "\n"
        descriptor = os.open(self._path(task), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def key_of(overrides: Config) -> str:
    return json.dumps(dict(overrides), sort_keys=True)


@lru_cache
def fingerprint(task: Task) -> str:
    """Differs where the task or what is hidden of it does: what was known of another world is no use."""
    return hashlib.sha256(repr((task, Hidden.of(task))).encode()).hexdigest()[:12]


def find_truth(task: Task, overrides: Config) -> Truth:
    begun = [seed for seed in range(STARTS) if _starts(World(task, seed, noise=0.0), overrides)]
    if not begun:
        return Truth(0.0, 0.0)
    world = World(task, begun[0], noise=0.0)
    rate = _capacity(world, overrides, task, COARSE_COUNT, COARSE_TOLERANCE, Ask())
    if rate:
        rate *= BELOW
        for _ in range(MOST_STEPS):
            if found := _capacity(world, overrides, task, FINE_COUNT, FINE_TOLERANCE, Ask(to_beat=rate)):
                return Truth(found, len(begun) / STARTS)
            rate *= STEP_DOWN
    return Truth(0.0, len(begun) / STARTS)


def _starts(engine: SimulatedEngine, overrides: Config) -> bool:
    with TemporaryDirectory() as directory:
        try:
            engine.run(overrides, LoadPlan(no_loads(), SEED), Path(directory))
        except EngineCrash:
            return False
    return True


def no_loads() -> Generator[Load, Sequence[Timeline], None]:
    yield from ()


def _capacity(engine: SimulatedEngine, overrides: Config, task: Task, count: int, tolerance: float, ask: Ask) -> float:
    question = CapacitySearch(task.requests, task.contract, SEED, task.near, count, tolerance)
    with TemporaryDirectory() as directory:
        _, _, capacity = question.measured(ask, engine.run(overrides, question.plan(ask), Path(directory)))
    return capacity.estimate if capacity else 0.0
