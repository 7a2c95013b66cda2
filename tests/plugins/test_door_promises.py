"""What the door makes of the promises that come with a request."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi import HANG_UP, Headers, Message, parts_of
from doors import COMPLETE, asked, refusal
from sloguard.plugins.asgi import LARGEST_BODY_BYTES
from sloguard.plugins.door import GENERATES, TAKES_PROMISES
from sloguard.sched.asked import FIELDS


@pytest.mark.parametrize("path", TAKES_PROMISES)
def test_headers_are_put_into_the_body(path: str):
    body = {"prompt": "ü", "temperature": 0.1, "vllm_xargs": {"other": [1, 2], "slo_tpot_ms": 50}}
    headers = [(b"X-SLO-TTFT-ms", b" 300 "), (b"x-slo-class", b"batch"), (b"transfer-encoding", b"chunked")]
    answer, engine = asked(body, headers, path)
    assert answer.status == 200
    xargs = {"other": [1, 2], "slo_tpot_ms": 50, "slo_ttft_ms": "300", "slo_class": "batch"}
    assert json.loads(engine.bodies[0]) == body | {"vllm_xargs": xargs}
    told = dict(engine.scopes[0]["headers"])
    assert int(told[b"content-length"]) == len(engine.bodies[0])
    assert b"transfer-encoding" not in told
    assert engine.after == [HANG_UP], "what comes after the body still reaches the app"


@pytest.mark.parametrize(
    "raw", [b'{"prompt" : "a",\n "vllm_xargs": {"slo_ttft_ms": 3e2}}', b"{}", b'{"vllm_xargs":null}']
)
def test_without_headers_a_body_is_not_touched(raw: bytes):
    answer, engine = asked(raw)
    assert (answer.status, engine.bodies) == (200, [raw])


@pytest.mark.parametrize("cut", [1, 5])
def test_a_body_may_come_in_parts(cut: int):
    raw = b'{"prompt": "abc"}'
    answer, engine = asked(parts_of(*(raw[at : at + cut] for at in range(0, len(raw), cut)), b""))
    assert (answer.status, engine.bodies) == (200, [raw])


@pytest.mark.parametrize("raw", [b"", b"[1]", b"3", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"vllm_xargs": [1]}',
                                 b'{"vllm_xargs": "slo_ttft_ms"}'], ids=lambda raw: str(raw[:9]))  # fmt: skip
def test_what_is_no_request_the_engine_answers(raw: bytes):
    answer, engine = asked(raw, [(b"x-slo-ttft-ms", b"300")])
    assert (answer.status, engine.bodies) == (200, [raw])


@pytest.mark.parametrize(
    ("xargs", "headers", "param", "says"),
    [
        ({"slo_ttft_ms": "soon"}, {}, "slo_ttft_ms", "'soon'"),
        ({"slo_ttft_ms": 0}, {}, "slo_ttft_ms", "milliseconds"),
        ({"slo_ttft_ms": 5e-324}, {}, "slo_ttft_ms", "milliseconds"),
        ({"slo_tpot_ms": 10**400}, {}, "slo_tpot_ms", "not a number"),
        ({"slo_tpot_ms": True}, {}, "slo_tpot_ms", "not a number"),
        ({"slo_class": "gold"}, {}, "slo_class", "batch, best-effort, chat"),
        ({"slo_class": None}, {}, "slo_class", "batch, best-effort, chat"),
        ({"slo_speed": 1}, {}, "slo_speed", "slo_ttft_ms"),
        ({}, {"x-slo-tpot-ms": "-1"}, "slo_tpot_ms", "'-1'"),
        ({}, {"x-slo-stages-left": "1.5"}, "slo_stages_left", "whole number"),
        ({}, {"x-slo-class": "gold"}, "slo_class", "best-effort"),
        ({}, {"x-slo-ttft": "5"}, None, "x-slo-ttft-ms"),
        ({"slo_ttft_ms": 300}, {"x-slo-ttft-ms": "400"}, "slo_ttft_ms", "the body says 300"),
        ({"slo_class": "chat"}, {"x-slo-class": "batch"}, "slo_class", "the body says 'chat'"),
    ],
)
def test_a_promise_that_cannot_be_read_is_told_what_is_wrong(
    xargs: dict[str, Any], headers: dict[str, str], param: str | None, says: str
):
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer, engine = asked({"prompt": "a", "vllm_xargs": xargs}, raw_headers)
    status, named, message = refusal(answer)
    assert (status, named, engine.scopes) == (400, param, [])
    assert says in message


@pytest.mark.parametrize(("given", "header"), [(500, b"500"), (500.0, b"500"), ("500", b"500.0"), (5e2, b"5e2")])
def test_a_header_that_repeats_the_body_is_no_contradiction(given: object, header: bytes):
    assert asked({"vllm_xargs": {"slo_ttft_ms": given}}, [(b"x-slo-ttft-ms", header)])[0].status == 200


def test_a_header_is_given_once_and_where_promises_are_taken():
    twice = [(b"x-slo-ttft-ms", b"5"), (b"X-Slo-Ttft-Ms", b"5")]
    assert refusal(asked(headers=twice)[0])[:2] == (400, "slo_ttft_ms")
    status, param, message = refusal(asked(headers=twice[:1], path="/cohere/v2/chat")[0])
    assert (status, param) == (400, "slo_ttft_ms")
    assert COMPLETE in message
    assert asked(headers=twice, path="/tokenize")[0].status == 200, "nothing is generated there"


def test_a_client_that_hangs_up_while_it_sends_reaches_nobody():
    answer, engine = asked([*parts_of(b'{"prompt": ', b"")[:1], HANG_UP])
    assert (answer.status, engine.scopes) == (400, [])


@pytest.mark.parametrize("path", GENERATES)
def test_a_body_has_an_end(path: str):
    chunk: Message = {"type": "http.request", "body": bytes(1 << 22), "more_body": True}
    answer, engine = asked([chunk] * (LARGEST_BODY_BYTES // (1 << 22) + 1), path=path)
    assert (refusal(answer)[0], engine.scopes) == (413, [])


NUMBERS = st.one_of(st.integers(), st.just(10**400), st.floats(), st.integers(1, 5000).map(str), st.text(max_size=5))
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, st.lists(st.integers(), max_size=2), st.just("chat"))
XARGS = st.dictionaries(st.sampled_from([*FIELDS, "slo_x", "other"]), VALUES, max_size=3)
OBJECTS = st.fixed_dictionaries({"prompt": st.text(max_size=9)}, optional={"vllm_xargs": XARGS | VALUES})
BODIES = st.binary(max_size=40) | (OBJECTS | VALUES).map(lambda value: json.dumps(value).encode())
NAMES = st.sampled_from([f"x-{name.replace('_', '-')}" for name in (*FIELDS, "slo_x")]) | st.just("Authorization")
RAW = st.one_of(st.integers(1, 999).map(lambda n: str(n).encode()), st.just(b"chat"), st.binary(max_size=6))
HEADERS = st.lists(st.tuples(NAMES.map(str.encode), RAW) | st.tuples(st.binary(max_size=9), RAW), max_size=3)


@given(BODIES, HEADERS, st.sampled_from([*GENERATES, "/tokenize", "/x"]), st.lists(st.integers(0, 40), max_size=3))
def test_whatever_comes_is_answered_or_passed_on_as_it_was(raw: bytes, headers: Headers, path: str, cuts: list[int]):
    ends = [0, *sorted(cuts), max(len(raw), *cuts, 0)] if cuts else [0, len(raw)]
    chunks = [raw[start:end] for start, end in pairwise(ends)]
    length = (b"content-length", str(len(raw)).encode())
    answer, engine = asked(parts_of(*chunks), [length, *headers], path)
    if not engine.scopes:
        assert refusal(answer)[0] == 400
        return
    (scope,), (body,) = engine.scopes, engine.bodies
    assert answer.body == b"answered"
    assert int(dict(scope["headers"])[b"content-length"]) == len(body) or length in headers
    if body == raw:
        assert scope["headers"] == [length, *headers]
        return
    told = {name.decode().lower()[2:].replace("-", "_"): value for name, value in headers if name[:6] == b"x-slo-"}
    sent, passed = json.loads(raw), json.loads(body)
    assert told
    assert json.dumps({**sent, "vllm_xargs": None}) == json.dumps({**passed, "vllm_xargs": None})
    texts = {name: value.decode("latin-1").strip() for name, value in told.items()}
    assert json.dumps(passed["vllm_xargs"]) == json.dumps({**(sent.get("vllm_xargs") or {}), **texts})
