"""The replicas as far as they are known: who is there, how it stands with each, and what was sent where.

    look     each replica is asked how it stands every LOOK_S; its answers to requests bring the same along
    up       it says that it is ready, and its engine takes steps
    down     it says otherwise, or can't be reached: it gets nothing new
    hung     it is silent for `silent_s`, or its engine for `hung_s`: what it was answering breaks off at once
    unseen   what was sent to it and that its state does not hold yet

A state that can't be read, of another version for example, is one of a replica that is down.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from sloguard.fleet.link import Call, Headers, Link, Lost
from sloguard.plugins.door import STATE_HEADER, STATUS_PATH
from sloguard.plugins.states import read
from sloguard.route.base import ReplicaState

LOOK_S = 0.05
SILENT_S = 2.0
UNSEEN_S = 5.0  # sent so long ago, it is in the state, whatever the state's tickets say: they are the last few
SHUT = 1 << 40  # jobs, tokens and blocks that nobody has
LATE_S = 0.5
HUNG_S = 20.0  # without a step, though there is work: the longest steps of real engines take a few seconds


@dataclass(slots=True, eq=False)
class Member:
    """One replica. `since_s`: since when it is up or down."""

    link: Link
    state: ReplicaState | None = None
    number: int = 0  # of the state: a later one has a higher number
    why_down: str = "not asked yet"
    since_s: float = 0.0
    sent: int = 0  # requests under way there
    unseen: dict[str, float] = field(default_factory=dict[str, float])  # tickets, and when they were sent
    scopes: set[asyncio.Timeout] = field(default_factory=set[asyncio.Timeout])

    @property
    def name(self) -> str:
        return self.link.name

    @property
    def up(self) -> bool:
        return not self.why_down

    def view(self) -> ReplicaState:
        """For a router: what it has itself sent there, it knows best."""
        assert self.state is not None, "who is up has told its state"
        waiting = max(self.state.waiting, self.sent - self.state.running)
        return replace(self.state, waiting=waiting, unseen=tuple(self.unseen))

    def view_of_shut(self) -> ReplicaState:
        """For a router that is to send nothing there: it has more to do than any other, and no memory."""
        assert self.state is not None, "a router knows who has told its state"
        return replace(self.state, waiting=SHUT, queued_tokens=SHUT, waiting_blocks=SHUT)

    @contextmanager
    def serving(self, ticket: str | None, scope: asyncio.Timeout, now_s: float) -> Iterator[None]:
        """While it serves this request. `scope` ends, with a TimeoutError, when the member hangs."""
        self.sent += 1
        if ticket is not None:
            self.unseen[ticket] = now_s
        self.scopes.add(scope)
        try:
            yield
        finally:
            self.sent -= 1
            self.unseen.pop(ticket or "", None)
            self.scopes.discard(scope)


class Members:
    def __init__(
        self, clock: Callable[[], float] = time.monotonic, silent_s: float = SILENT_S, hung_s: float = HUNG_S
    ) -> None:
        self._members: dict[str, Member] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._silent_s, self._hung_s = silent_s, hung_s
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def up(self) -> list[Member]:
        return [member for member in self._members.values() if member.up]

    async def one_up(self, within_s: float) -> bool:
        """Waits for somebody to be up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.up():
                    self._changed.clear()
                    await self._changed.wait()
        return bool(self.up())

    def set(self, links: Iterable[Link]) -> None:
        """These are the replicas now: who is new is looked at, who is gone may finish what it is answering."""
        given = {link.name: link for link in links}
        for name in self._members.keys() - given.keys():
            self._down(self._members.pop(name), "removed")
        for name in [name for name in given if name not in self._members]:  # routers know them by their place
            member = self._members[name] = Member(given[name], since_s=self._clock())
            watch = asyncio.create_task(self._watch(member))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

    async def close(self) -> None:
        self.set(())
        watches = list(self._watches)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    def lost(self, member: Member, why: str) -> None:
        """It did not answer a request: it gets nothing new until it has answered a look."""
        self._down(member, why)

    def told(self, member: Member, headers: Headers) -> None:
        """What came along with an answer."""
        if text := next((value for name, value in headers if name.lower() == STATE_HEADER), None):
            self._learn(member, text)

    async def _watch(self, member: Member) -> None:
        """One that is gone is watched until it has finished: its machine may vanish without a word."""
        while self._members.get(member.name) is member or member.sent:
            began_s = self._clock()
            try:
                async with asyncio.timeout(self._silent_s):
                    told = await _look(member.link)
            except Lost as lost:
                self._down(member, str(lost))
            except TimeoutError:
                if self._clock() - began_s < self._silent_s + LATE_S:  # else it was we who were held up
                    self._hung(member, f"silent for {self._silent_s:g} s")
            else:
                self._learn(member, told)
            await asyncio.sleep(LOOK_S)

    def _learn(self, member: Member, told: str | bytes) -> None:
        if self._members.get(member.name) is not member:
            return
        try:
            self._take(member, dict(json.loads(told)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._down(member, f"tells what can't be read ({error!r})")

    def _take(self, member: Member, status: dict[str, Any]) -> None:
        why = str(status.get("why", ""))
        if status.get("state") is not None:
            if status["number"] > member.number:
                member.number = status["number"]
                member.state = read(status["state"], self._clock() - float(status["age_s"]))
            for ticket in status["state"].get("tickets", ()):
                member.unseen.pop(ticket, None)
            old_s = self._clock() - UNSEEN_S
            for ticket in [ticket for ticket, sent_s in member.unseen.items() if sent_s < old_s]:
                del member.unseen[ticket]
        elif not why:
            why = "tells no state"
        if status.get("stalled_s", 0.0) > self._hung_s:
            self._hung(member, f"no step for {status['stalled_s']:.0f} s")
        elif why:
            self._down(member, why)
        elif not member.up:
            member.why_down, member.since_s = "", self._clock()
            self._changed.set()

    def _down(self, member: Member, why: str) -> None:
        was_up, member.why_down = member.up, why
        if was_up:
            member.since_s = self._clock()

    def _hung(self, member: Member, why: str) -> None:
        self._down(member, why)
        for scope in member.scopes:
            if not scope.expired():
                scope.reschedule(-inf)


async def _look(link: Link) -> bytes:
    async with link.ask(Call("GET", STATUS_PATH)) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
        if reply.status != 200:
            raise Lost(f"{link.name}: its door answers {reply.status}")
    return body
