"""`sloguard doctor`: what works on this machine, what would not, and the fix."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sloguard import __version__
from sloguard.engine.gpu_detect import detect_gpu
from sloguard.engine.model_files import cache_dir
from sloguard.engine.vllm_install import find_vllm
from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB

EXIT_BROKEN = 1
OPEN_FILES = 8192  # a request in flight is one socket; a burst that the server falls behind on is thousands
SHM_BYTES = GIB  # vLLM's processes pass tensors through /dev/shm; a container's default is 64 MiB
FREE_MEMORY_BYTES = 4 * GIB
STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. A `missing` that is `essential` makes the exit code 1."""

    name: str
    state: Literal["ok", "warn", "missing"]
    found: str
    fix: str = ""
    essential: bool = False


def command(
    engine_python: Annotated[str | None, typer.Option(help="Python that has vLLM; this one if absent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> int:
    """Shows what works here and what would not, with the fix. Exit code: 0, or 1 where something essential fails.

    Example: `sloguard doctor --engine-python .venv-vllm/bin/python`
    """
    checks = list(all_checks(engine_python))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        Console().print(_table(checks))
    return EXIT_BROKEN if any(check.essential and check.state == "missing" for check in checks) else 0


def all_checks(engine_python: str | None) -> Iterator[Check]:
    """In the order a person would look."""
    yield Check("sloguard", "ok", f"{__version__} on Python {platform.python_version()}")
    yield vllm_check(engine_python)
    yield gpu_check()
    yield Check("CPU", "ok", f"{len(os.sched_getaffinity(0))} cores for this process, {platform.machine()}")
    yield memory_check(psutil.virtual_memory().available, psutil.virtual_memory().total)
    yield shm_check(Path("/dev/shm"))  # noqa: S108 - the mount itself is what is looked at
    yield open_files_check(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield port_check()
    yield extra_check("botorch", "bo", "--optimizer constrained-bo")
    yield extra_check("ray", "ray", "serving on Ray")
    yield hub_check()


def vllm_check(engine_python: str | None) -> Check:
    """Which vLLM would be started. Essential only where the user names a Python for it."""
    try:
        install = find_vllm(engine_python)
    except SpecError as error:
        found = f"{error.value}: {error.problem}"
        return Check("vLLM", "missing", found, error.fix, essential=engine_python is not None)
    build = "CPU build" if install.device == "cpu" else "GPU build"
    where = f"Python {install.python_version} at {install.python}"
    return Check("vLLM", "ok", f"{install.distribution} {install.version} ({build}), {where}")


def gpu_check() -> Check:
    try:
        gpu = detect_gpu()
    except SpecError as error:
        return Check("GPU", "warn", error.problem, f"{error.fix}. --engine sim and CPU builds need none")
    table = f"known as {gpu.known.name}" if gpu.known else "not in the built-in table"
    count = f"{gpu.count} x " if gpu.count > 1 else ""
    return Check("GPU", "ok", f"{count}{gpu.name}, {gpu.vram_bytes / GIB:.1f} GiB, {table} (from {gpu.source})")


def memory_check(available_bytes: int, total_bytes: int) -> Check:
    found = f"{available_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB free"
    if available_bytes < FREE_MEMORY_BYTES:
        return Check("memory", "warn", found, "Free some: an engine's processes alone take 2 to 4 GiB")
    return Check("memory", "ok", found)


def shm_check(mount: Path) -> Check:
    if not mount.is_dir():
        return Check("shared memory", "warn", f"no {mount}", "Mount a tmpfs there: vLLM's processes talk through it")
    total = shutil.disk_usage(mount).total
    found = f"{total / GIB:.2f} GiB at {mount}"
    if total < SHM_BYTES:
        return Check("shared memory", "warn", found, "Start the container with --shm-size=8g or --ipc=host")
    return Check("shared memory", "ok", found)


def open_files_check(soft: int, hard: int) -> Check:
    unlimited = soft == resource.RLIM_INFINITY
    found = "no limit" if unlimited else f"{soft} open files"
    if not unlimited and soft < OPEN_FILES:
        enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
        fix = f"ulimit -n {OPEN_FILES}" + ("" if enough else f" (as root: the hard limit is {hard})")
        return Check("ulimit -n", "warn", f"{found}: high request rates will fail", fix)
    return Check("ulimit -n", "ok", found)


def port_check() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
    except OSError as error:
        fix = "Allow this user to listen on 127.0.0.1: engines are reached over it"
        return Check("port", "missing", f"no port can be bound ({error})", fix, essential=True)
    return Check("port", "ok", f"a free one can be bound (127.0.0.1:{port})")


def extra_check(module: str, extra: str, use: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(f"extra [{extra}]", "missing", f"only needed for {use}", f"pip install 'sloguard[{extra}]'")
    return Check(f"extra [{extra}]", "ok", f"{module} is installed")


def hub_check() -> Check:
    cache = cache_dir(os.environ)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    found = f"{models} models in {cache}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline and not models:
        fix = "Unset HF_HUB_OFFLINE to download, or give --model a directory"
        return Check("Hugging Face", "warn", f"offline (HF_HUB_OFFLINE) and {found}", fix)
    return Check("Hugging Face", "ok", f"{found}{', offline' if offline else ''}")


def _table(checks: list[Check]) -> Table:
    table = Table("check", "", title="sloguard doctor", title_justify="left")
    for name in ("found", "fix"):
        table.add_column(name, overflow="fold")  # a path that is cut is no fix
    for check in checks:
        state = f"[{STYLES[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), state, escape(check.found), escape(check.fix))
    return table
