"""`sloguard report`: what a command left on disk, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sloguard.errors import SpecError
from sloguard.page.page import render, write_figures
from sloguard.page.tune import tune_page
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.study.record import read_record

PAGE_NAME = "report.html"


def leave_page(directory: Path) -> Path:
    """Writes the page of the study in `directory` beside it, and says where. Raises SpecError, LogError."""
    target = directory / PAGE_NAME
    write_text_atomic(target, render(tune_page(read_record(directory))))
    return target


def command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The --out directory of `sloguard tune`.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where the page goes; DIR/report.html if absent.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save every figure there, as SVG and PNG, for a paper.")
    ] = None,
) -> int:
    """Writes one HTML file that holds all of a study: what to deploy, why, and how far to trust it.

    Example: `sloguard report study -o report.html`
    """
    source = Path(directory)
    if not source.is_dir():
        raise SpecError("DIR", directory, "is no directory", "Give the --out directory of `sloguard tune`.")
    target = source / PAGE_NAME if out is None else out
    check_writable("--out", target)
    page = tune_page(read_record(source))
    if figures is not None:
        written = write_figures(page, figures)
        typer.echo(f"{len(written)} files of figures are in {figures}/")
    write_text_atomic(target, render(page))
    typer.echo(f"The page is {target}")
    return 0
