"""`sloguard compare`: do studies with several seeds show that one optimizer beats another?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sloguard.cli.progress import WIDTH_OFF_TERMINAL, plain_console
from sloguard.errors import SpecError
from sloguard.report.comparison import comparison_report, to_latex, to_markdown
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.study.compare import Comparison, compare
from sloguard.study.read_runs import read_runs

TABLE = "table"


def _to_text(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=WIDTH_OFF_TERMINAL)
    with console.capture() as captured:
        console.print(comparison_report(comparison))
    return captured.get()


FORMATS: dict[str, Callable[[Comparison], str]] = {
    TABLE: _to_text,
    "markdown": to_markdown,
    "json": lambda comparison: json.dumps(comparison.to_json(), indent=2) + "\n",
    "latex": to_latex,
}


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Studies, directories of studies, or files of published trials."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Label that others are tested against; random, or the first, if absent.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help=f"{' | '.join(FORMATS)}.")] = TABLE,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to this file.")] = None,
) -> int:
    """Compares optimizers by their studies with several seeds: measures, tests, and what makes the evidence weak.

    Example: `sloguard compare studies --baseline random --format latex -o table.tex`
    """
    if format_ not in FORMATS:
        raise SpecError("--format", format_, "no such format", f"Choose one of {', '.join(FORMATS)}.")
    if out is not None:
        check_writable("--output", out)
    studies, notes = read_runs(paths)
    comparison = compare(studies, baseline, notes)
    if out is not None:
        write_text_atomic(out, FORMATS[format_](comparison))
    elif format_ == TABLE:
        plain_console().print(comparison_report(comparison))
    else:
        typer.echo(FORMATS[format_](comparison), nl=False)
    return 0
