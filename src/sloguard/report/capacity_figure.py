"""Capacities as bars: a group for each scenario, on a scale of its own, a colour for each policy, the rate on each bar.

Scenarios differ tenfold in what a GPU serves of them; on one scale the bars of most could not be told apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import Any

from sloguard.errors import SpecError
from sloguard.report.capacity import MEAN, at_least, capacity_title, geometric_mean, seeds_text, series_of

FORMATS = (".png", ".svg")
# Okabe and Ito's colours, told apart by readers with any colour vision, and two greys; hatched when they come again.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#7F7F7F", "#333333")
BAR_INCHES = 0.27  # wide enough for three digits above it, upright
PAGE_INCHES, LEAST_INCHES = 13.0, 8.0  # the least holds the title
GROUP_INCHES, LEGEND_LINE_INCHES = 2.6, 0.25
LINE_INCHES, CHARACTERS_INCH = 0.18, 13  # of the title, at 10 points


def check_figure(field: str, path: Path) -> None:
    """Raises SpecError where the name does not end in a format."""
    if path.suffix.lower() not in FORMATS:
        raise SpecError(field, str(path), "is no .png or .svg", "Name the file so, e.g. capacity.svg.")


def capacity_figure(rows: Sequence[Mapping[str, Any]], suffix: str) -> bytes:
    """The picture as `suffix` (.png or .svg) has it; equal rows give equal bytes."""
    import matplotlib as mpl  # slow to load, and only this needs it
    from matplotlib.figure import Figure

    series = series_of(rows)
    groups = _groups(series)
    width = BAR_INCHES * len(series) + 0.6
    columns = min(len(groups), max(1, int(PAGE_INCHES / width)))
    lines = ceil(len(groups) / columns)
    page = max(LEAST_INCHES, width * columns)
    legend_columns = max(1, min(len(series), int(page / (0.09 * max(map(len, series)) + 0.5))))
    legend_inches = LEGEND_LINE_INCHES * ceil(len(series) / legend_columns)
    title = [capacity_title(rows), *wrap(_made_by(rows), int(page * CHARACTERS_INCH))]
    title_inches = LINE_INCHES * len(title) + 0.2
    figure = Figure(figsize=(page, GROUP_INCHES * lines + legend_inches + title_inches), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    colours = [COLOURS[at % len(COLOURS)] for at in range(len(series))]
    hatches = ["///" * (at // len(COLOURS)) for at in range(len(series))]
    for axes, (name, (values, labels)) in zip(panels, groups.items(), strict=False):
        bars = axes.bar(range(len(values)), values, 0.9, color=colours, hatch=hatches, edgecolor="white", linewidth=0)
        axes.bar_label(bars, labels, rotation=90, fontsize=8, padding=3)
        axes.set_xlabel(name, fontsize=10)
        axes.set_xticks([])
        axes.set_xlim(-0.7, len(values) - 0.3)
        axes.set_ylim(0, 1.28 * max(values) or 1)  # room for the figures above the bars
        axes.tick_params("y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.grid(visible=True, color="#E5E5E5")
        axes.set_axisbelow(True)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    figure.suptitle("\n".join(title), x=0.01, ha="left", fontsize=10)
    figure.legend(
        panels[0].containers[0],
        series,
        loc="outside lower left",
        ncols=legend_columns,
        frameon=False,
        fontsize=9,
    )
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sloguard"}):
        metadata = {"Date": None} if suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(picture, format=suffix.lower().removeprefix("."), dpi=160, metadata=metadata)
    return picture.getvalue()


def _made_by(rows: Sequence[Mapping[str, Any]]) -> str:
    """Figures travel without their table: what a reader has to know of how the rates came about."""
    sources = "; ".join(dict.fromkeys(row["step_times"] for row in rows))
    return f"Simulated engines; {seeds_text(rows)}; step times: {sources}"


def _groups(series: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[list[float], list[str]]]:
    """Bars and what is written on them by scenario, in order of the series, and geometric means where there are several
    scenarios. A mean that isn't defined has neither.
    """
    scenarios = list(next(iter(series.values())))
    shown = {name: [[one[name]] for one in series.values()] for name in scenarios}
    if len(scenarios) > 1:
        shown[MEAN] = [list(one.values()) for one in series.values()]
    groups: dict[str, tuple[list[float], list[str]]] = {}
    for name, bars in shown.items():
        rates = [[float(row["capacity_per_gpu"]) for row in rows] for rows in bars]
        values = [rate[0] if len(rate) == 1 else geometric_mean(rate) for rate in rates]
        labels = [
            "" if value is None else at_least(rows) + f"{value:#.3g}".rstrip(".")
            for value, rows in zip(values, bars, strict=True)
        ]
        groups[name] = [value or 0.0 for value in values], labels
    return groups
