"""`sloguard simulate`: one load on simulated engines, under one policy or several."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sloguard.cli.progress import plain_console
from sloguard.cli.sim_options import STDOUT, RayAddress, Report, SimOptions, save_rows, with_options
from sloguard.page.page import render
from sloguard.page.simulated import simulated_page
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.report.simulate import simulate_report
from sloguard.study.sim_results import Ran, run_seed, simulate_row
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import check, notes_on, step_times
from sloguard.study.workers import workers
from sloguard.workload.arrivals import SLOWEST_RATE, check_rate
from sloguard.workload.scenarios import RATE_FLAG


@with_options(SimOptions)
def command(
    options: SimOptions,
    rate: Annotated[
        float | None, typer.Option(help="Requests/s over all engines; the workload's own if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; where they share cores, planners look slower.")] = 1,
    ray_address: RayAddress = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Save the rows as JSON; - prints them.")] = None,
    report: Report = None,
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
    if report is not None:
        check_writable("--report", report)
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
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with workers(jobs, ray_address) as (executor, most), bar:
        task = bar.add_task("", total=len(specs) * options.seeds)
        parts = iter([(spec, seed) for spec in specs for seed in range(options.seeds)])
        begun: deque[Future[Ran]] = deque()

        def begin(spec: SimSpec, seed: int) -> None:
            future = executor.submit(run_seed, spec, rate, seed)
            future.add_done_callback(lambda _: bar.update(task, advance=1, description=f"{spec.name}, seed {seed}"))
            begun.append(future)

        def next_run() -> Ran:
            for part in islice(parts, max(0, 2 * most - len(begun))):  # no more are held than keep all at work
                begin(*part)
            return begun.popleft().result()

        for spec in specs:
            row = simulate_row(spec, [next_run() for _ in range(options.seeds)], rate)
            rows.append({**row, "step_times": step_times(spec)})
    if json_file is not None:
        save_rows(json_file, rows)
    if report is not None:
        write_text_atomic(report, render(simulated_page(rows)))
    if json_file != STDOUT:
        plain_console().print(simulate_report(rows, options.tpot_rule, notes_on(specs, rate)))
    return 0
