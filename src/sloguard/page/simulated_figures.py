"""Drawings of simulations: functions from plain figures to a function that draws them on axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sloguard.page.canvas import Draw, Ink, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME_LENGTH = 26
ROOM = 1.45  # of the longest bar, for the text beside it


@dataclass(frozen=True, slots=True)
class Length:
    """A bar: how long, what stands beside it, and figures of single seeds, if any."""

    name: str
    value: float
    text: str
    each: Sequence[float] = ()


def lengths(bars: Sequence[Length], x: str, *, percent: bool = False) -> Draw:
    """One bar below the other; the longest stands out."""

    def draw(axes: Axes, ink: Ink) -> None:
        most = max(bar.value for bar in bars)
        for y, bar in enumerate(bars):
            colour = ink["accent" if bar.value == most else "default"]
            axes.barh(y, bar.value, 0.62, color=colour, linewidth=0)
            axes.annotate(
                bar.text,
                (max([bar.value, *bar.each]), y),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=ink["ink"],
            )
            axes.plot(bar.each, [y] * len(bar.each), "o", color=ink["ink"], markersize=3, alpha=0.7, clip_on=False)
        axes.set_yticks(range(len(bars)), [plain(bar.name, NAME_LENGTH) for bar in bars])
        axes.tick_params(axis="y", labelcolor=ink["ink"])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, (most or 1.0) * ROOM)
        axes.grid(visible=False)
        if percent:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.set_xlabel(x)

    return draw
