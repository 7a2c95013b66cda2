"""Tasks from real measurements: each config of a table was run by somebody, and what it gave is looked up.

InferenceX by way of AIConfigurator (aic_silicon_inferencex.csv.gz): DeepSeek-R1 and MiniMax-M2.5 on eight B200 or
fewer. A config is backend, precision, parallelism and concurrency. Score: output tokens/s a GPU by Little's law,
concurrency*osl/(TTFT + osl*TPOT)/GPUs, of what keeps both limits.

SLO-Guard's sequential study (sloguard_trials_sequential.jsonl): Qwen2-1.5B on an A100 40 GB, the paper's knobs. Score:
requests/s of one client, 1/latency. `sloguard compare` prints the paper's own measures of it.

Each row was measured at one load, so the objective is the goodput, under limits on the median TTFT and TPOT. What was
not measured can't be run, so a proposal is repaired to the nearest row. No engine's default is known, nothing crashes,
every trial is taken to last four minutes, and a measurement is its own truth.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from loop import BUDGET, leaders, on_record, run_path, write_records
from ways import WAYS, make_optimizer

from sloguard.contract import Check, Limit, Metric, Verdict
from sloguard.metrics import summarise
from sloguard.optim.base import Exhausted, Goal, Problem
from sloguard.request import End, Request, Stage, Timeline
from sloguard.rng import stream
from sloguard.slo import Judgement
from sloguard.space.knobs import Categorical, Int, Knob, same
from sloguard.space.space import Space
from sloguard.trial import Config, Measured, Trial, Value

DATA = Path("../shared/data")
SILICON, SEQUENTIAL = "tuning/aic_silicon_inferencex.csv.gz", "tuning/sloguard_trials_sequential.jsonl"
ONE_EACH = ("random", "tpe+default", "tba-tpe", "constrained-bo+default", "gp+default", "smac+default", "guided")
KNOBS = ("backend", "precision", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")  # and concurrency
GPUS = ("tp_size", "pp_size", "attention_dp_size")
GOAL = Goal("goodput")
WORLD = "measured, goodput"  # what is on record of another question is asked anew
TRIAL_S = 240.0  # about what a start and a search take: the budget is an hour


@dataclass(frozen=True, slots=True)
class Row:
    """`score` of a config, and what it measured of each metric that has a limit."""

    config: Config
    score: float
    checks: tuple[Check, ...] = ()

    @property
    def kept(self) -> bool:
        return all(check.judgement is Judgement.MET for check in self.checks)


@dataclass(frozen=True)
class Table:
    space: Space
    rows: tuple[Row, ...]

    @property
    def optimum(self) -> float:
        return max(row.score for row in self.rows if row.kept)

    def nearest(self, config: Config) -> Row:
        """By the sum over knobs of how far values lie apart in the unit cube; other choices lie 1 apart."""
        return min(self.rows, key=lambda row: sum(self._apart(k, config, row.config) for k in self.space.knobs))

    @staticmethod
    def _apart(knob: Knob, a: Config, b: Config) -> float:
        if knob.name not in a or knob.name not in b:
            return float(knob.name in a or knob.name in b)
        if isinstance(knob, Categorical):
            return float(not same(a[knob.name], b[knob.name]))
        return abs(knob.encode(a[knob.name]) - knob.encode(b[knob.name]))


@dataclass(frozen=True, slots=True)
class Silicon:
    """Rows of one model and system at one input and output length, and the limits that a config keeps or not."""

    model: str
    system: str
    isl: int
    osl: int
    ttft_ms: float
    tpot_ms: float


# A table tells no more of a run than its score: the summary that a trial needs is of one request.
_NOTHING_MORE = summarise(
    [Timeline(Request("r0", 0.0, (Stage(1, 1),)), 0.0, 0.0, np.array([1.0]), End.COMPLETED)],
)

TABULAR: dict[str, Silicon | None] = {
    "real-deepseek-1k": Silicon("deepseek-ai/DeepSeek-R1", "b200_sxm", 1024, 1024, 300, 12),
    "real-deepseek-8k": Silicon("deepseek-ai/DeepSeek-R1", "b200_sxm", 8192, 1024, 1200, 14),
    "real-minimax-1k": Silicon("MiniMaxAI/MiniMax-M2.5", "b200_sxm", 1024, 1024, 120, 10),
    "real-minimax-8k": Silicon("MiniMaxAI/MiniMax-M2.5", "b200_sxm", 8192, 1024, 600, 15),
    "real-qwen2-a100": None,  # SLO-Guard's own trials
}


@lru_cache
def table_of(name: str, data: Path) -> Table:
    asked = TABULAR[name]
    return _sequential(data / SEQUENTIAL) if asked is None else _silicon(data / SILICON, asked)


def _silicon(path: Path, asked: Silicon) -> Table:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        wanted = (asked.model, asked.system, "agg", str(asked.isl), str(asked.osl))
        keys = ("model_path", "system", "mode", "isl", "osl")
        lines = [line for line in csv.DictReader(file) if tuple(line[key] for key in keys) == wanted]
    measured: dict[Config, list[tuple[float, float, int]]] = defaultdict(list)
    for line in lines:
        gpus = math.prod(int(float(line[name] or 1)) for name in GPUS)
        concurrency = int(float(line["batch_size"]))
        config = Config({**{name: line[name] for name in KNOBS}, "concurrency": concurrency})
        measured[config].append((float(line["silicon_ttft_ms"]), float(line["silicon_tpot_ms"]), gpus))
    rows: list[Row] = []
    for config, found in measured.items():
        ttft_ms, tpot_ms = (float(np.median([each[i] for each in found])) for i in (0, 1))
        seconds = (ttft_ms + asked.osl * tpot_ms) / 1000
        score = int(str(config["concurrency"])) * asked.osl / seconds / found[0][2]
        checks = (_check(Metric.TTFT, ttft_ms, asked.ttft_ms), _check(Metric.TPOT, tpot_ms, asked.tpot_ms))
        rows.append(Row(config, score, checks))
    return Table(_space(rows), tuple(rows))


def _check(metric: Metric, measured_ms: float, limit_ms: float) -> Check:
    kept = Judgement.MET if measured_ms <= limit_ms else Judgement.MISSED
    return Check(Limit(metric, 50, limit_ms / 1000), measured_ms / 1000, kept)


def _sequential(path: Path) -> Table:
    latencies: dict[Config, list[float]] = defaultdict(list)
    for trial in _published(path):
        latencies[Config(trial["config"])].append(trial["avg_latency_ms"])
    rows = [Row(config, 1000 / float(np.median(found))) for config, found in latencies.items()]
    return Table(_space(rows), tuple(rows))


def _published(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _space(rows: Sequence[Row]) -> Space:
    """Counts over their range (log), anything else as a choice among what was measured."""
    values: dict[str, list[Value]] = defaultdict(list)
    for row in rows:
        for name, value in row.config.items():
            if not any(same(value, known) for known in values[name]):
                values[name].append(value)
    knobs: list[Knob] = []
    for name, found in sorted(values.items()):
        counts = [v for v in found if isinstance(v, int) and not isinstance(v, bool)]
        when = ("enforce_eager", False) if name == "enable_chunked_prefill" else None
        if len(counts) == len(found) > 2:
            knobs.append(Int(name, min(counts), max(counts), log=True))
        else:
            knobs.append(Categorical(name, tuple(sorted(found, key=repr)), when=when))
    return Space(tuple(sorted(knobs, key=lambda knob: knob.when is not None)))


def run_one(out: Path, name: str, way: str, seed: int, data: Path) -> None:
    path = run_path(out, name, way, seed)
    if on_record(path, WORLD):
        return
    table = table_of(name, data)
    problem = Problem(table.space, GOAL, BUDGET, lambda config: table.nearest(config).config)
    optimizer = make_optimizer(WAYS[way], problem)
    history: list[Trial] = []
    records: list[dict[str, Any]] = []
    for number in range(1, BUDGET + 1):
        began_s = time.process_time()
        try:
            proposed = optimizer.propose(history, stream(seed, "propose", number, 0))
        except Exhausted:
            break
        row = table.nearest(proposed)
        history.append(_trial(number, proposed, row))
        records.append(_record(history[-1], row, table.optimum, time.process_time() - began_s))
    found = leaders(history, GOAL)
    told = [
        {**one, "leader": leader, "deployed": one["number"] == found[-1]}
        for one, leader in zip(records, found, strict=True)
    ]
    write_records(path, told, WORLD)


def _trial(number: int, proposed: Config, row: Row) -> Trial:
    summary = replace(_NOTHING_MORE, token_goodput=row.score)
    outcome = Measured(summary, Verdict(row.checks, 1), 0.0)
    return Trial(number, proposed, row.config, outcome, cost_s=TRIAL_S)


def _record(trial: Trial, row: Row, optimum: float, cpu_s: float) -> dict[str, Any]:
    plain: Mapping[str, Value] = row.config
    return {
        "number": trial.number,
        "recheck": None,
        "config": dict(plain),
        "overrides": dict(plain),
        "kind": "measured",
        "feasible": trial.feasible,
        "score": row.score if trial.feasible else 0.0,
        "low": row.score if trial.feasible else 0.0,
        "truth": row.score,
        "optimum": optimum,
        "cost_s": trial.cost_s,
        "proposal_cpu_s": round(cpu_s, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    for name in TABULAR:
        table = table_of(name, options.data)
        kept = sum(row.kept for row in table.rows)
        print(f"{name}: {len(table.rows)} configs, {kept} keep the limits, best {table.optimum:.4g}")


if __name__ == "__main__":
    main()
