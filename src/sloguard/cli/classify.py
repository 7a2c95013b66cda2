"""`sloguard classify`: why did this engine fail, judged from its log."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated, BinaryIO, get_args

import typer

from sloguard.crash import Crash, Evidence, Phase, classify, infer_phase
from sloguard.errors import SpecError

TAIL_BYTES = 5 * 2**20  # the end of a log explains a failure; what is older belongs to earlier trouble
_NOTHING = "No crash in this log: it shows a healthy engine or a clean shutdown."
_EMPTY = "The log is empty, so it shows nothing: is it the engine's, with both output streams in it?"
_SHOWN = ("category", "cause", "line", "hint")


def command(
    logfile: Annotated[str, typer.Argument(help="The engine's log, both streams; - reads standard input.")],
    exit_code: Annotated[int | None, typer.Option(help="Exit code of the engine, e.g. 1, 137 or -9.")] = None,
    phase: Annotated[str | None, typer.Option(help="startup | load; read from the log if absent.")] = None,
    timed_out: Annotated[bool, typer.Option("--timed-out", help="It hung and was given up on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Names category and cause of a failed start or a dead engine, quotes the decisive line, says what to change.

    Example: `sloguard classify server.log --exit-code 1`
    """
    log = _read(logfile)
    crash = classify(Evidence(_phase(phase, log), exit_code=exit_code, timed_out=timed_out, log_tail=log))
    nothing = _NOTHING if log.strip() else _EMPTY
    answer = asdict(crash or Crash("none", "none", "", nothing, _phase(phase, log)))
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        for key in _SHOWN:
            typer.echo(f"{key + ':':<10}{answer[key]}".rstrip())
    return 0


def _phase(stated: str | None, log: str) -> Phase:
    if stated is None:
        return infer_phase(log)
    for phase in get_args(Phase):
        if stated == phase:
            return phase
    raise SpecError("--phase", stated, "no such phase", "Use startup or load, or leave it out")


def _read(logfile: str) -> str:
    """The last megabytes of a log; bytes that are not UTF-8 are replaced."""
    if logfile == "-":
        data = sys.stdin.buffer.read()[-TAIL_BYTES:]
    else:
        try:
            with open(logfile, "rb") as file:
                data = _tail(file)
        except OSError as error:
            fix = "Give the path of a readable log file, or - for standard input"
            raise SpecError("LOGFILE", logfile, error.strerror or "cannot be read", fix) from error
    if b"\0" in data:
        raise SpecError("LOGFILE", logfile, "it is not text", "Give the engine's log as plain text, decompressed")
    return data.decode("utf-8", errors="replace")


def _tail(file: BinaryIO) -> bytes:
    """At most TAIL_BYTES from the end; of a stream without one (a pipe, a device), from what it gives."""
    if not file.seekable():
        return file.read()[-TAIL_BYTES:]
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    return file.read(TAIL_BYTES)
