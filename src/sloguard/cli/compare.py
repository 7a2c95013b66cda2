"""`sloguard compare`: studies with several seeds, or load tests of any tool, side by side."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sloguard.cli.options import read_load_tests
from sloguard.cli.progress import WIDTH_OFF_TERMINAL, plain_console
from sloguard.errors import SpecError
from sloguard.load.results import is_result
from sloguard.report.comparison import comparison_sheet
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.report.grids import Sheet, to_latex, to_markdown, to_rich
from sloguard.report.runs import runs_rows, runs_sheet
from sloguard.study.compare import compare
from sloguard.study.read_runs import read_runs

TABLE = "table"


def _to_text(sheet: Sheet) -> str:
    console = Console(file=io.StringIO(), width=WIDTH_OFF_TERMINAL)
    with console.capture() as captured:
        console.print(to_rich(sheet))
    return captured.get()


# What is written of a sheet, and of the same as data.
FORMATS: dict[str, Callable[[Sheet, Any], str]] = {
    TABLE: lambda sheet, data: _to_text(sheet),
    "markdown": lambda sheet, data: to_markdown(sheet),
    "json": lambda sheet, data: json.dumps(data, indent=2) + "\n",
    "latex": lambda sheet, data: to_latex(sheet),
}


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Studies, directories of studies, files of published trials; or result files of load tests.",
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Label that others are tested against; random, or the first, if absent.")
    ] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=MS", help="Load tests are held against: ttft, tpot or e2el.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help=f"{' | '.join(FORMATS)}.")] = TABLE,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to this file.")] = None,
) -> int:
    """Compares optimizers by their studies with several seeds: measures, tests, and what makes the evidence weak. Or
    puts load tests of `sloguard bench`, `vllm bench serve`, GuideLLM and AIPerf side by side.

    Example: `sloguard compare studies --baseline random --format latex -o table.tex`
    """
    if format_ not in FORMATS:
        raise SpecError("--format", format_, "no such format", f"Choose one of {', '.join(FORMATS)}.")
    if out is not None:
        check_writable("--output", out)
    sheet, data = _load_tests(paths, baseline, slo) if any(map(is_result, paths)) else _studies(paths, baseline, slo)
    if out is not None:
        write_text_atomic(out, FORMATS[format_](sheet, data))
    elif format_ == TABLE:
        plain_console().print(to_rich(sheet))
    else:
        typer.echo(FORMATS[format_](sheet, data), nl=False)
    return 0


def _studies(paths: Sequence[Path], baseline: str | None, slo: Sequence[str] | None) -> tuple[Sheet, Any]:
    if slo:
        raise SpecError("--slo", " ".join(slo), "a study has its own promises", "Give it with result files only.")
    studies, notes = read_runs(paths)
    comparison = compare(studies, baseline, notes)
    return comparison_sheet(comparison), comparison.to_json()


def _load_tests(paths: Sequence[Path], baseline: str | None, slo: Sequence[str] | None) -> tuple[Sheet, Any]:
    if baseline is not None:
        raise SpecError("--baseline", baseline, "single load tests can't be tested against each other", "Leave it out.")
    runs = read_load_tests(paths, slo)
    return runs_sheet(runs), runs_rows(runs)
