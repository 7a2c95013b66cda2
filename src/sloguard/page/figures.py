"""Drawings of a study: functions from plain figures to a function that draws them on axes.

Best and default are told apart by shape as well as colour. What crashed is a cross, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from sloguard.page.canvas import Draw, Ink, plain
from sloguard.space.knobs import Categorical, Int, Knob
from sloguard.trial import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis

SIGNS = {"feasible": "o", "missed": "o", "unknown": "o", "dropped": "v", "crashed": "x", "refused": "x"}
SMALL, POINT, LINE = 5.0, 6.5, 1.8
FLOOR = 0.035  # height, as a share of the axes, at which stands what has no figure
SHADES = 7  # of a map: more can't be told apart
TICKS = 5
LOG_RATES = 8.0  # rates over so large a factor are seen in factors
LEAST_ROOM = 0.08  # of the range of an axis, on either side


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial in a drawing: `x`, `y` (None: it has none), its status and what it says when it is pointed at."""

    x: float
    y: float | None
    status: str
    tip: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise as measured / limit, of one `series` (best or default); `share` is inf where requests were lost."""

    promise: str
    series: str
    share: float
    text: str


def value_text(value: Value) -> str:
    """As a file of configs has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def legend(axes: Axes, ink: Ink, columns: int = 3) -> None:
    """Above the axes, where it hides nothing; nothing where nothing has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            labelcolor=ink["muted"],
            handlelength=1.2,
            columnspacing=1.2,
            borderaxespad=0.2,
            handletextpad=0.5,
        )


def dot(axes: Axes, ink: Ink, one: Dot, size: float = SMALL, label: str | None = None) -> None:
    """Filled where it is feasible; at the floor where it has no figure."""
    crashed = one.status == "crashed"
    axes.plot(
        [one.x],
        [FLOOR if one.y is None else one.y],
        SIGNS[one.status],
        transform=axes.get_xaxis_transform() if one.y is None else axes.transData,
        markersize=size,
        color=ink["crash"] if crashed else ink["accent"] if one.status == "feasible" else ink["muted"],
        markerfacecolor=ink["accent"] if one.status == "feasible" else "none",
        markeredgewidth=1.6 if crashed else 1.2,
        gid=ink.tip(one.tip),
        label=label,
        clip_on=False,
        zorder=3,
    )


def dots(axes: Axes, ink: Ink, trials: Sequence[Dot], size: float = SMALL) -> None:
    """All of them, and the first of each status with a label."""
    seen: set[str] = set()
    for one in sorted(trials, key=lambda one: list(SIGNS).index(one.status)):
        dot(axes, ink, one, size, None if one.status in seen else one.status)
        seen.add(one.status)


def progress(
    trials: Sequence[Dot],
    best: Sequence[tuple[float, float]],
    x: str,
    y: str,
    lost: Sequence[tuple[float, float, str]] = (),
) -> Draw:
    """The best so far as steps [(x, score)], the trials as dots, and the spans [(from, to, tip)] that crashes took."""

    def draw(axes: Axes, ink: Ink) -> None:
        for begin, end, tip in lost:
            span = axes.axvspan(begin, end, color=ink["crash"], alpha=0.22, linewidth=0)
            span.set_gid(ink.tip(tip))
        if best:
            last = max([best[-1][0], *(one.x for one in trials)])
            steps = [*best, (last, best[-1][1])]
            axes.step(
                [at for at, _ in steps],
                [score for _, score in steps],
                where="post",
                color=ink["accent"],
                linewidth=LINE,
                label="best so far",
            )
        dots(axes, ink, trials, POINT)
        if all(float(one.x).is_integer() for one in trials):
            axes.locator_params(axis="x", integer=True)  # there is no trial 1.5
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _room(axes, [one.y for one in trials if one.y is not None])
        legend(axes, ink, 4)

    return draw


def _room(axes: Axes, found: Sequence[float]) -> None:
    """Limits of the y axis with room below for what stands at the floor."""
    if found:
        low, high = min(found), max(found)
        room = (high - low or abs(high) or 1.0) * LEAST_ROOM
        axes.set_ylim(low - 2.2 * room, high + room)


def effect(
    knob: Knob,
    values: Sequence[Value],
    mean: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]],
    trials: Sequence[tuple[Value, Dot]],
    limits: tuple[float, float],
    y: str,
) -> Draw:
    """The mean score over a knob with its interval; dots are the trials as they were measured, by their values."""

    def draw(axes: Axes, ink: Ink) -> None:
        at = [position(knob, value) for value in values]
        low, high = band
        if isinstance(knob, Categorical):
            off = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            axes.errorbar(at, mean, yerr=off, fmt="D", color=ink["ink"], markersize=5, linewidth=LINE, zorder=4)
        else:
            axes.fill_between(at, low, high, color=ink["ink"], alpha=0.12, linewidth=0)
            axes.plot(at, mean, color=ink["ink"], linewidth=LINE)
        for index, (value, one) in enumerate(trials):
            x = position(knob, value) + (_aside(index) if isinstance(knob, Categorical) else 0.0)
            dot(axes, ink, Dot(x, one.y, one.status, one.tip))
        _axis(axes.xaxis, knob)
        axes.set_xlabel(plain(knob.name))
        axes.set_xlim(*_span(knob))
        axes.set_ylim(*limits)
        axes.set_ylabel(y)

    return draw


def heat(
    knobs: tuple[Knob, Knob],
    values: tuple[Sequence[Value], Sequence[Value]],
    mean: Sequence[Sequence[float]],
    trials: Sequence[tuple[Value, Value, Dot]],
    *,
    least_is_best: bool,
) -> Draw:
    """`mean[i][j]` as shades of one colour, the best the darkest, over the i-th and the j-th value of two knobs."""

    def draw(axes: Axes, ink: Ink) -> None:
        from matplotlib.patches import Rectangle  # slow to load, and only this needs it

        low, high = min(map(min, mean)), max(map(max, mean))
        columns, rows = (_edges(knob, shown) for knob, shown in zip(knobs, values, strict=True))
        for j, (bottom, top) in enumerate(rows):
            levels = [_level(row[j], low, high, least_is_best=least_is_best) for row in mean]
            for level, run in groupby(zip(levels, columns, strict=True), key=itemgetter(0)):
                ends = [edge for _, edges in run for edge in edges]  # neighbours of a shade as one: no seams
                tile = Rectangle((ends[0], bottom), ends[-1] - ends[0], top - bottom, facecolor=ink["accent"])
                tile.set(alpha=0.05 + 0.55 * level / (SHADES - 1), linewidth=0, gid=ink.crisp)
                axes.add_patch(tile)
        for first, second, one in trials:
            at = (position(knobs[0], first), position(knobs[1], second))
            crashed, feasible = one.status == "crashed", one.status == "feasible"
            axes.plot(
                *([at[0]], [at[1]], SIGNS[one.status]),
                markersize=POINT,
                color=ink["crash"] if crashed else ink["ink"],
                markerfacecolor=ink["ink"] if feasible else "none",
                markeredgewidth=1.8 if crashed else 1.2,
                gid=ink.tip(one.tip),
                clip_on=False,
                zorder=3,
            )
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        for axis, knob in zip((axes.xaxis, axes.yaxis), knobs, strict=True):
            _axis(axis, knob)
            axis.set_label_text(plain(knob.name))
        axes.set_xlim(columns[0][0], columns[-1][1])
        axes.set_ylim(rows[0][0], rows[-1][1])

    return draw


def _level(score: float, low: float, high: float, *, least_is_best: bool) -> int:
    share = (score - low) / (high - low) if high > low else 0.5
    return min(int((1 - share if least_is_best else share) * SHADES), SHADES - 1)


def position(knob: Knob, value: Value) -> float:
    """Where a value of the knob lies on its axis: a choice at its index, a number in the unit interval."""
    return float(knob.index(value)) if isinstance(knob, Categorical) else knob.encode(value)


def _aside(index: int) -> float:
    """Beside its choice, so that trials of equal scores, and the mean between them, are seen."""
    steps = 1 + index * 5 % 7
    return (0.08 + 0.035 * steps) * (1 if index % 2 else -1)


def _span(knob: Knob) -> tuple[float, float]:
    return (-0.5, len(knob.choices) - 0.5) if isinstance(knob, Categorical) else (-0.03, 1.03)


def _edges(knob: Knob, shown: Sequence[Value]) -> list[tuple[float, float]]:
    """Where the tile of each value begins and ends: halfway to its neighbours."""
    at = [position(knob, value) for value in shown]
    outer = [at[0] - (at[1] - at[0]) / 2, at[-1] + (at[-1] - at[-2]) / 2]
    cuts = [outer[0], *((a + b) / 2 for a, b in pairwise(at)), outer[1]]
    return list(pairwise(cuts))


def _axis(axis: XAxis | YAxis, knob: Knob) -> None:
    """Ticks at a few values of the knob, written as the engine takes them."""
    shown: Sequence[Value] = knob.choices if isinstance(knob, Categorical) else ticks(knob)
    most = 14 if len(shown) <= 4 else 8
    axis.set_ticks([position(knob, value) for value in shown], [plain(value_text(value), most) for value in shown])


def ticks(knob: Knob) -> list[Value]:
    """At most `TICKS` round values inside a number's range: powers of two or of ten, or steps of 1, 2 or 5."""
    assert not isinstance(knob, Categorical)
    low, high = knob.low, knob.high
    if knob.log:
        base = 2 if isinstance(knob, Int) else 10
        powers = [base**n for n in range(-40, 41) if low <= base**n <= high]
        if len(powers) >= 2:
            return list(powers[:: -(-len(powers) // TICKS)])
    raw = (high - low) / (TICKS - 1)
    unit = 10 ** int(f"{raw:e}".partition("e")[2])
    step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= raw)
    if isinstance(knob, Int):
        step = max(1, round(step))
    digits = max(0, -int(f"{step:e}".partition("e")[2]))
    first = -(-low // step)
    found = [round((first + n) * step, digits) for n in range(2 * TICKS) if (first + n) * step <= high + step * 1e-9]
    return [int(v) for v in found] if isinstance(knob, Int) else list(found)


def headroom(bars: Sequence[Bar]) -> Draw:
    """Promises as bars, measured / limit, with the limit marked at 1; longer than 2 is cut and says so."""

    def draw(axes: Axes, ink: Ink) -> None:
        names = list(dict.fromkeys(bar.promise for bar in bars))
        series = list(dict.fromkeys(bar.series for bar in bars))
        thick = 0.72 / len(series)
        for bar in bars:
            y = names.index(bar.promise) + (series.index(bar.series) - (len(series) - 1) / 2) * thick
            colour = ink["default" if bar.series == "default" else "accent"]
            axes.barh(y, min(bar.share, 2.0), thick * 0.82, color=colour, gid=None, linewidth=0)
            end = max(min(bar.share, 2.0), 1.0)  # beyond the line of the limit, which would cross it
            axes.annotate(bar.text, (end, y), (6, 0), textcoords="offset points", va="center", color=ink["ink"])
        axes.axvline(1.0, color=ink["crash"], linewidth=1.6)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=ink["ink"])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, max(1.0, *(min(bar.share, 2.0) for bar in bars)) + 0.75)
        axes.set_xticks([0, 0.5, 1.0], ["0", "half", "limit"])
        axes.grid(visible=False)
        for one in series:
            axes.barh([0], [0], color=ink["default" if one == "default" else "accent"], label=one)
        legend(axes, ink)

    return draw


def quantiles(series: Mapping[str, Sequence[float]], names: Sequence[str], limit: float | None, y: str) -> Draw:
    """A line for each of best and default over quantiles, evenly spaced, and the promise."""

    def draw(axes: Axes, ink: Ink) -> None:
        at = range(len(names))
        for name, values in series.items():
            own = name == "default"
            axes.plot(
                at,
                values,
                "s--" if own else "o-",
                color=ink["default" if own else "accent"],
                linewidth=LINE,
                markersize=SMALL,
                label=name,
            )
        if limit is not None:
            axes.axhline(limit, color=ink["crash"], linewidth=1.4, label="promise")
        axes.set_xticks(list(at), names)
        axes.set_xlim(-0.25, len(names) - 0.75)
        axes.set_ylim(0, 1.08 * max([limit or 0.0, *(v for values in series.values() for v in values)]) or 1.0)
        axes.set_ylabel(y)
        legend(axes, ink)

    return draw


def legs(rates: Sequence[tuple[float, float, tuple[float, float], bool, str]], target: float | None) -> Draw:
    """Rates that were offered: (rate, share kept, its interval, whether it passed, tip)."""

    def draw(axes: Axes, ink: Ink) -> None:
        for rate, share, (low, high), passed, tip in rates:
            axes.errorbar(
                [rate],
                [share * 100],
                yerr=[[max(share - low, 0) * 100], [max(high - share, 0) * 100]],
                fmt="none",
                ecolor=ink["accent" if passed else "muted"],
                linewidth=1.4,
            )
            status = "feasible" if passed else "missed"
            dot(axes, ink, Dot(rate, share * 100, status, tip), POINT)
        if target is not None:
            axes.axhline(target * 100, color=ink["crash"], linewidth=1.4)
        low = min(low for _, _, (low, _), _, _ in rates)
        axes.set_ylim(max(0.0, low * 100 - 5), 104)
        found = [rate for rate, *_ in rates]
        if max(found) > LOG_RATES * min(found):
            axes.set_xscale("log", base=2)
            axes.set_xticks(found, [f"{rate:.3g}" for rate in found], rotation=40)
            axes.minorticks_off()
        axes.set_xlabel("requests/s offered")
        axes.set_ylabel("requests as promised, %")

    return draw


def rounds(rows: Sequence[tuple[str, Sequence[tuple[float | None, str]], float | None, float | None]], x: str) -> Draw:
    """Candidates measured again: (name, scores and tips by round, mean, score as first found), one row each."""

    def draw(axes: Axes, ink: Ink) -> None:
        for y, (name, scores, mean, found) in enumerate(rows):
            colour = ink["default" if name.startswith("default") else "accent"]
            if mean is not None:
                axes.plot([mean, mean], [y - 0.28, y + 0.28], color=colour, linewidth=3, solid_capstyle="butt")
            for score, tip in scores:
                if score is not None:
                    axes.plot([score], [y], "o", color=colour, markersize=POINT + 1, gid=ink.tip(tip))
            if found is not None:
                axes.plot([found], [y], "D", color=colour, markerfacecolor="none", markersize=POINT)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.tick_params(axis="y", labelcolor=ink["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=LEAST_ROOM)
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x", color=ink["rule"], linewidth=0.8)
        axes.set_xlabel(x)

    return draw
