"""Can the simulator be trusted? Three answers: steps of models never measured, replays of real runs, decisions.

    python benchmarks/fidelity.py DATA_DIR [--json FILE] [--sections shapes,replay,decisions]
    python benchmarks/fidelity.py BENCH.json --gpu H100 --kv-blocks 27510 [--tp 1 ...]

shapes     every model of the tables of composed steps, predicted from its shape with rates fitted on the other models
replay     every run of `*_runs.csv` with its `*_requests.csv.gz`; or your own, which `sloguard bench --json BENCH.json`
           measured on a vLLM with prefix caching and async scheduling on. Flags say what a client cannot see; KV blocks
           are the KV tokens that vLLM logs at its start over the block size
decisions  tests/sched/test_vllm_equivalence.py: the same step decisions as the installed vLLM's scheduler

A run is overloaded where the client gave requests up or their median TTFT is above 1 s: it is reported apart, because
there a small error of capacity grows with the queue. Errors are (simulated - measured)/measured.
Exit code: 0 measured, 1 a decision differed, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_replay import Floats, Replayed, Run, read_bench, read_runs, replay, tpot_s
from fidelity_shapes import LeftOut, leave_one_out, read_groups
from rich.console import Console
from rich.table import Table

from sloguard.errors import SpecError

REPO = Path(__file__).resolve().parents[1]
EQUIVALENCE = REPO / "tests" / "sched" / "test_vllm_equivalence.py"
SECTIONS = ("shapes", "replay", "decisions")
SHAPES_BAR, REPLAY_BAR = 0.15, 0.10
SLO_S = (0.5, 0.05)  # TTFT, TPOT
TIGHT = 1.2  # a second promise: so many times the run's measured medians, where errors show

console = Console(width=180)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of measurements, or a JSON of sloguard bench")
    parser.add_argument("--json", type=Path, help="save all figures")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--gpu")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--kv-blocks", type=int)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int)
    flags = parser.parse_args()
    wanted = set(flags.sections.split(","))
    if not wanted <= set(SECTIONS):
        parser.error(f"--sections takes {', '.join(SECTIONS)}")
    if not flags.data.exists():
        parser.error(f"{flags.data} does not exist")

    own_run = flags.data.is_file()
    result: dict[str, Any] = {}
    if "shapes" in wanted and not own_run:
        result["shapes"] = shapes(flags.data)
    if "replay" in wanted:
        names = ("gpu", "tp", "kv_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
        server = {name: getattr(flags, name) for name in names}
        unknown: set[str] = set()
        try:
            runs = [read_bench(flags.data, server)] if own_run else read_runs(flags.data, unknown)
            result["replay"] = replays(runs)
        except SpecError as error:
            parser.error(str(error))
        _say_unknown(unknown)
    differed = False
    if "decisions" in wanted:
        result["decisions"], differed = decisions()
    if flags.json is not None:
        flags.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return int(differed)


def shapes(data_dir: Path) -> list[dict[str, Any]]:
    groups, unknown = read_groups(data_dir)
    rows = leave_one_out(groups)
    table = Table(title=f"Predicted from shape, model left out (bar: MAPE {SHAPES_BAR:.0%})", title_justify="left")
    for name in ("GPU", "model", "TP", "kernels", "steps", "MAPE left out", "MAPE as shipped", "shares of peak from"):
        table.add_column(name, justify="right" if "MAPE" in name or name in ("TP", "steps") else "left")
    for row in rows:
        table.add_row(*_cells(row), style=None if row.mape <= SHAPES_BAR else "yellow")
    console.print(table if rows else "No derived_batch_times_*.csv.gz: nothing to predict.")
    _say_unknown(unknown)
    return [asdict(row) for row in rows]


def _say_unknown(names: set[str]) -> None:
    if names:
        text = f"Left out, for sloguard doesn't know their shape: {', '.join(sorted(names))}"
        console.print(f"{text}. Add them to src/sloguard/perf/models.py or gpus.py.", style="yellow")


def _cells(row: LeftOut) -> Iterable[str]:
    return (
        *(row.gpu, row.model, str(row.tp), row.kernels, str(row.steps)),
        *(f"{row.mape:.1%}", f"{row.seen_mape:.1%}", row.rates_of),
    )


def replays(runs: Iterable[Run]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for run in runs:
        console.print(f"replaying {run.name}: {len(run.requests)} requests", style="dim")
        rows.append(compared(run, replay(run)))
    for overloaded in (False, True):
        some = [row for row in rows if row["overloaded"] is overloaded]
        if some:
            bar = f"below overload (bar: {REPLAY_BAR:.0%} at p50)"
            console.print(_latencies("Replay, overloaded" if overloaded else f"Replay, {bar}", some))
            console.print(_attainments(some))
    if not rows:
        console.print("No *_runs.csv: nothing to replay.")
    return rows


def compared(run: Run, simulated: Replayed) -> dict[str, Any]:
    """Figures of both over the requests that each completed, and attainment over all."""
    pairs = {
        "ttft": (run.ttft_s, simulated.ttft_s),
        "tpot": (
            tpot_s(run.ttft_s, run.e2e_s, run.counted_tokens),
            tpot_s(simulated.ttft_s, simulated.e2e_s, run.counted_tokens),
        ),
        "e2el": (run.e2e_s, simulated.e2e_s),
    }
    tight = tuple(TIGHT * float(np.nanmedian(pairs[name][0])) for name in ("ttft", "tpot"))
    return {
        "run": run.name,
        "model": run.model.name,
        "gpu": run.gpu.name,
        "tp": run.tp,
        "overloaded": run.overloaded,
        "notes": list(run.notes),
        "requests": len(run.requests),
        "completed": [int(np.isfinite(e2e_s).sum()) for e2e_s in (run.e2e_s, simulated.e2e_s)],
        "evictions": simulated.evictions,
        "wall_s": round(simulated.wall_s, 1),
        **{
            f"{name}_{word}": _figure(*pair, percent)
            for name, pair in pairs.items()
            for word, percent in (("p50", 50), ("p99", 99))
        },
        "attainment": [_attainment(run, pairs, at, SLO_S) for at in (0, 1)],
        "attainment_tight": [_attainment(run, pairs, at, tight) for at in (0, 1)],
        "tight_slo_ms": [round(limit * 1e3, 2) for limit in tight],
    }


def _figure(measured: Floats, simulated: Floats, percent: int) -> dict[str, float] | None:
    """None where either completed nothing."""
    if not np.isfinite(measured).any() or not np.isfinite(simulated).any():
        return None
    real, ours = (float(np.nanpercentile(values, percent)) for values in (measured, simulated))
    return {
        "measured_ms": round(real * 1e3, 3),
        "simulated_ms": round(ours * 1e3, 3),
        "error": round(ours / real - 1, 4),
    }


def _attainment(run: Run, pairs: dict[str, tuple[Floats, Floats]], at: int, slo_s: Sequence[float]) -> float:
    """Share of the requests offered; what was not completed has missed, one token has no pace to miss."""
    ttft_s, pace_s = pairs["ttft"][at], pairs["tpot"][at]
    paced = (pace_s <= slo_s[1]) | (np.isfinite(ttft_s) & (run.counted_tokens < 2))
    return round(float(np.mean((ttft_s <= slo_s[0]) & paced)), 4)


def _latencies(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"{title}: measured / simulated ms, error", title_justify="left")
    table.add_column("run")
    names = [f"{name}_{word}" for name in ("ttft", "tpot", "e2el") for word in ("p50", "p99")]
    for name in names:
        metric, word = name.split("_")
        table.add_column(f"{metric.upper()} {word}")
    table.add_column("completed")
    for row in rows:
        cells = [_latency(row[name], name) for name in names]
        table.add_row(row["run"], *cells, " / ".join(map(str, row["completed"])))
    return table


def _latency(figure: dict[str, float] | None, name: str) -> str:
    if figure is None:
        return "-"
    digits = 2 if name.startswith("tpot") else 0 if figure["measured_ms"] > 1e4 else 1
    return f"{figure['measured_ms']:.{digits}f} / {figure['simulated_ms']:.{digits}f}, {figure['error']:+.1%}"


def _attainments(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Attainment, measured / simulated", title_justify="left")
    ttft_s, pace_s = SLO_S
    columns = ("run", f"TTFT {ttft_s * 1e3:g} ms, TPOT {pace_s * 1e3:g} ms", f"{TIGHT:g} x measured medians", "reading")
    for name in columns:
        table.add_column(name)
    for row in rows:
        pairs = (row["attainment"], row["attainment_tight"])
        cells = [f"{real:.1%} / {ours:.1%} ({ours - real:+.1%})" for real, ours in pairs]
        table.add_row(row["run"], *cells, "; ".join(row["notes"]))
    return table


def decisions() -> tuple[str, bool]:
    """What pytest said last, and whether a decision differed."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(EQUIVALENCE)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if re.search(r"\d+ (passed|failed|skipped)|^SKIPPED", line)]
    said = "; ".join(lines) or ran.stdout[-500:] + ran.stderr[-500:]
    console.print(f"Decisions beside vLLM's own scheduler: {said}")
    return said, ran.returncode != 0


if __name__ == "__main__":
    raise SystemExit(main())
