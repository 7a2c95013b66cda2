"""The gateway as a process of its own, for replicas on this machine: `python -m sloguard.fleet.server`.

It is told what to do in environment variables, gets the socket that it serves from who started it, and ends when that
one does. Which replicas there are stands in a file, which is looked at again and again.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from sloguard.fleet.gateway import Gateway
from sloguard.fleet.link import Call, HttpLink, Link, Lost, session
from sloguard.fleet.members import HUNG_S, SILENT_S, Member, Members
from sloguard.fleet.meters import GatewayMeters, together
from sloguard.plugins.asgi import App
from sloguard.plugins.door import Door
from sloguard.plugins.options import CONTROL_TOKEN, DoorOptions
from sloguard.rng import stream
from sloguard.route.base import ROUTERS, Router
from sloguard.study.choice import read_choice

TOLD = "SLOGUARD_GATEWAY"
FOLLOW_S = 0.1
SCRAPE_S = 2.0

Fleet = Callable[[Members], AbstractAsyncContextManager[None]]


class Told(BaseModel):
    """`socket` and `parent` are file descriptors: to listen on, and one that ends with who started this process."""

    router: str = "headroom"
    replicas: str
    socket: int
    parent: int


def gateway_app(
    options: DoorOptions, told_router: str, fleet: Fleet, silent_s: float = SILENT_S, hung_s: float = HUNG_S
) -> App:
    """The whole of what listens. `fleet` keeps the members up to date while it is entered. Raises SpecError where there
    is no such router.
    """
    choice = read_choice(told_router, "--router")
    turn = iter(range(sys.maxsize))

    def make_router() -> Router:
        return choice.make(ROUTERS, "--router", "choose", {"rng": stream(0, "router", next(turn))})

    registry = CollectorRegistry()
    meters = GatewayMeters(registry)
    members = Members(silent_s=silent_s, hung_s=hung_s)
    gateway = Gateway(members, make_router, options.classes, options.default_class, meters)

    async def metrics(_: Request) -> Response:
        there = list(members)
        texts = await asyncio.gather(*(_scrape(member) for member in there))
        meters.are({member.name: member.up for member in there})
        found = {member.name: text for member, text in zip(there, texts, strict=True) if text}
        text = await asyncio.to_thread(together, registry, found)  # some thousand lines: streams must go on meanwhile
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with fleet(members):
            yield
            await members.close()  # they are looked at by the fleet's own connections

    routes = [Route("/metrics", metrics), Mount("/", gateway)]
    inner = Starlette(routes=routes, lifespan=lifespan)
    return Door(
        inner,
        options,
        registry=registry,
        why_not_ready=gateway.why_not_ready,
        more_status=lambda: {"members": _listed(members)},
    )


def _listed(members: Members) -> list[dict[str, object]]:
    return [{"name": m.name, "why_down": m.why_down, "since_s": m.since_s, "sent": m.sent} for m in members]


async def _scrape(member: Member) -> str:
    try:
        async with asyncio.timeout(SCRAPE_S), member.link.ask(Call("GET", "/metrics")) as reply:
            text = b"".join([chunk async for chunk in reply.chunks()]).decode(errors="replace")
            return text if reply.status == 200 else ""
    except (Lost, TimeoutError):
        return ""


def from_file(path: Path, token: str) -> Fleet:
    """The replicas that the file names: a list of {"name", "url"}."""

    @asynccontextmanager
    async def followed(members: Members) -> AsyncGenerator[None]:
        async with session() as client:

            def link(name: str, url: str) -> Link:
                return HttpLink(client, name, url, token)

            following = asyncio.create_task(_follow(path, members, link))
            try:
                yield
            finally:
                following.cancel()

    return followed


async def _follow(path: Path, members: Members, link: Callable[[str, str], Link]) -> None:
    seen = b""
    while True:
        if path.exists() and (found := path.read_bytes()) != seen:
            seen = found
            members.set([link(replica["name"], replica["url"]) for replica in json.loads(found)])
        await asyncio.sleep(FOLLOW_S)


def main() -> None:
    told = Told.model_validate_json(os.environ[TOLD])
    options = DoorOptions.from_environment(os.environ)
    threading.Thread(target=_end_with, args=(told.parent,), daemon=True).start()
    fleet = from_file(Path(told.replicas), os.environ[CONTROL_TOKEN])
    app = gateway_app(options, told.router, fleet)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)  # who ends it has drained it
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=told.socket)])


def _end_with(parent: int) -> None:
    """Reads from a pipe that nobody writes to: it ends with the other end's process."""
    os.read(parent, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
