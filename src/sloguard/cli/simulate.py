"""`sloguard simulate`: one load on simulated engines, under one policy or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sloguard.cli.progress import plain_console
from sloguard.cli.sim_options import STDOUT, SimOptions, save_rows, with_options
from sloguard.report.files import check_writable
from sloguard.report.simulate import simulate_report
from sloguard.sim.serve import Run
from sloguard.study.sim_results import simulate_row
from sloguard.study.simulation import check, notes_on, requests_of, run, step_times
from sloguard.workload.arrivals import SLOWEST_RATE, check_rate
from sloguard.workload.scenarios import RATE_FLAG


@with_options(SimOptions)
def command(
    options: SimOptions,
    rate: Annotated[
        float | None, typer.Option(help="Requests/s over all engines; the workload's own if absent.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Save the rows as JSON; - prints them.")] = None,
) -> int:
    """Serves a scenario or a trace on simulated GPUs, in virtual time, and judges every request's promises.

    Example: `sloguard simulate --scenario chatbot --policy vllm,sloguard --model meta-llama/Llama-3.1-8B --gpu
    A100-40GB --rate 4`
    """
    if rate is not None:
        check_rate(rate, RATE_FLAG, SLOWEST_RATE)
    specs = options.rows()
    if json_file is not None and json_file != STDOUT:
        check_writable("--json", json_file)
    for spec in specs:
        check(spec, rate)
    rows: list[dict[str, Any]] = []
    console = plain_console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(specs) * options.seeds)
        for spec in specs:
            runs: list[Run] = []
            for seed in range(options.seeds):
                progress.update(task, description=f"{spec.name}, seed {seed}")
                runs.append(run(spec, requests_of(spec, rate, seed).requests, seed, timed=True))
                progress.advance(task)
            rows.append({**simulate_row(spec, runs, rate), "step_times": step_times(spec)})
    if json_file is not None:
        save_rows(json_file, rows)
    if json_file != STDOUT:
        plain_console().print(simulate_report(rows, options.tpot_rule, notes_on(specs, rate)))
    return 0
