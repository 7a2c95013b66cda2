"""Tables with what is to be known of them: in a terminal, in Markdown, and in LaTeX (booktabs)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sloguard import __version__

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table in words; its first column is of names, the others of figures."""

    title: str
    head: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """At least one table. `said` tells how to read them, `caveats` what makes them weak, `notes` how they were made."""

    grids: tuple[Grid, ...]
    said: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """All that stands below the tables."""
        return [*self.said, *(f"Caveat: {line}." for line in self.caveats), *(f"Note: {line}." for line in self.notes)]


def to_rich(sheet: Sheet) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for grid in sheet.grids:
        table = Table(title=Text(grid.title), title_justify="left")
        for index, name in enumerate(grid.head):
            table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
        for row in grid.rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    quiet = {*sheet.said, *(f"Note: {line}." for line in sheet.notes)}
    return Group(*parts, *(Text(line, "dim" if line in quiet else "yellow") for line in sheet.lines))


def to_markdown(sheet: Sheet) -> str:
    parts = [f"**{_markdown(grid.title)}**\n\n{_markdown_table(grid)}" for grid in sheet.grids]
    return "\n\n".join([*parts, "\n".join(f"- {_markdown(line)}" for line in sheet.lines)]).rstrip("\n") + "\n"


def _markdown_table(grid: Grid) -> str:
    rule = ("---", *("---:" for _ in grid.head[1:]))
    return "\n".join(f"| {' | '.join(map(_markdown, row))} |" for row in (grid.head, rule, *grid.rows))


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<\[])", r"\\\1", text)


def to_latex(sheet: Sheet) -> str:
    """Tables to \\input into a document that uses booktabs; what is to be known of them stands below the last."""
    *others, last = sheet.grids
    said = r"\par ".join(map(latex_text, sheet.lines))
    below = f"\\begin{{flushleft}}\\footnotesize\n{said}\n\\end{{flushleft}}\n"
    head = f"% Made by sloguard {__version__}. Needs \\usepackage{{booktabs}}.\n"
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
