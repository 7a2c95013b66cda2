"""A comparison of studies as tables: in a terminal, in Markdown, and in LaTeX (booktabs)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sloguard import __version__
from sloguard.study.compare import (
    BEST,
    CONSISTENCY,
    FAST_TRIALS,
    FIRST_FAST,
    FIRST_FEASIBLE,
    HELD_OUT,
    Comparison,
    Group,
    Spread,
    Versus,
)
from sloguard.study.stats import FAST

Row = tuple[str, ...]
# Name, factor and digits of a score.
UNITS = {"capacity": ("req/s", 1.0, 2), "goodput": ("tok/s", 1.0, 1), "latency": ("ms", 1000.0, 2)}
DIGITS = {FAST_TRIALS: 2, CONSISTENCY: 3, FIRST_FEASIBLE: 2, FIRST_FAST: 2}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table in words; its first column is of names, the others of figures."""

    title: str
    head: Row
    rows: tuple[Row, ...]


def grids(comparison: Comparison) -> list[Grid]:
    """The measures by label, and the tests where there are any."""
    return [_measures(comparison), *([_tests(comparison)] if comparison.tests else [])]


def _measures(comparison: Comparison) -> Grid:
    groups = comparison.groups
    seeds = sorted({str(seed) for group in groups for seed in group.seeds if seed is not None}, key=int)
    lengths = {group.trials / len(group.seeds) for group in groups}
    of = f" of {lengths.pop():g}" if len(lengths) == 1 else ""
    unit = UNITS[comparison.objective][0]

    def row(name: str, measure: str) -> Row:
        return (name, *(_spread_text(group, measure, comparison.objective) for group in groups))

    rows = [
        ("studies", *(str(len(group.seeds)) for group in groups)),
        row(f"fast trials{of}", FAST_TRIALS),
        row("post-hit consistency", CONSISTENCY),
        row(f"best, {unit}", BEST),
        row(f"best, measured again, {unit}", HELD_OUT),
        ("sd of the best, ratio", *(_plain(group.sd_ratio, 2) for group in groups)),
        row("first feasible trial", FIRST_FEASIBLE),
        row("first fast trial", FIRST_FAST),
        ("feasible trials", *(f"{group.feasible}/{group.trials}" for group in groups)),
        ("dropped in races", *(str(group.dropped) for group in groups)),
        ("crashes", *(_crash_text(group) for group in groups)),
    ]
    absent = [name for name, there in _optional(comparison).items() if not there]
    kept = tuple(row for row in rows if not any(row[0].startswith(name) for name in absent))
    of_seeds = f"; seeds {', '.join(seeds)}" if seeds else ""
    kind = "Simulated studies" if comparison.simulated else "Studies"
    title = f"{kind} by {comparison.objective}: mean +- sample sd over studies{of_seeds}"
    return Grid(title, ("", *(group.label for group in groups)), kept)


def _optional(comparison: Comparison) -> dict[str, bool]:
    """Rows that only some comparisons have, and whether this one has."""
    return {
        "best, measured again": any(group.measures[HELD_OUT].n for group in comparison.groups),
        "sd of the best": any(group.sd_ratio is not None for group in comparison.groups),
        "dropped": any(group.dropped for group in comparison.groups),
    }


def _tests(comparison: Comparison) -> Grid:
    rows = tuple(_test_row(versus, comparison.objective) for versus in comparison.tests)
    title = f"Against {comparison.baseline}: {len(rows)} tests"
    head = ("", "alternative", "difference of means (95 % interval)", "Cliff's delta", "p", "p (Holm)")
    return Grid(title, head, rows)


def _test_row(versus: Versus, objective: str) -> Row:
    unit = f" {UNITS[objective][0]}" if versus.measure == BEST else ""
    gap, low, high = (
        _figure(value, versus.measure, objective, signed=True) for value in (versus.difference, *versus.interval)
    )
    return (
        f"{versus.label}: {versus.measure}",
        versus.alternative,
        f"{gap} ({low} to {high}){unit}",
        f"{versus.delta:+.2f}",
        p_text(versus.p),
        p_text(versus.p_holm),
    )


def _figure(value: float, measure: str, objective: str, *, signed: bool = False) -> str:
    _, factor, digits = UNITS[objective]
    sign = "+" if signed else ""
    if measure in DIGITS:
        return f"{value:{sign}.{DIGITS[measure]}f}"
    return f"{value * factor:{sign}.{digits}f}"


def _spread_text(group: Group, measure: str, objective: str) -> str:
    """`7.40 +- 2.51`; how many studies it is of, where not of all; `-` of none."""
    spread: Spread = group.measures[measure]
    if spread.mean is None:
        return "-"
    text = _figure(spread.mean, measure, objective)
    if spread.sd is not None:
        text += f" +- {_figure(spread.sd, measure, objective)}"
    return text if spread.n == len(group.seeds) else f"{text} ({spread.n} of {len(group.seeds)})"


def _plain(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _crash_text(group: Group) -> str:
    if not group.crashes or group.crash_share is None:
        return str(group.crashes)
    return f"{group.crashes} ({group.crash_share:.1%} of the time)"


def p_text(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def how_read(comparison: Comparison) -> list[str]:
    """What the tables are made by, a line each."""
    unit, factor, digits = UNITS[comparison.objective]
    lines: list[str] = []
    if comparison.fast_at is not None:
        bar = f"{comparison.fast_at * factor:.{digits}f} {unit}"
        lines.append(f"Fast: within limits and at {FAST:g} of the best of all ({bar}) or better.")
    if comparison.tests:
        paired = {versus.paired for versus in comparison.tests}
        pairs = {frozenset({True}): "paired by seed", frozenset({False}): "unpaired"}.get(
            frozenset(paired), "paired where both have the same seeds"
        )
        lines.append(f"p: Mann-Whitney U, Holm over all {len(comparison.tests)} tests; intervals: bootstrap, {pairs}.")
    return lines


def comparison_report(comparison: Comparison) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for grid in grids(comparison):
        table = Table(title=Text(grid.title), title_justify="left")
        for index, name in enumerate(grid.head):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in grid.rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    parts += [Text(line, "dim") for line in how_read(comparison)]
    parts += [Text(f"Caveat: {line}.", "yellow") for line in comparison.caveats]
    parts += [Text(f"Note: {line}.", "dim") for line in comparison.notes]
    return Renderables(*parts)


def to_markdown(comparison: Comparison) -> str:
    parts = [f"**{_markdown(grid.title)}**\n\n{_markdown_table(grid)}" for grid in grids(comparison)]
    said = [*how_read(comparison), *_told(comparison)]
    return "\n\n".join([*parts, "\n".join(f"- {_markdown(line)}" for line in said)]) + "\n"


def _told(comparison: Comparison) -> list[str]:
    return [*(f"Caveat: {line}." for line in comparison.caveats), *(f"Note: {line}." for line in comparison.notes)]


def _markdown_table(grid: Grid) -> str:
    rule = ("---", *("---:" for _ in grid.head[1:]))
    return "\n".join(f"| {' | '.join(map(_markdown, row))} |" for row in (grid.head, rule, *grid.rows))


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<\[])", r"\\\1", text)


def to_latex(comparison: Comparison) -> str:
    """Tables to \\input into a document that uses booktabs; what is to be known of them stands below the last."""
    *others, last = grids(comparison)
    said = r"\par ".join(map(latex_text, [*how_read(comparison), *_told(comparison)]))
    below = f"\\begin{{flushleft}}\\footnotesize\n{said}\n\\end{{flushleft}}\n"
    head = f"% Made by sloguard {__version__} compare. Needs \\usepackage{{booktabs}}.\n"
    return head + "".join(_latex_table(grid) for grid in others) + _latex_table(last, below)


def _latex_table(grid: Grid, below: str = "") -> str:
    def line(row: Row) -> str:
        return f"{' & '.join(map(latex_text, row))} \\\\\n"

    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{latex_text(grid.title)}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(grid.head) - 1)}}}\n"
        f"\\toprule\n{line(grid.head)}\\midrule\n{''.join(map(line, grid.rows))}\\bottomrule\n"
        f"\\end{{tabular}}\n{below}\\end{{table}}\n"
    )


# A bracket or star after the end of a row would be read as an option of it; two hyphens as a dash.
_LATEX = {
    "+-": r"$\pm$",
    "--": "-{}-",
    "-": "$-$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "*": "{*}",
}
_SPECIAL = re.compile(r"\+-|--|(?<![\w.])-(?=\d)|[\\~^<>|\[*&%$#_{}]")


def latex_text(text: str) -> str:
    """Plain text as LaTeX shows it, in text mode."""
    return _SPECIAL.sub(lambda found: _LATEX.get(found[0], f"\\{found[0]}"), text)
