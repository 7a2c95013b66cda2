"""The simulated replica in real time: its kernel is run up to the wall clock, and sleeps until something is due.

    submit -> the replica, at this instant -> [steps in virtual time] -> tokens, when their instant has come -> Call

What happens is decided in virtual time, as in a simulation of the same arrivals. A process that falls behind delivers
late, and loses nothing: steps are as long as they were, and the requests that come meanwhile come when they came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from math import inf, nextafter
from time import monotonic

from sloguard.sched.job import Job
from sloguard.sim.kernel import Action, Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Replica

log = logging.getLogger(__name__)

MakeReplica = Callable[[Kernel, OnTokens, OnDecline], Replica]
OnEnd = Callable[[Job, float, bool], None]

SHUT_DOWN = "the server is shutting down"


class Call:
    """One job under way, and the tokens of it that nobody has taken yet.

    It ends with all tokens given, declined, with an `error`, or without one where its client hung up.
    """

    __slots__ = ("_news", "_sizes", "declined", "ended", "error", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ended = self.declined = False
        self.error = ""
        self._sizes: list[int] = []
        self._news = asyncio.Event()

    async def sizes(self) -> list[int]:
        """The tokens of each step since the last look, as soon as there are any; empty at the end."""
        while not self._sizes and not self.ended:
            self._news.clear()
            await self._news.wait()
        taken, self._sizes = self._sizes, []
        return taken

    def give(self, sizes: list[int]) -> None:
        self._sizes += sizes
        self._news.set()

    def end(self, error: str = "") -> None:
        self.ended, self.error = True, error
        self._news.set()


class RealTime:
    """Serves jobs on one replica while `running()` is entered. Everything happens on one event loop.

    `on_end(job, at_s, completed)` is called once for each job that was submitted, whatever its end, but for those that
    another replica is to serve: then `on_decline(job)`. Instants are seconds of `now_s()`, which began at `began_s` of
    the monotonic clock; `late_s` is by how much the driver last overslept.
    """

    def __init__(self, make_replica: MakeReplica, on_end: OnEnd, on_decline: OnDecline) -> None:
        self._kernel = Kernel()
        self.replica = make_replica(self._kernel, self._on_tokens, self._declined)
        self.late_s = 0.0
        self.fault = "the engine is not running"
        self._on_end, self._on_decline = on_end, on_decline
        self._calls: dict[str, Call] = {}
        self._left: set[str] = set()  # declined with nobody to hear it
        self.began_s = monotonic()
        self._last_s = -inf
        self._news = asyncio.Event()

    def now_s(self) -> float:
        return monotonic() - self.began_s

    @property
    def calls(self) -> int:
        """How many jobs are under way."""
        return len(self._calls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Jobs that are under way at the end get an error."""
        self.fault = ""
        driver = asyncio.create_task(self._drive())
        driver.add_done_callback(self._driven)
        try:
            yield
        finally:
            self.fault = self.fault or SHUT_DOWN
            self._end_all(self.fault)
            driver.cancel()
            await asyncio.wait([driver])

    def submit(self, job: Job, waited_s: float = 0.0) -> Call:
        """Queues a job now; its `arrival_s` is then, less what it has waited elsewhere. With a `fault`, its call has
        ended before it began.
        """
        call = Call(job)
        self._calls[job.id] = call
        if self.fault:
            self._end(call, completed=False, error=self.fault)
        else:
            job.arrival_s = self._do(lambda: self.replica.submit(job)) - waited_s
        return call

    def abort(self, call: Call) -> None:
        """Nobody waits for the call any more. Does nothing where it has ended."""
        if not call.ended:
            self._end(call, completed=False)
            self._do(lambda: self._withdraw(call.job))

    def _withdraw(self, job: Job) -> None:
        """What ended or was declined while this was on its way is not there any more."""
        if job.id in self._left:
            self._left.discard(job.id)
        elif job.generated_tokens < job.output_tokens:
            self.replica.abort(job)

    def _do(self, action: Action) -> float:
        """Does it at the instant that is now, which no other action shares: as in simulations (sim/serve.py)."""
        self._last_s = max(self.now_s(), nextafter(self._last_s, inf))
        self._kernel.at(self._last_s, action, first=True)
        self._news.set()
        return self._last_s

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            self._kernel.run(self.now_s())
            self.replica.sync()
            due_s = self._due_s()
            if due_s <= self.now_s():
                await asyncio.sleep(0)  # behind: what was given is written before more is computed
            elif due_s == inf:
                await self._news.wait()
                continue
            else:
                alarm = loop.call_later(due_s - self.now_s(), self._news.set)
                await self._news.wait()
                alarm.cancel()
            self.late_s = max(0.0, self.now_s() - due_s)

    def _due_s(self) -> float:
        """When the next thing happens. Steps of a plan that holds end without an action of their own."""
        ends_s = self.replica.step_ends_s
        return min(self._kernel.next_s, ends_s) if ends_s >= self._kernel.now_s else self._kernel.next_s

    def _driven(self, driver: asyncio.Task[None]) -> None:
        """The driver has ended: a policy that breaks must not leave clients waiting for ever."""
        if not driver.cancelled() and (error := driver.exception()):
            self.fault = f"the engine failed: {error}"
            log.error("sloguard: the emulated engine failed", exc_info=error)
            self._end_all(self.fault)

    def _on_tokens(self, jobs: list[Job], times_s: list[float]) -> None:
        sizes = [1] if len(times_s) == 1 else [len(list(step)) for _, step in groupby(times_s)]
        for job in reversed(jobs):  # the latest first: what its client waits for is the first token
            call = self._calls.get(job.id)
            if call is None:
                continue  # its client hung up during this step
            call.give(sizes)
            if job.generated_tokens >= job.output_tokens:
                self._end(call, completed=True)

    def _declined(self, job: Job) -> None:
        call = self._calls.pop(job.id, None)
        if call is None:  # its client has just hung up
            self._left.add(job.id)
            return
        call.declined = True
        call.end()
        self._on_decline(job)

    def _end_all(self, error: str) -> None:
        for call in list(self._calls.values()):
            self._end(call, completed=False, error=error)

    def _end(self, call: Call, *, completed: bool, error: str = "") -> None:
        del self._calls[call.job.id]
        call.end(error)
        self._on_end(call.job, self._kernel.now_s if completed else self.now_s(), completed)
