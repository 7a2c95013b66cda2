"""What `sloguard simulate` shows: tables of the rows of `study.sim_results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sloguard.slo import TpotRule
from sloguard.study.sim_results import LATENCIES


def simulate_report(rows: Sequence[Mapping[str, Any]], tpot_rule: TpotRule, notes: Sequence[str]) -> RenderableType:
    parts: list[RenderableType] = [_promises(rows, tpot_rule)]
    if any(len(row["stages"]) > 1 for row in rows):
        parts.append(_stages(rows))
    parts.append(_engines(rows))
    parts += [Text(note, "dim") for note in notes]
    return Group(*parts)


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[Table, list[str]]:
    """A table whose first columns tell rows apart, and the names of those."""
    keys = [key for key in ("scenario", "policy", "router") if key == "policy" or len({row[key] for row in rows}) > 1]
    table = Table(title=title, title_justify="left")
    for name in keys:
        table.add_column(name, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table, keys


def _promises(rows: Sequence[Mapping[str, Any]], rule: TpotRule) -> Table:
    columns = ("attainment", *(f"{name.upper()} p50 / p99, ms" for name in LATENCIES), "goodput, req/s", "tok/s")
    table, keys = _table(f"Promises kept (TPOT rule: {rule})", rows, columns)
    for row in rows:
        pairs = [f"{_text(row[f'{name}_p50_ms'])} / {_text(row[f'{name}_p99_ms'])}" for name in LATENCIES]
        goodput = (f"{row['goodput_rps']:.2f}", f"{row['goodput_tps']:.0f}")
        table.add_row(*(Text(row[key]) for key in keys), f"{row['attainment']:.1%}", *pairs, *goodput)
    return table


def _stages(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("offered", "attainment", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms")
    table, keys = _table("By class, and by stage of each", rows, ("class/stage", *columns))
    table.columns[len(keys)].justify = "left"
    for row in rows:
        for name, one in by_stage(row):
            pairs = [f"{_text(one[f'{m}_p50_ms'])} / {_text(one[f'{m}_p99_ms'])}" for m in ("ttft", "tpot")]
            table.add_row(
                *(Text(row[key]) for key in keys), name, str(one["offered"]), f"{one['attainment']:.1%}", *pairs
            )
        table.add_section()
    return table


def by_stage(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each class, and after it its stages where it has more than one kind."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, one in row["classes"].items():
        stages = [(f"  {key}", value) for key, value in row["stages"].items() if key.rpartition("/")[0] == name]
        found += [(name, one), *(stages if len(stages) > 1 else [])]
    return found


def _engines(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("tokens a step", "evictions", "promised", "best effort", "hops", "planner p50 / p99, ms")
    table, keys = _table("Engines", rows, columns)
    for row in rows:
        decides = row["promised"] or row["best_effort"]  # most policies promise nothing and put nothing off
        tiers = [str(row[name]) if decides else "-" for name in ("promised", "best_effort")]
        planner = f"{_text(row['planner_p50_ms'], 3)} / {_text(row['planner_p99_ms'], 3)}"
        counts = (str(row["evictions"]), *tiers, str(row["hops"]), planner)
        table.add_row(*(Text(row[key]) for key in keys), _text(row["mean_batch_tokens"]), *counts)
    return table


def _text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
