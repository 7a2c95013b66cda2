"""The `sloguard` command: imports the file of the one that is asked for; errors of the user become one line."""

from __future__ import annotations

import errno
import signal
import sys
from importlib import import_module
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from sloguard import __version__
from sloguard.errors import SloguardError

COMMANDS = (
    "tune",
    "watch",
    "report",
    "study",
    "compare",
    "export",
    "serve",
    "profile",
    "bench",
    "simulate",
    "capacity",
    "classify",
    "doctor",
)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_ON_DISK = {  # of the commands that can go on
    "tune": "What it found is on disk; --resume goes on from there.",
    "study": "What it found is on disk; the same command goes on from there.",
    "capacity": "What it found is on disk where --out was given; --resume goes on from there.",
}

MARKUP = "markdown"


class _Commands(TyperGroup):
    """All of them take seconds to import: of the others no more than the names is known."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        if cmd_name not in COMMANDS:
            return None
        one = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        one.command(cmd_name)(import_module(f"sloguard.cli.{cmd_name}").command)
        return cast(TyperCommand, typer.main.get_command(one))


app = typer.Typer(
    name="sloguard",
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    help="LLM serving that keeps its latency promises: tune vLLM under SLOs, serve each request by its own, compare "
    "schedulers, measure honestly, explain crashes.",
)


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
        _fail(f"{_told(error)} Try --help.", EXIT_BAD_INPUT)
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
    if given:
        prefix = f"Invalid value for '{names[-1]}': "
        message = f"{names[-1]} = {given[-1]!r}: {message.removeprefix(prefix)}"
    return message if message.endswith("?") else f"{message}."


def _fail(message: str, code: int) -> NoReturn:
    print(f"sloguard: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - the one line an error is
    sys.exit(code)
