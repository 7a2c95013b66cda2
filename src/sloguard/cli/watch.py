"""`sloguard watch`: the page of a study while it is made."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from sloguard.cli.options import api_key_from
from sloguard.errors import SpecError
from sloguard.page.live import is_loopback, watch_app
from sloguard.study.log import StudyLog


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out directory of `sloguard tune`.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds a key to ask for, as ?key=...")
    ] = None,
) -> int:
    """Shows the report of a study in a browser while it is made: it renews itself after every trial. Ctrl-C ends it.

    Example: `sloguard watch study`, beside `sloguard tune ... --out study`
    """
    if directory.exists() and not directory.is_dir():
        raise SpecError("DIR", str(directory), "is a file", "Give the --out directory of `sloguard tune`.")
    api_key = api_key_from(api_key_env)
    if api_key is None and not is_loopback(host):
        raise SpecError("--host", host, "others can ask there, and no key is asked for", "Add --api-key-env NAME.")
    app = watch_app(directory, host, api_key, lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        waits = "" if StudyLog(directory).exists() else " once it holds a study: there is none yet"
        typer.echo(f"{directory} is shown at http://{name}:{listener.getsockname()[1]}/{waits}")
        with suppress(KeyboardInterrupt):  # the one way to end it
            server.run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Before anything is said."""
    with ExitStack() as failed:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = failed.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # a port that is bound and not listened on can be had twice
        except (OSError, UnicodeError) as error:  # a name with an empty part is no name
            problem = f"{host} can't be listened on there ({getattr(error, 'strerror', None) or error})"
            raise SpecError("--port", port, problem, "Choose another --port, or 0 for a free one.") from error
        failed.pop_all()  # the socket stays open
        return listener
