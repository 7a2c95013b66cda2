from __future__ import annotations

import contextlib
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.load.tokens import Counting, StreamError, TokenStream

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def event(data: dict | str, end: str = "\n", space: str = " ", separators: tuple[str, str] = (",", ":")) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=separators)
    return f"data:{space}{text}{end}{end}".encode()


def choice(text: str = "", **fields) -> dict:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None, **fields}]}


def usage(tokens: int, prompt: int = 7) -> dict:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": tokens + prompt}}


FINISH = choice(finish_reason="length")


def feed(events: list[bytes]) -> TokenStream:
    """Event k arrives at second k."""
    stream = TokenStream()
    for second, data in enumerate(events):
        stream.feed(data, float(second))
    stream.close(float(len(events)))
    return stream


@given(SIZES, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", " "]), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_running_usage_and_token_ids_count_every_token_of_a_chunk(sizes, end, space, separators):
    running = np.cumsum(sizes).tolist()
    by_usage = [event(choice("x") | usage(n), end, space, separators) for n in running]
    by_ids = [event(choice("x", token_ids=[1] * n), end, space, separators) for n in sizes]
    for events in (by_usage, by_ids):
        stream = feed(
            [*events, event(FINISH, end, space, separators), event({"choices": []} | usage(running[-1]), end)]
        )
        assert stream.counting is Counting.EXACT
        assert stream.token_s().tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()
        assert stream.chunk_tokens().tolist() == sizes
        assert stream.output_tokens == running[-1]
        assert stream.prompt_tokens == 7


@given(SIZES, st.lists(st.integers(0, 2000), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_cutting_the_bytes_anywhere_changes_no_count(sizes, cuts, end):
    running = np.cumsum(sizes).tolist()
    whole = b": ping" + 2 * end.encode()
    whole += b"".join(event(choice("x") | usage(n), end) for n in running)
    whole += event(FINISH, end) + event("[DONE]", end)
    marks = sorted({0, len(whole), *(min(c, len(whole)) for c in cuts)})
    stream = TokenStream()
    for a, b in pairwise(marks):
        stream.feed(whole[a:b], float(a))
    stream.close(0.0)
    assert stream.output_tokens == running[-1]
    assert stream.done
    assert np.all(np.diff(stream.token_s()) >= 0)


@given(st.integers(1, 12), st.integers(1, 40))
def test_final_usage_is_spread_over_the_chunks_and_keeps_first_and_last_instant(chunks, tokens):
    stream = feed([*([event(choice("x"))] * chunks), event(FINISH), event({"choices": []} | usage(tokens))])
    token_s = stream.token_s()
    assert stream.counting is Counting.SPREAD
    assert len(token_s) == stream.output_tokens == tokens
    assert token_s[0] == 0
    if tokens > 1:
        assert token_s[-1] == chunks - 1
    assert stream.chunk_tokens().sum() == tokens
    if tokens >= chunks:
        assert stream.chunk_tokens().min() >= 1
        assert set(token_s) == set(range(chunks))


def test_without_usage_every_chunk_with_text_is_one_token_and_no_other():
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    chat = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "x"}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    stream = feed(
        [event(role), event(thought), event(chat), b": keepalive\n\n", event(chat), event(end), event("[DONE]")]
    )
    assert stream.counting is Counting.CHUNKS
    assert stream.token_s().tolist() == [1, 2, 4]
    assert stream.finish_reason == "stop"


def test_a_token_without_text_counts_where_the_engine_counts_it():
    """An engine holds text back until its bytes are whole, but says that the token is there."""
    stream = feed([event(choice("") | usage(1)), event(choice("é") | usage(2)), event(FINISH)])
    assert stream.token_s().tolist() == [0, 1]


def test_a_role_chunk_with_running_usage_is_no_token():
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
    stream = feed([event(role | usage(0)), event(choice("x") | usage(1)), event(FINISH)])
    assert stream.token_s().tolist() == [1]


def test_text_that_looks_like_usage_is_text():
    text = '"completion_tokens":99,"finish_reason":null'
    stream = feed([event(choice(text) | usage(1)), event(choice(text) | usage(2)), event(FINISH)])
    assert stream.output_tokens == 2
    assert feed([event(choice(text)), event(FINISH)]).output_tokens == 1


def test_a_token_that_only_the_final_usage_shows_is_counted_with_the_last_chunk():
    stream = feed([event(choice("x") | usage(1)), event(FINISH), event({"choices": []} | usage(2))])
    assert stream.token_s().tolist() == [0, 0]


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "CUDA out of memory", "code": 500}},
        {"error": "CUDA out of memory"},
        {"object": "error", "message": "CUDA out of memory"},
    ],
)
def test_an_error_event_is_raised_with_its_message(data):
    with pytest.raises(StreamError, match="CUDA out of memory"):
        TokenStream().feed(event(data), 0.0)


@pytest.mark.parametrize("body", [b"data: {oops\n\n", b"data: 3\n\n"])
def test_what_is_no_completion_event_is_an_error(body):
    with pytest.raises(StreamError):
        TokenStream().feed(body, 0.0)


@pytest.mark.parametrize(
    "body", [b'{"choices": [{"text": "whole answer"}]}', b"<html>gateway</html>", b"", event(choice("x") | usage(1))]
)
def test_a_body_that_ends_before_the_answer_does_is_an_error(body):
    stream = TokenStream()
    stream.feed(body, 0.0)
    with pytest.raises(StreamError):
        stream.close(0.0)


def test_a_last_event_without_its_blank_line_is_read():
    stream = TokenStream()
    stream.feed(event(choice("x") | usage(1)) + b"data: [DONE]\n", 0.0)
    stream.close(0.0)
    assert stream.done


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def shaped(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """Objects that have some of the fields of the API's, each of them right or anything."""
    return st.fixed_dictionaries({}, optional={name: kind | JSON for name, kind in fields.items()}) | JSON


TOKEN_COUNTS = st.integers(-5, 10) | st.integers()
EVENTS = shaped(
    choices=st.lists(
        shaped(
            text=st.just("x"),
            delta=shaped(content=st.just("x"), token_ids=st.lists(st.integers(), max_size=3)),
            token_ids=st.lists(st.integers(), max_size=3),
            finish_reason=st.just("stop"),
        ),
        max_size=2,
    ),
    usage=shaped(prompt_tokens=TOKEN_COUNTS, completion_tokens=TOKEN_COUNTS),
    error=st.none(),
)


@settings(max_examples=300)
@given(st.lists(EVENTS, min_size=1, max_size=5), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_whatever_a_server_sends_is_tokens_or_a_stream_error(events, separators):
    stream = TokenStream()
    with contextlib.suppress(StreamError):
        for at_s, data in enumerate(events):
            stream.feed(event(data, separators=separators), float(at_s))
        stream.close(float(len(events)))
    assert stream.output_tokens == len(stream.token_s()) == stream.chunk_tokens().sum() or not stream.at_s
    assert stream.prompt_tokens is None or stream.prompt_tokens >= 0


@given(st.binary(max_size=200), st.sampled_from([b"", b"data: ", b'data: {"choices":[', b'data: {"usage":']))
def test_whatever_bytes_a_server_sends_are_tokens_or_a_stream_error(body, start):
    with contextlib.suppress(StreamError):
        stream = TokenStream()
        stream.feed(start + body + b"\n\n", 0.0)
        stream.close(0.0)


@pytest.mark.parametrize(
    "data",
    [
        {"choices": [None]},
        {"choices": {}, "usage": {}},
        {"choices": {"0": {}}},
        {"choices": [], "usage": [1]},
        {"choices": [], "usage": {"completion_tokens": "x"}},
        {"choices": [], "usage": {"completion_tokens": True}},
        {"choices": [], "usage": {"completion_tokens": -1}},
        {"choices": [], "usage": {"completion_tokens": 10**12}},
        {"choices": [], "usage": {"prompt_tokens": 1.5}},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"token_ids": 3}}]},
        {"choices": [{"finish_reason": 3}]},
    ],
)
def test_an_event_of_another_shape_is_an_error_that_quotes_it(data):
    with pytest.raises(StreamError, match=r"not a completion event: \{"):
        TokenStream().feed(event(data), 0.0)


def test_a_count_beyond_reason_is_an_error_not_an_array_of_that_size():
    with pytest.raises(StreamError, match="99999999999 tokens"):
        TokenStream().feed(event(choice("x") | usage(99_999_999_999)), 0.0)


@pytest.mark.parametrize("start", [b"data: ", b'data: {"error":'])
@pytest.mark.parametrize("depth", [500, 900, 940, 980, 100_000])
def test_nesting_beyond_reason_is_an_error(start, depth):
    with pytest.raises(StreamError):
        TokenStream().feed(start + b"[" * depth + b"]" * depth + b"}" * (start[-1:] == b":") + b"\n\n", 0.0)


def test_a_null_is_a_field_that_is_absent():
    stream = feed([event(choice("x", delta=None, token_ids=None) | {"usage": None}), event(FINISH)])
    assert stream.output_tokens == 1
