"""`sloguard capacity`: the largest rate that simulated engines serve well, policy by policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sloguard import __version__
from sloguard.cli.progress import plain_console
from sloguard.cli.sim_options import STDOUT, Jobs, RayAddress, Report, SimOptions, save_rows, with_options
from sloguard.errors import SpecError
from sloguard.page.page import render
from sloguard.page.simulated import simulated_page
from sloguard.report.capacity import bracket_text, capacity_report
from sloguard.report.capacity_figure import capacity_figure, check_figure
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.sim.capacity import TARGET, TOLERANCE
from sloguard.study.capacity import Capacity, Probe, Question, find_capacities, to_json
from sloguard.study.jsonl import JsonLog
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import ANY_RATE, check_search, notes_on
from sloguard.workload.arrivals import SLOWEST_RATE

LOG_NAME, RESULT_NAME = "capacity.jsonl", "capacity.json"
EXIT_NO_CAPACITY = 3


@with_options(SimOptions)
def command(
    options: SimOptions,
    target: Annotated[float, typer.Option(help="Share of the requests that must keep all their promises.")] = TARGET,
    rates: Annotated[
        str | None, typer.Option(metavar="LO:HI", help="Rates per GPU to look between; found if absent.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Relative width of the bracket to end on.")] = TOLERANCE,
    jobs: Jobs = None,
    ray_address: RayAddress = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the rates: .png or .svg.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Save the rows as JSON; - prints them.")] = None,
    report: Report = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Record every rate tried, so that --resume can go on.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
) -> int:
    """Searches the largest request rate per GPU at which enough requests keep every promise and no backlog builds up.

    Exit code: 0 found, 2 bad input, 3 some policy serves no rate that was tried.

    Example: `sloguard capacity --scenario all --policy vllm,slos-serve,sloguard --model meta-llama/Llama-3.1-8B --gpu
    A100-40GB --seeds 3 --figure capacity.svg`
    """
    question = Question(target, options.seeds, tolerance, _rates(rates))
    _check_question(question)
    specs = options.rows()
    _check_files(figure, json_file, report, out, resume)
    for spec in specs:
        check_search(spec)
    log = JsonLog(out / LOG_NAME) if out else None
    with log.writer() if log else nullcontext(), _Live(specs) as live:
        known = _known(log, specs, question, resume) if log else {}
        live.recorded(len(known))

        def on_probe(probe: Probe) -> None:
            if log:
                log.append("probe", asdict(probe))
            live.probed(probe)

        capacities = find_capacities(
            specs,
            question,
            jobs=jobs,
            ray_address=ray_address,
            known=known,
            on_probe=on_probe,
            on_row=live.found,
        )
    rows = [to_json(capacity, question) for capacity in capacities]
    for path in (json_file, out / RESULT_NAME if out else None):
        if path is not None:
            save_rows(path, rows)
    if report:
        write_text_atomic(report, render(simulated_page(rows)))
    if figure:
        figure.write_bytes(capacity_figure(rows, figure.suffix))
    if json_file != STDOUT:
        plain_console().print(capacity_report(rows, notes_on(specs, ANY_RATE)))
    return 0 if all(row["capacity_per_gpu"] > 0 for row in rows) else EXIT_NO_CAPACITY


def _rates(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    fix = "Write LO:HI in requests/s a GPU, e.g. 1:20."
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise SpecError("--rates", text, "is not LO:HI", fix) from None
    if not SLOWEST_RATE <= low < high < float("inf"):
        raise SpecError("--rates", text, f"is no range of rates from {SLOWEST_RATE:g}", fix)
    return low, high


def _check_question(question: Question) -> None:
    if not 0 < question.target < 1:
        raise SpecError("--target", question.target, "not a share above 0, below 1", "Give e.g. 0.9.")
    if not 0.001 <= question.tolerance <= 1:
        raise SpecError("--tolerance", question.tolerance, "not a share from 0.001 to 1", "Give e.g. 0.03.")


def _check_files(
    figure: Path | None, json_file: Path | None, report: Path | None, out: Path | None, resume: bool
) -> None:
    if report:
        check_writable("--report", report)
    if figure:
        check_figure("--figure", figure)
        check_writable("--figure", figure)
    if json_file is not None and json_file != STDOUT:
        check_writable("--json", json_file)
    if resume and out is None:
        raise SpecError("--resume", True, "there is nothing to go on with", "Name the directory with --out.")
    if out and out.exists() and not out.is_dir():
        raise SpecError("--out", str(out), "is a file", "Give a directory; it is made if it doesn't exist.")
    if out and not resume and JsonLog(out / LOG_NAME).exists():
        raise SpecError("--out", str(out), "already holds a search", "Add --resume, or choose another directory.")


def _known(log: JsonLog, specs: Sequence[SimSpec], question: Question, resume: bool) -> dict[tuple[str, float], Probe]:
    """What is on record of this very search; a new log gets its header. Raises SpecError where it was another."""
    header = header_of(specs, question)
    if not log.exists():
        log.clear()
        log.append_header(header)
        return {}
    check_same(log, header)
    probes = [Probe.from_json(record) for record in log.records()]
    return {(probe.row, probe.rate_per_gpu): probe for probe in probes}


def header_of(specs: Sequence[SimSpec], question: Question) -> dict[str, Any]:
    """All that the outcome depends on."""
    return {
        "sloguard": __version__,
        "question": {**asdict(question), "rates": list(question.rates) if question.rates else None},
        "rows": [spec.to_json() for spec in specs],
    }


def check_same(log: JsonLog, mine: Mapping[str, Any]) -> None:
    """Raises SpecError, naming the first flag that the search on record had otherwise."""
    recorded, out = log.header(), str(log.path.parent)
    if (version := recorded.get("sloguard")) != mine["sloguard"]:
        problem = f"the search in {out!r} is by sloguard {version}, this is {mine['sloguard']}"
        raise SpecError("--resume", True, problem, "Finish it with that version, or choose another --out.")
    theirs = _by_flag(recorded)
    for flag, value in _by_flag(mine).items():
        if (other := theirs.get(flag)) != value:
            problem = f"the search in {out!r} has {'none' if other is None else repr(other)}"
            with_that = "without" if other is None else "with that"
            raise SpecError(flag, value, problem, f"Resume {with_that}, or choose another --out.")
    if recorded != {**recorded, **mine}:  # a figure in its last digits
        problem = f"the search in {out!r} is not quite the same"
        raise SpecError("--resume", True, problem, "Repeat its command to the letter, or choose another --out.")


def _by_flag(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a search was asked for, as flags have it; of rows that differ, each value once."""
    question, rows = header["question"], header["rows"]
    rates = question["rates"]
    asked = {**question, "rates": ":".join(f"{rate:g}" for rate in rates) if rates else None}
    for name in dict.fromkeys([*_TELLING, *rows[0]]):
        values = list(dict.fromkeys(_as_given(name, row) for row in rows))
        asked[_RENAMED.get(name, name)] = values[0] if len(values) == 1 else ",".join(map(str, values))
    return {f"--{name.replace('_', '-')}": value for name, value in asked.items()}


_TELLING = ("scenario", "trace", "policy", "pools", "router")  # what other fields of a row may follow from
_RENAMED = {"link_bytes_s": "link_gb_s", "stale_s": "stale_ms"}


def _as_given(name: str, row: Mapping[str, Any]) -> Any:
    value = row[name]
    match name:
        case "policy" if row["pools"]:
            return value.removesuffix(f" {row['pools']}")
        case "link_bytes_s":
            return value / 1e9
        case "stale_s":
            return value * 1000
        case "speculation" if value:
            step_s = value["step_s"]
            step = [] if step_s is None else [f"{step_s * 1000:g}"]
            return ":".join([f"{value['acceptance']:g}", str(value["max_draft_tokens"]), *step])
    return value


class _Live:
    """Writes to stderr: a bar on a terminal, and always a line for each row that is done."""

    def __init__(self, specs: Sequence[SimSpec]) -> None:
        self._console = plain_console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("searching", total=len(specs))
        self._probes = 0

    def __enter__(self) -> _Live:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def recorded(self, probes: int) -> None:
        if probes:
            self._console.print(f"resuming after {_counted(probes)} tried")

    def probed(self, probe: Probe) -> None:
        self._probes += 1
        bound = "<=" if probe.ended_early else ""
        backlog = ", backlog" if probe.drained is False else ""
        last = f"{probe.row} at {probe.rate_per_gpu:.3g}/s a GPU: {bound}{probe.attainment:.1%} met{backlog}"
        self._bar.update(self._task, description=f"{_counted(self._probes)} tried | {last}")

    def found(self, capacity: Capacity) -> None:
        spec, at = capacity.spec, capacity.at_capacity
        met = f"{at.attainment:.1%} met" if at else "none"
        bracket = bracket_text({"bracket": capacity.ends})
        self._console.print(
            f"{spec.workload:<14} {spec.policy.text:<24} {spec.router.text:<14} {capacity.per_gpu:8.3f} req/s a GPU  "
            f"{bracket:<20} {met:<10} {_counted(len(capacity.probes))}",
            highlight=False,
            markup=False,
        )
        self._bar.advance(self._task)


def _counted(rates: int) -> str:
    return "1 rate" if rates == 1 else f"{rates} rates"
