"""What `sloguard capacity` shows: a table of rates, scenarios down and policies across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MEAN = "geometric mean"


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Rows by series (policy, and router where there are several) and scenario, both in order of first appearance."""
    routers = len({row["router"] for row in rows}) > 1
    series: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        name = f"{row['policy']} / {row['router']}" if routers else row["policy"]
        series.setdefault(name, {})[row["scenario"]] = row
    return series


def geometric_mean(values: Sequence[float]) -> float | None:
    """None where one is 0: a policy that serves a scenario at no rate has no mean."""
    return exp(sum(map(log, values)) / len(values)) if values and min(values) > 0 else None


def mean_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The geometric mean of rates, `>=` where a bracket of them is open; `-` where there is none."""
    mean = geometric_mean([row["capacity_per_gpu"] for row in rows])
    return "-" if mean is None else f"{at_least(rows, '>= ')}{mean:.2f}"


def at_least(rows: Sequence[Mapping[str, Any]], sign: str = ">=") -> str:
    """The sign where a bracket is open: the rate is then a lower bound."""
    return sign if any(row["bracket"][1] is None for row in rows) else ""


def seeds_text(rows: Sequence[Mapping[str, Any]]) -> str:
    return "1 seed" if rows[0]["seeds"] == 1 else f"{rows[0]['seeds']} seeds"


def capacity_title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rates are of; where rows differ, of each kind."""
    first = rows[0]
    engines = " or ".join(str(n) for n in sorted({row["engines"] for row in rows}))
    split = f" of {first['tensor_parallel']} GPUs" if first["tensor_parallel"] > 1 else ""
    return (
        f"Requests/s a GPU at {first['target']:.0%} attainment: {first['model']} on {first['gpu']}, "
        f"{engines} engine{'' if engines == '1' else 's'}{split}"
    )


def capacity_report(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> RenderableType:
    series = series_of(rows)
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    table = Table(title=capacity_title(rows), title_justify="left")
    table.add_column("scenario")
    for name in series:
        table.add_column(Text(name), justify="right", overflow="fold")
    for scenario in scenarios:
        best = max(one[scenario]["capacity_per_gpu"] for one in series.values())
        table.add_row(Text(scenario), *(_cell(one[scenario], best) for one in series.values()))
    if len(scenarios) > 1:
        table.add_section()
        table.add_row(MEAN, *(mean_text(list(one.values())) for one in series.values()))
    runs = f"Beside each rate the bracket that the search ended on; {seeds_text(rows)}."
    above = [">=: no rate that was tried was too much; search higher with --rates."] if at_least(rows) else []
    return Group(table, *(Text(note, "dim") for note in (runs, *above, *notes)))


def _cell(row: Mapping[str, Any], best: float) -> Text:
    """The rate and the bracket the search ended on."""
    style = "bold green" if row["capacity_per_gpu"] == best > 0 else ""
    return Text.assemble((f"{row['capacity_per_gpu']:.2f}", style), (f"  {bracket_text(row)}", "dim"))


def bracket_text(row: Mapping[str, Any]) -> str:
    """E.g. `[4.20, 4.31]`; `>=` where every rate tried passed, `<` where none did."""
    low, high = row["bracket"]
    if high is None:
        return f">= {low:.2f}"
    return f"[{low:.2f}, {high:.2f}]" if low else f"< {high:.3g}"
