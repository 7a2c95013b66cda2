"""Who is refused when there is more to do than can be done."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asgi import call
from doors import COMPLETE, OPEN_DOOR, TOKEN, Busy, Engine, refusal
from sloguard.plugins.door import SILENT_S, Door
from sloguard.plugins.queue_wait import WINDOW_S


@pytest.mark.parametrize(
    ("waiting", "best_effort", "promised"), [(0, 200, 200), (36, 200, 200), (60, 429, 200), (100, 429, 429)]
)
def test_best_effort_is_refused_first(tmp_path: Path, waiting: int, best_effort: int, promised: int):
    busy = Busy(tmp_path, max_wait_s=20.0)
    busy.queue(waiting, started_per_s=2.0)
    found = busy.ask(best_effort=True), busy.ask(best_effort=False)
    assert [answer.status for answer in found] == [best_effort, promised]
    for answer in found:
        if answer.status == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= waiting / 2
            assert "overloaded" in refusal(answer)[2]


@pytest.mark.parametrize("started_per_s", [0.0, 2.0])
def test_what_is_left_of_an_overload_keeps_no_promise_waiting(tmp_path: Path, started_per_s: float):
    busy = Busy(tmp_path, max_wait_s=20.0)
    busy.queue(100, started_per_s, WINDOW_S)
    assert busy.ask(best_effort=False).status == 429
    busy.queue(100, started_per_s, WINDOW_S, put_off=False)
    assert [busy.ask(best_effort).status for best_effort in (True, False)] == [429, 200]


@pytest.mark.parametrize("path", ["/cohere/v2/chat", "/invocations"])
def test_what_takes_no_promise_is_refused_last(tmp_path: Path, path: str):
    busy = Busy(tmp_path, max_wait_s=20.0)
    busy.queue(60, started_per_s=2.0)
    assert asyncio.run(call(busy.door, path, b"{}")).status == 200
    busy.queue(100, started_per_s=2.0)
    assert asyncio.run(call(busy.door, path, b"{}")).status == 429


def test_an_engine_that_starts_nothing_is_overloaded_until_it_does(tmp_path: Path):
    busy = Busy(tmp_path)
    busy.queue(50, started_per_s=0.0, for_s=WINDOW_S)
    answer = busy.ask(best_effort=False)
    assert (answer.status, answer.headers["retry-after"]) == (429, "60")
    busy.tell(waiting=0, started=50)
    assert busy.ask(best_effort=True).status == 200


def test_a_queue_whose_clients_all_hung_up_keeps_nobody_out(tmp_path: Path):
    """Nothing is left for the engine to do, so it says no more that nobody waits."""
    busy = Busy(tmp_path, max_wait_s=20.0)
    busy.queue(100, started_per_s=2.0)
    assert busy.ask(best_effort=False).status == 429
    for _ in range(2 * int(WINDOW_S)):
        busy.clock.now_s += 1.1 * SILENT_S
        assert busy.ask(best_effort=True).status == 200


def test_a_burst_after_a_quiet_time_is_no_overload(tmp_path: Path):
    busy = Busy(tmp_path, max_wait_s=20.0)
    busy.queue(0, started_per_s=0.1, for_s=60.0)
    for second in range(5):
        busy.tell(waiting=100 - 20 * second, started=6 + 20 * second)
        assert busy.ask(best_effort=True).status == 200
        busy.clock.now_s += 1.0


def test_no_more_than_so_many_are_under_way_and_each_leaves_however_it_ends():
    async def run() -> None:
        engine = Engine()
        engine.held = asyncio.Event()
        door = Door(engine, OPEN_DOOR.model_copy(update={"max_requests": 2}))
        under_way = [asyncio.create_task(call(door, COMPLETE, b"{}")) for _ in range(2)]
        await asyncio.sleep(0)
        answer = await call(door, COMPLETE, b"{}")
        assert (refusal(answer)[0], answer.headers["retry-after"]) == (429, "1")
        under_way[0].cancel()
        await asyncio.wait(under_way[:1])
        engine.held.set()
        assert (await call(door, COMPLETE, b"{}")).status == 200
        assert (await under_way[1]).status == 200
        status = await call(door, "/sloguard/status", headers=TOKEN, method="GET")
        assert (status.json["draining"], status.json["in_flight"]) == (False, 0)

    asyncio.run(run())


def test_a_fault_of_the_app_is_the_apps_and_leaves_nothing():
    async def broken(*_: object) -> None:
        raise RuntimeError("broken")

    async def run() -> None:
        door = Door(broken, OPEN_DOOR)
        with pytest.raises(RuntimeError, match="broken"):
            await call(door, COMPLETE, b"{}")
        assert (await call(door, "/sloguard/status", headers=TOKEN, method="GET")).json["in_flight"] == 0

    asyncio.run(run())
