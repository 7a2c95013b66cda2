"""The gateway: one OpenAI-compatible endpoint over many replicas, as an ASGI app. It stands behind a door of its own.

    request -> router -> replica -> answer -> client
                 ^          |
                 +----------+ declined, busy or lost: another one, as long as there are hops and patience

A replica's verdict is in its answer: the first event says whether its scheduler declined. What a client has got of an
answer that breaks off is never sent again (relay.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote
from uuid import uuid4

from sloguard.fleet.asking import Sizes, job_of
from sloguard.fleet.client import Client
from sloguard.fleet.link import Call, Headers, Lost, Reply
from sloguard.fleet.members import Member, Members
from sloguard.fleet.meters import GatewayMeters
from sloguard.fleet.relay import CHAT, COMPLETIONS, DATA, Relay, is_declined
from sloguard.plugins.asgi import Receive, Scope, Send, Unreadable, parsed, read_body
from sloguard.plugins.door import CONTROL, GENERATES, TAKES_PROMISES
from sloguard.route.base import Router
from sloguard.sched.asked import HOPS_LEFT, ROUTER, TICKET, WAITED, read_asked
from sloguard.sched.job import Job
from sloguard.slo import StageSLO

MOST_LOSSES = 3  # replicas lost under one request: another might be lost to it as well
PATIENCE_S = 60.0  # for somebody to go on with an answer that has begun
MOMENT_S = 1.0  # for a replica to be there, of a request that nobody has begun
BUSY_S = 0.25  # until one that was busy is asked again, by an answer that has begun
RETRY_S = 5  # what clients are told while no replica is there
CONVERSATIONS = 1 << 16

MakeRouter = Callable[[], Router]


class Declined(Exception):  # noqa: N818 - says what the replica did
    """Its scheduler left the request to another replica."""


class Busy(Exception):  # noqa: N818
    """Its door lets nobody in, and said so with `answer`."""

    def __init__(self, answer: Whole) -> None:
        self.answer = answer
        super().__init__()


class Failed(Exception):  # noqa: N818
    """It is there, and could not answer this request."""


@dataclass(frozen=True, slots=True)
class Whole:
    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True)
class Asked:
    """One request, on its way to an answer. `relay` is None for an API whose answers can't be read for a verdict: such
    requests are neither declined nor gone on with.
    """

    client: Client
    headers: Headers
    path: str
    raw: bytes
    job: Job
    relay: Relay | None
    declined: list[Member] = field(default_factory=list[Member])
    shut: list[Member] = field(default_factory=list[Member])  # those that were busy or failed: others go first
    losses: int = 0
    broken_s: float = 0.0  # when it last was lost

    @property
    def can_go_on(self) -> bool:
        return not self.client.begun or (self.relay is not None and self.relay.can_go_on)


class Gateway:
    """`make_router` is called anew when the replicas are others, for a router knows them by their place in a list."""

    def __init__(
        self,
        members: Members,
        make_router: MakeRouter,
        classes: Mapping[str, StageSLO],
        default_class: str | None,
        meters: GatewayMeters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members, self._make_router, self._meters, self._clock = members, make_router, meters, clock
        self._classes, self._default_class = classes, default_class
        self._router, self._routed = make_router(), list[Member]()
        self._homes: OrderedDict[str, Member] = OrderedDict()
        self._sizes = Sizes()
        self._name, self._tickets, self._turn = uuid4().hex[:8], 0, 0

    def why_not_ready(self) -> str | None:
        return None if self._members.up() else "no replica is up"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1003})
        client = Client(send)
        try:
            raw = await read_body(receive)
        except Unreadable as error:
            return await client.fail(error.status, str(error))
        answering = asyncio.ensure_future(self._answer(scope, raw, client))
        listening = asyncio.create_task(_until_gone(receive, answering))
        try:
            return await answering
        except asyncio.CancelledError:
            if not listening.done():  # the server ends, and has waited long enough
                await client.fail(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down", RETRY_S)
        finally:
            answering.cancel()
            listening.cancel()

    async def _answer(self, scope: Scope, raw: bytes, client: Client) -> None:
        path = scope["path"]
        if scope["method"] == "POST" and path in GENERATES:
            await self._generate(self._asked(scope, path, raw, client))
        else:
            await self._pass(scope, raw, client)

    # What generates.

    def _asked(self, scope: Scope, path: str, raw: bytes, client: Client) -> Asked:
        body = parsed(raw)
        given = {} if body is None else body.get("vllm_xargs")
        given = {} if given is None else given
        told = given if isinstance(given, dict) and path in TAKES_PROMISES else {}  # the door has checked no others
        asked = read_asked(told, self._classes, self._default_class)
        self._tickets += 1
        longest = min((m.state.limits.max_model_len for m in self._members if m.state is not None), default=1 << 20)
        name = f"{self._name}-{self._tickets}"
        job = job_of(name, self._clock(), path, body, len(raw), asked, self._sizes, longest)
        readable = body is not None and isinstance(given, dict) and path in (COMPLETIONS, CHAT)
        relay = Relay(path, body, longest) if body is not None and readable else None
        return Asked(client, _headers(scope), path, raw, job, relay)

    async def _generate(self, asked: Asked) -> None:
        while True:
            if asked.client.begun and asked.relay is not None and asked.relay.complete:
                asked.relay.finish()
                return await self._send_out(asked.client, asked.relay, more=False)
            if not self._members.up():
                left_s = asked.broken_s + PATIENCE_S - self._clock() if asked.client.begun else MOMENT_S
                if not await self._members.one_up(left_s):
                    return await self._give_up(asked, "no replica is up", HTTPStatus.SERVICE_UNAVAILABLE)
            began_s = self._clock()
            member, hops_left = self._choose(asked, self._members.up())
            self._meters.decided(self._clock() - began_s)
            try:
                await self._attempt(asked, member, hops_left)
            except Declined:
                asked.declined.append(member)
                self._meters.hopped()
            except Busy as busy:
                asked.shut.append(member)
                if all(other in asked.shut for other in self._members.up()):
                    if not asked.client.begun:
                        return await asked.client.whole(busy.answer.status, busy.answer.headers, busy.answer.body)
                    if self._clock() > asked.broken_s + PATIENCE_S:
                        return await self._give_up(asked, "every replica is busy", HTTPStatus.SERVICE_UNAVAILABLE)
                    asked.shut.clear()
                    await asyncio.sleep(BUSY_S)
            except (Lost, Failed) as lost:
                asked.losses += 1
                asked.shut.append(member)
                asked.broken_s = self._clock()
                self._meters.lost(asked.client.begun)
                if asked.losses >= MOST_LOSSES or not asked.can_go_on:
                    return await self._give_up(asked, _why_lost(asked, lost), HTTPStatus.BAD_GATEWAY)
            else:
                return self._remember(asked, member)

    def _choose(self, asked: Asked, up: list[Member]) -> tuple[Member, int]:
        """Where it goes, and how often it may still be sent on. Somebody is up."""
        known = [member for member in self._members if member.state is not None]
        if known != self._routed:
            self._routed, self._router = known, self._make_router()
        home = self._homes.get(asked.job.conversation)
        if home in up and home not in asked.declined and home not in asked.shut:
            return home, 0
        open_to = [member for member in up if member not in asked.shut] or up
        views = [member.view() if member in open_to else member.view_of_shut() for member in known]
        tried = [known.index(member) for member in asked.declined if member in known]
        for _ in known:
            route = self._router.choose(self._clock(), asked.job, views, tried)
            member = known[route.replica]
            if member in open_to:
                others = [other for other in open_to if other is not member and other not in asked.declined]
                hops = asked.relay is not None and not asked.losses and not asked.client.begun
                return member, min(route.hops_left, len(others)) if hops else 0
            tried = [*tried, route.replica] if route.replica not in tried else tried
        return min(open_to, key=lambda member: member.sent), 0

    async def _attempt(self, asked: Asked, member: Member, hops_left: int) -> None:
        """Raises Declined, Busy, Failed or Lost where another replica may have to go on."""
        try:
            async with asyncio.timeout(None) as scope:
                with member.serving(asked.job.id if asked.relay else None, scope, self._clock()):
                    path, body = self._body_for(asked, member, hops_left)
                    async with member.link.ask(Call("POST", path, asked.headers, body)) as reply:
                        self._members.told(member, reply.headers)
                        await self._relayed(asked, reply)
        except Declined:
            if not hops_left:
                raise Failed("it ended an answer without a token") from None
            raise
        except TimeoutError:
            raise Lost(f"{member.name}: {member.why_down}") from None
        except Lost as lost:
            self._members.lost(member, str(lost))
            raise

    def _body_for(self, asked: Asked, member: Member, hops_left: int) -> tuple[str, bytes]:
        if asked.relay is None:
            return asked.path, asked.raw
        path, told = asked.relay.request()
        # What goes on has its first token behind it: the wait of a client for the next one begins anew.
        waited_s = 0.0 if asked.client.begun else self._clock() - asked.job.arrival_s
        ours = {
            HOPS_LEFT: hops_left,
            TICKET: asked.job.id,
            WAITED: round(1000 * waited_s, 3),
            ROUTER: member.link.proof,
        }
        return path, json.dumps({**told, "vllm_xargs": {**(told.get("vllm_xargs") or {}), **ours}}).encode()

    async def _relayed(self, asked: Asked, reply: Reply) -> None:
        if not (_is_stream(reply.headers) and reply.status == HTTPStatus.OK):
            return await self._relayed_whole(asked, reply)
        relay = asked.relay
        if relay is None:
            async for chunk in reply.chunks():
                await asked.client.begin(reply.status, reply.headers)
                await asked.client.body(chunk)
            return await asked.client.body(b"", more=False)
        await self._send_out(asked.client, relay)  # what the client of a replica that hung was too slow to take
        async for chunk in reply.chunks():
            relay.feed(chunk)
            if relay.out:
                await asked.client.begin(reply.status, reply.headers)
                await self._send_out(asked.client, relay)
            if relay.declined:
                raise Declined
            if relay.error:
                raise Failed(f"it broke off with {relay.error.removeprefix(DATA).decode(errors='replace')}")
        if not relay.over:
            raise Lost("a stream broke off")
        self._sizes.saw(asked.job, len(relay.prompt_ids))
        return await asked.client.body(b"", more=False)

    async def _relayed_whole(self, asked: Asked, reply: Reply) -> None:
        answer = Whole(reply.status, reply.headers, b"".join([chunk async for chunk in reply.chunks()]))
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            raise Busy(answer)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR and asked.losses + 1 < MOST_LOSSES:
            raise Failed(f"status {answer.status}")
        if asked.client.begun:
            raise Failed(f"status {answer.status} to an answer that has begun")
        if answer.status == HTTPStatus.OK and asked.relay is not None and is_declined(parsed(answer.body)):
            raise Declined
        await asked.client.whole(answer.status, answer.headers, answer.body)

    async def _send_out(self, client: Client, relay: Relay, more: bool = True) -> None:
        """Taken from `out` only once it is sent: the wait for a slow client may be cut short."""
        if relay.out or not more:
            await client.body(bytes(relay.out), more)
            relay.out.clear()

    async def _give_up(self, asked: Asked, why: str, status: HTTPStatus) -> None:
        self._meters.gave_up()
        await asked.client.fail(status, why, RETRY_S)

    def _remember(self, asked: Asked, member: Member) -> None:
        """Where the KV of a conversation lies that goes on. One without a name has no other request."""
        name = asked.job.conversation
        if not asked.job.stages_left or name == asked.job.id:
            self._homes.pop(name, None)
            return
        self._homes[name] = member
        self._homes.move_to_end(name)
        if len(self._homes) > CONVERSATIONS:
            self._homes.popitem(last=False)

    # What does not.

    async def _pass(self, scope: Scope, raw: bytes, client: Client) -> None:
        """To whoever is up, one after the other where that is harmless."""
        path = _path_for(scope)
        if path is None:
            return await client.fail(HTTPStatus.NOT_FOUND, "Not Found")
        self._turn += 1
        up = self._members.up()
        for at in range(len(up)):
            member = up[(self._turn + at) % len(up)]
            try:
                async with asyncio.timeout(None) as waiting:
                    with member.serving(None, waiting, self._clock()):
                        async with member.link.ask(Call(scope["method"], path, _headers(scope), raw)) as reply:
                            async for chunk in reply.chunks():
                                await client.begin(reply.status, reply.headers)
                                await client.body(chunk)
                            await client.begin(reply.status, reply.headers)
                            return await client.body(b"", more=False)
            except (Lost, TimeoutError) as lost:
                if isinstance(lost, Lost):
                    self._members.lost(member, str(lost))
                if client.begun or scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                    return await client.fail(HTTPStatus.BAD_GATEWAY, f"{member.name} failed")
        return await client.fail(HTTPStatus.SERVICE_UNAVAILABLE, "no replica is up", RETRY_S)


async def _until_gone(receive: Receive, answering: asyncio.Future[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answering.cancel()


def _why_lost(asked: Asked, last: Lost | Failed) -> str:
    """For the client: how a connection broke is nothing to it, what an engine said may be."""
    told = isinstance(last, Failed)
    if asked.losses > 1:
        return f"{asked.losses} replicas were lost under the answer" + (f" (the last one: {last})" if told else "")
    what = f"failed: {last}" if told else "ended under the answer"
    return f"the replica {what}, and an answer of this kind can't be continued elsewhere"


def _headers(scope: Scope) -> Headers:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def _path_for(scope: Scope) -> str | None:
    """As the client wrote it, with its query; None for one that a replica might take for one of its own controls."""
    raw = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
    parts = unquote(raw).split("/")
    if not raw.startswith("/") or ".." in parts or "." in parts or "" in parts[1:-1] or CONTROL.strip("/") in parts:
        return None
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{raw}?{query}" if query else raw


def _is_stream(headers: Headers) -> bool:
    return any(name.lower() == "content-type" and value.startswith("text/event-stream") for name, value in headers)
