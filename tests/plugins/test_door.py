"""Who is let in, where, and until when."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asgi import Headers, Message, call, parts_of
from doors import COMPLETE, KEY, OPTIONS, TOKEN, Busy, Engine, asked, refusal
from sloguard.plugins.board import Board
from sloguard.plugins.door import GENERATES, STALLED_S, Door

# Keys.


@pytest.mark.parametrize("given", [b"", b"Bearer", b"Bearer ", b"Bearer the-ke", b"Bearer the-keyx", b"the-key",
                                   b"Basic the-key", b"Bearer the-key the-key", b"Bearer \xff\xfe"])  # fmt: skip
def test_a_wrong_key_gets_nowhere(given: bytes):
    for path, method in ((COMPLETE, "POST"), ("/v1/models", "GET"), ("/tokenize", "POST"), ("/metrics/x", "GET")):
        answer, engine = asked(headers=[(b"authorization", given)], path=path, options=OPTIONS, method=method)
        assert refusal(answer)[0] == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert b"the-" not in answer.body
        assert engine.scopes == []


@pytest.mark.parametrize("given", [b"Bearer the-key", b"bearer the-key", b"BEARER  the-key ", b"Bearer the-token"])
def test_the_right_key_does_and_so_does_the_token_of_who_started_the_server(given: bytes):
    answer, engine = asked(headers=[(b"Authorization", given)], options=OPTIONS)
    assert (answer.status, engine.bodies) == (200, [b"{}"])


def test_keys_may_be_of_any_bytes():
    of_bytes = OPTIONS.model_copy(update={"api_key": b"caf\xe9\xff".decode(errors="surrogateescape")})
    assert asked(headers=[(b"authorization", b"Bearer caf\xe9\xff")], options=of_bytes)[0].status == 200
    assert asked(headers=KEY, options=of_bytes)[0].status == 401


@pytest.mark.parametrize("path", ["/health", "/metrics", "/ready"])
def test_probes_need_no_key(path: str):
    assert asked(path=path, options=OPTIONS, method="GET")[0].status == 200


def test_a_browser_may_ask_before_it_sends_the_key():
    answer, engine = asked(b"", path=COMPLETE, options=OPTIONS, method="OPTIONS")
    assert (answer.status, len(engine.scopes)) == (200, 1)


def test_without_a_key_everybody_is_let_in():
    assert asked()[0].status == 200


async def opened(door: Door, headers: Headers = ()) -> list[Message]:
    """What a WebSocket's client is told by the door itself."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await door({"type": "websocket", "path": "/v1/realtime", "headers": list(headers)}, receive, send)
    return sent


def test_websockets_need_the_key_and_none_is_opened_once_the_server_drains():
    async def run() -> None:
        engine = Engine()
        door = Door(engine, OPTIONS)
        assert await opened(door) == [{"type": "websocket.close", "code": 1008}]
        assert engine.scopes == []
        assert await opened(door, KEY) == []
        assert [scope["type"] for scope in engine.scopes] == ["websocket"]
        await call(door, "/sloguard/drain", headers=TOKEN)
        assert await opened(door, KEY) == [{"type": "websocket.close", "code": 1012}]

    asyncio.run(run())


def test_a_websocket_is_under_way_until_it_closes_and_is_no_hang():
    async def run() -> None:
        over, clock = asyncio.Event(), [0.0]

        async def talks(*_: object) -> None:
            await over.wait()

        door = Door(talks, OPTIONS, lambda: clock[0])
        talk = asyncio.create_task(opened(door, KEY))
        await asyncio.sleep(0)
        clock[0] = 1e6
        assert (await call(door, "/sloguard/status", headers=TOKEN, method="GET")).json["in_flight"] == 1
        assert (await call(door, "/ready", method="GET")).status == 200
        over.set()
        await talk
        assert (await call(door, "/sloguard/status", headers=TOKEN, method="GET")).json["in_flight"] == 0

    asyncio.run(run())


def test_a_lifespan_is_the_apps():
    async def never(*_: object) -> None:
        raise AssertionError

    engine = Engine()
    asyncio.run(Door(engine, OPTIONS)({"type": "lifespan"}, never, never))  # type: ignore[arg-type]
    assert engine.scopes == [{"type": "lifespan"}]


# Readiness, draining, control.


def test_a_server_is_ready_once_its_engine_has_begun(tmp_path: Path):
    door = Door(Engine(), OPTIONS.model_copy(update={"boards": str(tmp_path)}))
    answer = asyncio.run(call(door, "/ready", method="GET"))
    assert (answer.status, answer.json) == (503, {"ready": False, "why": "the engine has not started"})
    Board(tmp_path)
    answer = asyncio.run(call(door, "/ready", method="GET"))
    assert (answer.status, answer.json) == (200, {"ready": True})


def test_an_engine_that_takes_no_step_for_what_waits_is_not_ready(tmp_path: Path):
    async def run() -> None:
        busy = Busy(tmp_path)
        busy.engine.held = asyncio.Event()
        busy.tell(0, 0)
        busy.clock.now_s += 10 * STALLED_S
        assert (await call(busy.door, "/ready", method="GET")).status == 200, "nothing is asked of it"
        waits = asyncio.create_task(call(busy.door, COMPLETE, b"{}"))
        await asyncio.sleep(0)
        busy.clock.now_s += STALLED_S + 1
        answer = await call(busy.door, "/ready", method="GET")
        assert answer.status == 503
        assert "no step for 60 s" in answer.json["why"]
        busy.tell(0, 1)
        assert (await call(busy.door, "/ready", method="GET")).status == 200
        busy.engine.held.set()
        await waits

    asyncio.run(run())


def test_a_client_that_does_not_take_its_answer_is_not_the_engines_fault(tmp_path: Path):
    async def run() -> None:
        busy, taken = Busy(tmp_path), asyncio.Event()
        busy.tell(0, 0)

        async def receive() -> Message:
            return parts_of(b"{}")[0]

        async def send(_: Message) -> None:
            await taken.wait()

        scope = {"type": "http", "method": "POST", "path": COMPLETE, "headers": []}
        slow = asyncio.create_task(busy.door(scope, receive, send))
        await asyncio.sleep(0)
        busy.clock.now_s += 2 * STALLED_S
        assert (await call(busy.door, "/ready", method="GET")).status == 200
        taken.set()
        await slow

    asyncio.run(run())


def test_once_it_drains_nothing_new_is_let_in_and_the_rest_may_finish():
    async def run() -> None:
        engine = Engine()
        engine.held = asyncio.Event()
        door = Door(engine, OPTIONS)
        under_way = asyncio.create_task(call(door, COMPLETE, b"{}", KEY))
        await asyncio.sleep(0)
        sending = asyncio.Event()

        async def receive() -> Message:
            await sending.wait()
            return parts_of(b"{}")[0]

        late: list[Message] = []

        async def send(message: Message) -> None:
            late.append(message)

        scope = {"type": "http", "method": "POST", "path": COMPLETE, "headers": KEY}
        slow = asyncio.create_task(door(scope, receive, send))
        await asyncio.sleep(0)
        drained = await call(door, "/sloguard/drain", headers=TOKEN)
        assert (drained.status, drained.json["draining"], drained.json["in_flight"]) == (200, True, 1)
        sending.set()
        await slow
        assert late[0]["status"] == 503, "its body was still on its way"
        for path in GENERATES:
            answer = await call(door, path, b"{}", KEY)
            assert (refusal(answer)[0], answer.headers["retry-after"]) == (503, "1")
        ready = await call(door, "/ready", method="GET")
        assert (ready.status, ready.json["why"]) == (503, "shutting down")
        engine.held.set()
        assert (await under_way).status == 200
        assert (await call(door, "/v1/models", headers=KEY, method="GET")).status == 200
        assert (await call(door, "/sloguard/status", headers=TOKEN, method="GET")).json["in_flight"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("headers", [[], KEY, [(b"authorization", b"Bearer ")], [(b"authorization", b"Bearer x")]])
@pytest.mark.parametrize("token", ["the-token", None])
def test_control_is_not_there_for_others(headers: Headers, token: str | None):
    options = OPTIONS.model_copy(update={"control_token": token})
    for path, method in (("/sloguard/status", "GET"), ("/sloguard/drain", "POST"), ("/sloguard/x", "GET")):
        answer, engine = asked(path=path, headers=headers, options=options, method=method)
        assert refusal(answer) == (404, None, "Not Found")
        assert engine.scopes == []
        assert b"the-" not in answer.body


def test_control_knows_two_things():
    for path, method in (("/sloguard/drain", "GET"), ("/sloguard/status", "POST"), ("/sloguard/", "GET")):
        assert asked(path=path, headers=TOKEN, options=OPTIONS, method=method)[0].status == 404


def test_secrets_are_not_shown():
    assert "the-" not in repr(OPTIONS)


# Paths.


@pytest.mark.parametrize(("root", "path"), [("/api", f"/api{COMPLETE}"), ("/api", COMPLETE), ("", COMPLETE)])
def test_a_root_path_is_not_part_of_a_route(root: str, path: str):
    bad = {"vllm_xargs": {"slo_ttft_ms": 0}}
    assert asked(bad, path=path, root_path=root)[0].status == 400
    assert asked(bad, path=path.replace("completions", "models"), root_path=root)[0].status == 200


@pytest.mark.parametrize(("root", "path"), [("/api", "/apihealth"), ("/v1/models", "/v1/models/health/"),
                                            ("/", "/health/v1/models"), ("", "//health"), ("", "")])  # fmt: skip
def test_what_only_looks_open_is_not(root: str, path: str):
    assert asked(path=path, root_path=root, options=OPTIONS, method="GET")[0].status == 401
