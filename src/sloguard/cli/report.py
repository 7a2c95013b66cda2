"""`sloguard report`: what a command left on disk, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sloguard.cli.options import read_load_tests
from sloguard.errors import SpecError
from sloguard.page.load import load_page
from sloguard.page.page import Page, render, write_figures
from sloguard.page.simulated import simulated_page
from sloguard.page.tune import tune_page
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.study.record import read_record
from sloguard.study.sim_rows import simulated_rows

PAGE_NAME = "report.html"


def leave_page(directory: Path) -> Path:
    """Writes the page of the study in `directory` beside it, and says where. Raises SpecError, LogError."""
    target = directory / PAGE_NAME
    write_text_atomic(target, render(tune_page(read_record(directory))))
    return target


def _page(paths: Sequence[Path], slo: Sequence[str] | None) -> Page:
    first = paths[0]
    if first.is_dir():
        return tune_page(read_record(first))
    rows = simulated_rows(first)
    if rows is None:
        return load_page(read_load_tests(paths, slo))
    if len(paths) > 1 or slo:
        raise SpecError(
            "PATH", str(first), "a page of a simulation is of one file, and has its own promises", "Give it alone."
        )
    return simulated_page(rows)


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="The --out directory of `sloguard tune`; the --json of `simulate` or `capacity`; or result files of "
            "load tests, of this and other tools.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Where the page goes; if absent, DIR/report.html, or beside the file."
        ),
    ] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=MS", help="Load tests are held against: ttft, tpot or e2el.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save every figure there, as SVG and PNG, for a paper.")
    ] = None,
) -> int:
    """Writes one HTML file that holds all of a study: what to deploy, why, and how far to trust it. Or of load tests.

    Example: `sloguard report study -o report.html`
    """
    first = paths[0]
    if not first.exists():
        fix = "Give the --out directory of `sloguard tune`, or result files of load tests."
        raise SpecError("PATH", str(first), "is not there", fix)
    if first.is_dir() and len(paths) > 1:
        raise SpecError("PATH", str(paths[1]), "a page is of one study", "Compare several: sloguard compare.")
    if first.is_dir() and slo:
        raise SpecError("--slo", " ".join(slo), "a study has its own promises", "Give it with result files only.")
    target = (first / PAGE_NAME if first.is_dir() else first.with_suffix(".html")) if out is None else out
    check_writable("--out", target)
    page = _page(paths, slo)
    if figures is not None:
        written = write_figures(page, figures)
        typer.echo(f"{len(written)} files of figures are in {figures}/")
    write_text_atomic(target, render(page))
    typer.echo(f"The page is {target}")
    return 0
