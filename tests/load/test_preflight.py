from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from fake_server import CLOSE, Answer, FakeServer, Seen, Step, error, head, stream
from sloguard.errors import SpecError
from sloguard.load.drive import Offered, offer
from sloguard.load.target import Api, Target
from sloguard.request import End, Request, Stage

ONE = [Request("r0", 0.0, (Stage(8, 5),))]


def only_if(accepts: Callable[[dict], bool], usage: str = "final") -> Answer:
    """A strict server: HTTP 400 for a body with fields that it does not know."""

    def answer(seen: Seen) -> Iterator[Step]:
        yield from stream(usage=usage)(seen) if accepts(seen.body) else error(400, "unknown field")(seen)

    return answer


def run(answer: Answer, api: Api = "completions") -> tuple[Offered, FakeServer]:
    with FakeServer(answer, preflight=answer) as server:
        return offer(Target(server.url, "m", api), ONE, seed=0), server


def test_a_server_that_takes_everything_is_asked_once():
    offered, server = run(stream())
    assert len(server.seen) == 2
    assert offered.notes == ()
    body = server.load[0].body
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "return_token_ids" not in body


def test_lengths_that_can_not_be_forced_are_noted_with_the_reason():
    offered, server = run(only_if(lambda body: "ignore_eos" not in body, usage="running"))
    assert "ignore_eos" not in server.load[0].body
    assert "min_tokens" not in server.load[0].body
    assert "output lengths not forced: the server refused to (HTTP 400: unknown field)" in "|".join(offered.notes)
    assert offered.timelines[0].end is End.COMPLETED


def test_where_running_usage_is_ignored_token_ids_are_asked_for():
    def answer(seen: Seen) -> Iterator[Step]:
        yield from stream(usage="ids" if seen.body.get("return_token_ids") else "final")(seen)

    offered, server = run(answer)
    assert server.load[0].body["return_token_ids"] is True
    assert offered.notes == ()


def test_a_strict_server_gets_only_what_it_knows():
    known = {"prompt", "model", "max_tokens", "stream"}
    offered, server = run(only_if(lambda body: set(body) <= known, usage="none"))
    assert set(server.load[0].body) == known
    assert offered.timelines[0].output_tokens == 5
    assert any("one token for every chunk with text" in note for note in offered.notes)


def test_a_server_that_wants_max_completion_tokens_gets_it():
    offered, server = run(only_if(lambda body: "max_completion_tokens" in body), "chat")
    assert server.load[0].body["max_completion_tokens"] == 5
    assert offered.timelines[0].end is End.COMPLETED


def nested_error(_seen: Seen) -> Iterator[Step]:
    yield head(503, "Content-Length: 60000\r\n", chunked=False) + b"[" * 60000


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (nested_error, ["HTTP 503: [[["]),
        (error(401, "bad key"), ["--api-key-env", "bad key"]),
        (error(404, "model m does not exist"), ["model", "does not exist"]),
        (error(400, "no such thing"), ["rejects a plain request", "no such thing"]),
        (error(503, "loading"), ["HTTP 503", "loading"]),
        (error(301), ["redirects"]),
        (stream(sizes=lambda asked: []), ["without tokens"]),
        (lambda seen: iter([CLOSE]), ["closed the connection"]),
    ],
)
def test_a_server_that_can_not_be_measured_is_one_clear_line(answer, words):
    with pytest.raises(SpecError) as raised:
        run(answer)
    assert all(word in str(raised.value) for word in words)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(SpecError, match=url):
        offer(Target(url, "m"), ONE, seed=0)


def test_a_host_that_is_not_known_is_named():
    with pytest.raises(SpecError, match="host is not known"):
        offer(Target("http://no-such-host.invalid:1", "m"), ONE, seed=0)
