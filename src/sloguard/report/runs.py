"""Load tests side by side, whichever tools ran them: a table for a person, rows for a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from sloguard.load.run_figures import RunFigures
from sloguard.metrics import Dist
from sloguard.report.grids import Grid, Sheet

COUNTS = ("offered", "completed", "failed", "unfinished", "input_tokens", "output_tokens")
RATES = ("duration_s", "request_throughput", "output_throughput", "request_goodput", "attainment")
DISTS = ("ttft_s", "tpot_s", "itl_s", "e2el_s", "queue_delay_s")
LEVELS = ("mean", "p50", "p90", "p95", "p99", "max")


def runs_rows(runs: Sequence[RunFigures]) -> list[dict[str, Any]]:
    """A flat row for each run, fit for JSON: numbers and text; latencies in seconds, as `ttft_p99_s`. None is unknown,
    and an offered rate without limit is "inf".
    """
    return [_row(run) for run in runs]


def _row(run: RunFigures) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file": run.file,
        "tool": run.tool,
        "tool_version": run.tool_version,
        "label": run.label,
        "model": run.model,
        "strategy": run.strategy,
        "request_rate": _finite(run.request_rate),
        "concurrency": run.concurrency,
        "burstiness": _finite(run.burstiness),
        "counts_from": run.counts_from,
    }
    row |= {name: getattr(run, name) for name in (*COUNTS, *RATES)}
    slo = run.slo
    row |= {f"slo_{limit}": None if slo is None else getattr(slo, limit) for limit in ("ttft_s", "tpot_s", "e2el_s")}
    for name in DISTS:
        dist = getattr(run, name) or Dist()
        row |= {f"{name.removesuffix('_s')}_{level}_s": getattr(dist, level) for level in LEVELS}
    return row | {"notes": list(run.notes)}


def _finite(value: float | None) -> float | str | None:
    return "inf" if value == float("inf") else value


LINES: dict[str, Callable[[RunFigures], str]] = {
    "tool": lambda run: f"{run.tool} {run.tool_version or ''}".rstrip(),
    "offered": lambda run: run.label or "-",
    "completed": lambda run: f"{run.completed} of {'?' if run.offered is None else run.offered}",
    "duration, s": lambda run: _number(run.duration_s, 2),
    "tokens in / out": lambda run: f"{_number(run.input_tokens)} / {_number(run.output_tokens)}",
    "throughput, req/s": lambda run: _number(run.request_throughput, 2),
    "throughput, out tok/s": lambda run: _number(run.output_throughput, 1),
    "latency counts from": lambda run: run.counts_from,
    "TTFT p50 / p99, ms": lambda run: _pair_ms(run.ttft_s),
    "TPOT p50 / p99, ms": lambda run: _pair_ms(run.tpot_s),
    "ITL p50 / p99, ms": lambda run: _pair_ms(run.itl_s),
    "E2EL p50 / p99, ms": lambda run: _pair_ms(run.e2el_s),
    "client lag p50 / p99, ms": lambda run: _pair_ms(run.queue_delay_s),
    "promised": lambda run: _promised(run),
    "attainment": lambda run: "-" if run.attainment is None else f"{run.attainment:.1%}",
    "goodput, req/s": lambda run: _number(run.request_goodput, 2),
}


def runs_sheet(runs: Sequence[RunFigures]) -> Sheet:
    """A column for each run, and below it, for each tool, how its definitions differ from docs/measuring.md."""
    rows = ((name, *map(line, runs)) for name, line in LINES.items())
    kept = tuple(row for row in rows if any(cell != "-" for cell in row[1:]))
    return Sheet((Grid("Load tests", ("", *(PurePath(run.file).name for run in runs)), kept),), notes=runs_notes(runs))


def runs_notes(runs: Sequence[RunFigures]) -> tuple[str, ...]:
    """The notes of all runs, each once, after the names of the tools, or of the files, that it holds for."""
    held: dict[str, list[RunFigures]] = {}
    for run in runs:
        for note in run.notes:
            held.setdefault(note, []).append(run)
    return tuple(f"{_whose(runs, those)}: {note}" for note, those in held.items())


def _whose(runs: Sequence[RunFigures], those: Sequence[RunFigures]) -> str:
    """The tools' names where a note holds for all runs of those tools, else the files' names."""
    tools = {run.tool for run in those}
    of_tools = [run for run in runs if run.tool in tools]
    names = [run.tool if len(of_tools) == len(those) else PurePath(run.file).name for run in those]
    return ", ".join(dict.fromkeys(names))


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pair_ms(dist: Dist | None) -> str:
    if dist is None or dist.p50 is None:
        return "-"
    return f"{dist.p50 * 1000:.1f} / {'-' if dist.p99 is None else f'{dist.p99 * 1000:.1f}'}"


def _promised(run: RunFigures) -> str:
    if run.slo is not None:
        return run.slo.text
    return "-" if run.attainment is None and run.request_goodput is None else "by class, or not in the file"
