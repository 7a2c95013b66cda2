"""Whoever goes on with an answer, its client can't tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.fleet.relay import CHAT, COMPLETIONS, Relay, is_declined
from sloguard.sched.asked import DECLINED

LONGEST, STOPS = 200, 13
PIECES = ["a", "b ", "ü", "€", "\n\n", "data: ", '"', "", "word"]  # "" is part of a character that is not whole yet


def text_of(ids: list[int]) -> str:
    """Of tokens whose text depends on their place: 7 is half a character, which the next token makes whole."""
    return "".join(
        "" if token == 7 else PIECES[token] + ("½" if before == 7 else "")
        for before, token in zip([0, *ids], ids, strict=False)
    )


def token_at(place: int, seed: int) -> int:
    return (place * place + 3 * place + seed) % len(PIECES)


def engine(path: str, body: dict[str, Any], prompt: list[int], seed: int, end: str = "length") -> Iterator[bytes]:
    """A greedy one: its next token depends on how many there are. One or two tokens an event. With "stop" the text ends
    by itself after STOPS tokens.
    """
    given_ids = body["prompt"] if isinstance(body.get("prompt"), list) else prompt
    chat = path == CHAT
    most = body.get("max_completion_tokens") or body.get("max_tokens") or (LONGEST - len(given_ids) if chat else 16)
    head = {
        "id": f"id-{seed}-{len(given_ids)}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "m",
    }

    def event(choice: dict[str, Any], **more: Any) -> bytes:
        return b"data: " + json.dumps({**head, "choices": [{"index": 0, **choice}], **more}).encode() + b"\n\n"

    with_ids = body.get("return_token_ids")
    if chat:
        told = {"prompt_token_ids": given_ids} if with_ids else {}
        yield event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None}, **told)
    before_ids = given_ids[len(prompt) :]
    stops = end == "stop" and len(before_ids) + most >= STOPS
    most = STOPS - len(before_ids) if stops else most
    done: list[int] = []
    first = True
    while len(done) < most:
        size = min(1 + (len(given_ids) + len(done)) % 2, most - len(done))
        before = text_of([*given_ids[len(prompt) :], *done])
        ids = [token_at(len(given_ids) + len(done) + at - len(prompt), seed) for at in range(size)]
        done += ids
        text = text_of([*given_ids[len(prompt) :], *done])[len(before) :]
        choice: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
        choice["finish_reason"] = ("stop" if stops else "length") if len(done) == most else None
        if with_ids:
            choice["token_ids"] = ids
            if first and not chat:
                choice["prompt_token_ids"] = given_ids
        first = False
        yield event(choice)
    used = {"prompt_tokens": len(given_ids), "completion_tokens": len(done), "total_tokens": len(given_ids) + len(done)}
    yield b"data: " + json.dumps({**head, "choices": [], "usage": used}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def events(stream: bytes) -> list[dict[str, Any]]:
    *told, end = [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part]
    assert end == b"[DONE]"
    return [json.loads(part) for part in told]


def heard(stream: bytes) -> tuple[str, list[int], list[str]]:
    """Text, token ids where there are any, and why it ended."""
    text, ids, ends = "", [], []
    for told in events(stream):
        for choice in told["choices"]:
            text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            ids += choice.get("token_ids", [])
            ends += [choice["finish_reason"]] if choice["finish_reason"] else []
    return text, ids, ends


def relayed(relay: Relay, prompt: list[int], seed: int, cuts: list[int], slices: list[int], end: str) -> bytes:
    """What a client gets where replicas fail after so many bytes, in turn; the last one does not."""
    turns = cycle(slices)
    for cut in [*cuts, None]:
        assert relay.can_go_on
        if relay.complete:
            relay.finish()
            break
        path, body = relay.request()
        stream = b"".join(engine(path, body, prompt, seed, end))
        stream = stream if cut is None else stream[: cut % len(stream)]
        while stream and not relay.over:
            size = next(turns)
            relay.feed(stream[:size])
            stream = stream[size:]
        if relay.over:
            break
    assert relay.over
    return bytes(relay.out)


@given(
    path=st.sampled_from([COMPLETIONS, CHAT]),
    seed=st.integers(0, 50),
    most=st.one_of(st.none(), st.integers(1, 40)),
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 20_000), max_size=4),
    slices=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    wants_ids=st.booleans(),
    end=st.sampled_from(["length", "stop"]),
)
def test_an_answer_is_the_same_however_often_it_breaks_off(
    path: str,
    seed: int,
    most: int | None,
    prompt: list[int],
    cuts: list[int],
    slices: list[int],
    wants_ids: bool,
    end: str,
):
    body: dict[str, Any] = {"stream": True} | ({"max_tokens": most} if most else {})
    body |= {"messages": []} if path == CHAT else {"prompt": "p"}
    body |= {"return_token_ids": True} if wants_ids else {}
    body["stream_options"] = {"include_usage": True}
    alone = b"".join(engine(path, body, prompt, seed, end))
    got = relayed(Relay(path, body, LONGEST), prompt, seed, cuts, slices, end)
    text, ids, ends = heard(alone)
    assert heard(got) == (text, ids if wants_ids else [], ends)
    told, alone_told = events(got), events(alone)
    assert len({(one["id"], one["object"], one["created"], one["model"]) for one in told}) == 1
    assert told[-1]["usage"] == alone_told[-1]["usage"]
    roles = [c["delta"]["role"] for one in told for c in one["choices"] if "role" in c.get("delta", {})]
    assert len(roles) == (path == CHAT)
    if not wants_ids:
        assert b"token_ids" not in got


VERDICT = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "abort", "stop_reason": DECLINED}]}
ROLE = {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


@pytest.mark.parametrize("said", [[ROLE, VERDICT], [VERDICT], [ROLE], []])
def test_a_verdict_is_for_the_gateway_alone(said: list[Any]):
    """vLLM writes no event for one: such a stream just ends."""
    relay = Relay(CHAT, {"stream": True, "messages": []}, LONGEST)
    relay.feed(b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in said) + b"data: [DONE]\n\n")
    assert relay.declined
    assert not relay.begun
    assert not relay.out
    relay.request()
    relay.feed(b"".join(engine(CHAT, {"max_tokens": 1}, [1], 0)))
    assert relay.over
    assert relay.out.count(b'"role"') == 1


def test_a_whole_answer_may_be_a_verdict_too():
    assert is_declined({"choices": [{"stop_reason": DECLINED}]})
    assert not any(map(is_declined, (None, [], {}, {"choices": []}, {"choices": [{"stop_reason": 7}]})))


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"echo": True},
        {"logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function"}]},
        {"frequency_penalty": 0.5},
        {"stop": ["end"]},
        {"logprobs": 0},
        {"max_tokens": "9"},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"prompt_embeds": "AAAA"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
    ],
)
def test_what_no_prompt_can_hold_begins_again_or_not_at_all(asked: dict[str, Any]):
    body = {"prompt": "p", "stream": True, **asked}
    relay = Relay(COMPLETIONS, body, LONGEST)
    assert relay.can_go_on
    assert relay.request() == (COMPLETIONS, body)
    first, *_ = engine(COMPLETIONS, {"max_tokens": 9}, [1], 0)
    relay.feed(first)
    assert relay.out == first
    assert not relay.can_go_on


@pytest.mark.parametrize("asked", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_with_several_choices_the_end_of_one_is_not_the_end(asked: dict[str, Any]):
    relay = Relay(COMPLETIONS, {"stream": True, "prompt": "p", **asked}, LONGEST)
    for index in (1, 0):
        assert not relay.complete
        choice = {"index": index, "text": "a", "finish_reason": "stop"}
        relay.feed(b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n")
    assert relay.complete


def test_what_was_done_to_a_prompt_is_not_done_again():
    relay = Relay(COMPLETIONS, {"stream": True, "prompt": "p", "max_tokens": 9, "truncate_prompt_tokens": 1}, LONGEST)
    relay.feed(next(engine(*relay.request(), [1], 0)))
    _, body = relay.request()
    assert body["prompt"] == [1, *relay.ids]
    assert "truncate_prompt_tokens" not in body


def test_a_whole_answer_brings_no_ids_that_nobody_asked_for():
    body = {"prompt": "p"}
    assert Relay(COMPLETIONS, body, LONGEST).request() == (COMPLETIONS, body)


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"reasoning": "hm"}, "token_ids": [1]},
        {"delta": {"tool_calls": [{"index": 0}]}, "token_ids": [1]},
        {"delta": {"content": "text whose tokens are not told"}},
    ],
)
def test_an_answer_with_more_than_text_in_it_does_not_go_on(choice: dict[str, Any]):
    relay = Relay(CHAT, {"stream": True, "messages": []}, LONGEST)
    relay.feed(b"data: " + json.dumps({"id": "x", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n")
    assert relay.out
    assert not relay.can_go_on


def test_what_a_replica_says_of_its_own_end_is_kept_back_and_what_it_said_before_is_not():
    relay = Relay(COMPLETIONS, {"stream": True, "prompt": "p"}, LONGEST)
    first, *_ = engine(COMPLETIONS, {"max_tokens": 9, "return_token_ids": True}, [1], 0)
    relay.feed(first + b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\ndata: [DONE]\n\n')
    assert relay.error
    assert b"EngineCore" not in relay.out
    assert relay.out
    assert relay.can_go_on
