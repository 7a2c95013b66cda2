"""Drawings of load tests: functions from plain figures to a function that draws them on axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sloguard.page.canvas import Draw, Ink
from sloguard.page.figures import LINE, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
SERIES = (("accent", "-"), ("default", "--"), ("ink", ":"), ("muted", "-."))  # told apart without colour, too
TAIL = 0.999  # of a distribution that is drawn: one straggler would flatten all else
CORNER = 9  # between an axis and its figures, where those of both axes begin at the same corner
FARTHEST = 3.0  # limits, at which a request is drawn that is farther out


@dataclass(frozen=True, slots=True)
class Life:
    """A request: seconds since the first was due, nan where unknown."""

    due_s: float
    first_s: float
    last_s: float
    kept: bool
    tip: str


def distributions(series: Mapping[str, Floats], limit: float | None, x: str) -> Draw:
    """Share of requests within each latency."""

    def draw(axes: Axes, ink: Ink) -> None:
        for (name, values), (colour, style) in zip(series.items(), SERIES, strict=False):
            ranked = np.sort(values)
            share = np.arange(1, len(ranked) + 1) / len(ranked)
            axes.step(ranked, share, where="post", color=ink[colour], linestyle=style, linewidth=LINE, label=name)
        if limit is not None:
            axes.axvline(limit, color=ink["crash"], linewidth=1.4, label="promise")
        far = max(float(np.quantile(values, TAIL)) for values in series.values())
        axes.set_xlim(0, max(far, limit or 0.0) * 1.08)
        axes.set_ylim(0, 1.02)
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(axis="x", pad=CORNER)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(x)
        axes.set_ylabel("requests")
        legend(axes, ink, 2)

    return draw


def timeline(lives: Sequence[Life]) -> Draw:
    """A line a request, from when it was due: waiting, then answering; a cross where its promise was broken."""

    def draw(axes: Axes, ink: Ink) -> None:
        rows = np.arange(len(lives))
        due, first, last = (np.array([getattr(one, name) for one in lives]) for name in ("due_s", "first_s", "last_s"))
        width = max(0.6, min(3.0, 180 / len(lives)))
        begun = ~np.isnan(first)
        axes.hlines(rows[begun], due[begun], first[begun], color=ink["default"], linewidth=width, label="waiting")
        done = begun & ~np.isnan(last)
        axes.hlines(rows[done], first[done], last[done], color=ink["accent"], linewidth=width, label="answering")
        missed = [row for row, one in enumerate(lives) if not one.kept]
        for at, row in enumerate(missed):
            end = next(value for value in (last[row], first[row], due[row]) if not np.isnan(value))
            axes.plot(
                [end],
                [row],
                "x",
                color=ink["crash"],
                markersize=4,
                gid=ink.tip(lives[row].tip),
                label=None if at else "promise broken",
                zorder=3,
            )
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlabel("seconds since the first request was due")
        axes.set_ylabel("requests, in order")
        legend(axes, ink, 3)

    return draw


def region(points: Sequence[tuple[float, float, bool, str]], x: str, y: str) -> Draw:
    """Requests by two latencies, each as a share of its limit; both are kept in the shaded corner."""

    def draw(axes: Axes, ink: Ink) -> None:
        axes.fill_between([0, 1], 0, 1, color=ink["accent"], alpha=0.1, linewidth=0)
        axes.plot([0, 1, 1], [1, 1, 0], color=ink["crash"], linewidth=1.4, label="limits")
        for kept, mark, colour, name in ((True, "o", "accent", "kept"), (False, "x", "crash", "broken")):
            some = [point for point in points if point[2] is kept]
            for at, (across, up, _, tip) in enumerate(some):
                axes.plot(
                    [min(across, FARTHEST)],
                    [min(up, FARTHEST)],
                    mark,
                    color=ink[colour],
                    markersize=3.5,
                    alpha=0.75,
                    gid=ink.tip(tip),
                    label=None if at else name,
                    clip_on=False,
                )
        axes.set_xlim(0, min(max(1.15, *(across * 1.05 for across, *_ in points)), FARTHEST))
        axes.set_ylim(0, min(max(1.15, *(up * 1.05 for _, up, *_ in points)), FARTHEST))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="x", pad=CORNER)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        legend(axes, ink, 3)

    return draw
