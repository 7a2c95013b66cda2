"""The `sloguard` command: registers one short file a command and turns errors of the user into one line."""

from __future__ import annotations

import errno
import signal
import sys
from itertools import pairwise
from types import FrameType
from typing import Annotated, NoReturn

import typer

from sloguard import __version__
from sloguard.cli import (
    bench,
    capacity,
    classify,
    compare,
    doctor,
    export,
    profile,
    report,
    serve,
    simulate,
    study,
    tune,
    watch,
)
from sloguard.errors import SloguardError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_ON_DISK = {  # of the commands that can go on
    "tune": "What it found is on disk; --resume goes on from there.",
    "study": "What it found is on disk; the same command goes on from there.",
    "capacity": "What it found is on disk where --out was given; --resume goes on from there.",
}

app = typer.Typer(
    name="sloguard",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="LLM serving that keeps its latency promises: tune vLLM under SLOs, serve each request by its own, compare "
    "schedulers, measure honestly, explain crashes.",
)
for module in (
    tune,
    watch,
    report,
    study,
    compare,
    export,
    serve,
    profile,
    bench,
    simulate,
    capacity,
    classify,
    doctor,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sloguard {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of `sloguard` itself."""


def main() -> None:
    """Exit codes: 0 done, 2 bad input or a fault of the machine, 3 nothing feasible (`tune`) or no rate
    served (`capacity`), 128 + the signal that interrupted it (130: Ctrl-C).
    """
    ended: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        """What else ends a program takes the way of Ctrl-C, so that engines are stopped."""
        ended.append(signum)
        raise KeyboardInterrupt

    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as under nohup
            signal.signal(ending, interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(f"{_told(error)}. Try --help.", EXIT_BAD_INPUT)
    except SloguardError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail("the disk or device that the output goes to is full. Make room and repeat the command.", EXIT_BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        _fail(f"interrupted. {_ON_DISK.get(''.join(sys.argv[1:2]), '')}", 128 + ended[0] if ended else EXIT_INTERRUPTED)
    sys.exit(code or 0)


def _told(error: typer.TyperException) -> str:
    """`--flag = 'value': what is wrong` for a value that could not be read; typer's own message names only the flag."""
    names: list[str] = getattr(getattr(error, "param", None), "opts", [])
    words = [part for word in sys.argv[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    given = [value for name, value in pairwise(words) if name in names]
    message = error.format_message().rstrip(".")
    if not given:
        return message
    prefix = f"Invalid value for '{names[-1]}': "
    return f"{names[-1]} = {given[-1]!r}: {message.removeprefix(prefix)}"


def _fail(message: str, code: int) -> NoReturn:
    print(f"sloguard: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - the one line an error is
    sys.exit(code)
