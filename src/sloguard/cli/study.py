"""`sloguard study`: tunes in several ways from several seeds, as one file says."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from sloguard import __version__
from sloguard.cli import tune
from sloguard.cli.progress import counted, plain_console
from sloguard.errors import SpecError
from sloguard.optim import OPTIMIZERS
from sloguard.registry import load
from sloguard.study.jsonl import JsonLog
from sloguard.study.log import StudyLog
from sloguard.study.series import Planned, options_of, read_series
from sloguard.study.workers import workers

LOG_NAME, OUTPUT_NAME = "series.jsonl", "tune.log"

_tune = typer.Typer(add_completion=False)
_tune.command("tune")(tune.command)


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="What is tuned, in which ways, from which seeds.")],
    jobs: Annotated[
        int, typer.Option(min=1, help="Studies at a time; real engines of one machine would measure each other.")
    ] = 1,
) -> int:
    """Tunes in several ways from several seeds, as FILE.toml says. The same command goes on where it was stopped.

    Exit code: 0 done, 2 on bad input.

    Example: `sloguard study optimizers.toml --jobs 2`, then `sloguard compare studies`
    """
    series = read_series(file)
    for planned in series.studies:
        _check(file, planned, jobs)
    log, total = JsonLog(series.directory / LOG_NAME), len(series.studies)
    console = plain_console(stderr=True)
    with log.writer():
        done = _done(log)
        left = [planned for planned in series.studies if not _is_done(planned, done, series.directory)]
        if done:
            console.print(f"resuming: {total - len(left)} of {total} studies are done")
        with counted("studies") as on_study, workers(jobs) as (executor, at_a_time):
            ends = _as_they_end(executor, at_a_time, left, series.directory)
            for count, (planned, code) in enumerate(ends, start=total - len(left) + 1):
                log.append("done", {"study": planned.name, "words": list(planned.words)})
                told = "done" if code == 0 else "done, nothing keeps the promises"
                console.print(f"{count:>4}/{total}  {planned.name}: {told}", highlight=False)
                on_study(count, total)
    typer.echo(f"Everything is in {series.directory}/. Compare: sloguard compare {series.directory}")
    return 0


def _check(file: Path, planned: Planned, jobs: int) -> None:
    """Before anything slow. Raises SpecError for options that `tune` doesn't have, or values that it can't read."""
    try:
        context = typer.main.get_command(_tune).make_context("tune", [*planned.words, "--out", planned.name])
    except typer.TyperException as error:
        problem = error.format_message().rstrip(".")
        raise SpecError(f"{file}: arm", planned.arm, problem, "Options are those of sloguard tune --help.") from error
    load(OPTIMIZERS, context.params["optimizer"], f"{file}: arm {planned.arm}: --optimizer", "propose")
    engine = context.params["engine"]
    if jobs > 1 and engine != "sim":
        raise SpecError("--jobs", jobs, f"studies of engine {engine!r} would measure each other", "Leave it out.")


def _done(log: JsonLog) -> dict[str, list[str]]:
    """Options by study."""
    if not log.exists():
        log.clear()
        log.append_header({"sloguard": __version__})
    return {record["study"]: record["words"] for record in log.records()}


def _is_done(planned: Planned, done: dict[str, list[str]], directory: Path) -> bool:
    """One with another budget goes on. Raises SpecError where it was made with other options besides."""
    if planned.name not in done or not StudyLog(directory / planned.name).exists():
        return False
    mine, before = options_of(planned.words), options_of(done[planned.name])
    differing = [name for name in dict.fromkeys([*mine, *before]) if mine.get(name) != before.get(name)]
    if other := next((name for name in differing if name != "--budget"), None):
        problem = f"{directory / planned.name} was made with {before.get(other)!r}"
        raise SpecError(f"arm {planned.arm}: {other}", mine.get(other), problem, "Choose another out or name.")
    return not differing


def _as_they_end(
    executor: Executor, at_a_time: int, left: Iterable[Planned], directory: Path
) -> Iterator[tuple[Planned, int]]:
    """Studies with their exit codes. None is begun before there is room, so that those begun come to an end first."""
    queue, running = iter(left), dict[Future[int], Planned]()
    while True:
        for planned in islice(queue, at_a_time - len(running)):
            running[executor.submit(_tuned, planned.words, directory / planned.name)] = planned
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            planned = running.pop(future)
            try:
                yield planned, future.result()
            except SpecError as error:
                raise SpecError(f"{planned.name}: {error.field}", error.value, error.problem, error.fix) from error


def _tuned(words: tuple[str, ...], out: Path) -> int:
    """One study, by `tune` itself; what that prints goes to a file beside it. Returns its exit code."""
    if parent_process() is not None:
        signal.signal(signal.SIGTERM, _interrupt)  # so that its engine is stopped
    out.mkdir(parents=True, exist_ok=True)
    log = StudyLog(out)
    resume = ["--resume"] if log.exists() and log.trials() else []
    with (out / OUTPUT_NAME).open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        return _tune([*words, "--out", str(out), *resume], standalone_mode=False) or 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
