"""The client against a real server on loopback. Asserted is what the server knows, and the order of instants."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fake_server import (
    CLOSE,
    END_CHUNKS,
    Answer,
    FakeServer,
    Seen,
    Step,
    chunk,
    error,
    event,
    head,
    stream,
    token_event,
    usage_event,
)
from sloguard.load.drive import Offered, Progress, offer
from sloguard.load.prompts import render_stages
from sloguard.load.target import Abilities, Api, Target
from sloguard.metrics import summarise
from sloguard.request import End, Request, Stage, Timeline


def requests(n: int, gap_s: float = 0.002, prompt: int = 12, output: int = 6, stages: int = 1) -> list[Request]:
    return [Request(f"r{i}", i * gap_s, tuple(Stage(prompt, output) for _ in range(stages))) for i in range(n)]


def run(server: FakeServer, offered: list[Request], api: Api = "completions", **options) -> Offered:
    return offer(Target(server.url, "m", api, "k"), offered, seed=7, **options)


def run_one(answer: Answer, **options) -> Timeline:
    with FakeServer(answer) as server:
        return run(server, requests(1), **options).timelines[0]


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("usage", ["running", "ids", "final"])
def test_tokens_are_those_the_server_sent(api, usage):
    answer = stream(sizes=lambda asked: [1, asked - 2, 1], usage=usage)
    with FakeServer(answer, preflight=stream(usage=usage)) as server:
        offered = run(server, requests(20), api)
        assert [t.end for t in offered.timelines] == [End.COMPLETED] * 20
        assert [t.output_tokens for t in offered.timelines] == [6] * 20
        expected = 12 if api == "completions" else 15  # the fake chat template adds 3
        assert {t.prompt_tokens for t in offered.timelines} == {expected}
        assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer k"}
    summary = summarise(offered.timelines)
    assert (summary.completed, summary.output_tokens, summary.prompt_tokens) == (20, 120, 20 * expected)
    estimated = usage == "final"
    assert any("spread over chunks" in note for note in offered.notes) is estimated


def test_instants_agree_with_what_the_server_saw():
    with FakeServer(stream(gap_s=0.003)) as server:
        timelines = run(server, requests(30)).timelines
        target = Target(server.url, "m", api_key="k")
    by_bytes = {seen.raw: seen for seen in server.load}
    pairs = [(t, by_bytes[render_stages(target, Abilities(), t.request, 7)[0]]) for t in timelines]
    # The server does not know when the client's clock started, but a request can't arrive before it was sent.
    latest_start_s = min(seen.arrived_s - (t.sent_s or 0.0) for t, seen in pairs)
    for t, seen in pairs:
        token_writes_s = seen.written_s[1 : 1 + t.output_tokens]
        assert np.all(t.token_s + latest_start_s >= token_writes_s)
        assert t.sent_s is not None
        assert t.due_s <= t.sent_s < t.token_s[0]
        assert np.all(np.diff(t.token_s) >= 0)


def test_a_request_is_sent_when_due_although_none_before_it_is_answered():
    """A closed loop would wait for ever: the server answers nobody until all have come."""
    server = FakeServer()

    def answer(seen: Seen) -> Iterator[Step]:
        while len(server.load) < 40:
            yield 0.001
        yield from stream()(seen)

    server.answer = answer
    with server:
        timelines = run(server, requests(40), request_timeout_s=20.0).timelines
    assert {t.end for t in timelines} == {End.COMPLETED}
    assert min(t.token_s[0] for t in timelines) >= timelines[-1].due_s


def test_latency_counts_from_due_even_if_the_client_was_late():
    stalled: list[float] = []

    def stall(progress: Progress) -> None:
        if not stalled:
            stalled.append(1.0)
            time.sleep(0.25)  # the client's own fault

    with FakeServer() as server:
        offered = run(server, requests(50), on_progress=stall)
    assert all(t.ttft_s is not None and t.ttft_s >= t.token_s[0] - t.due_s for t in offered.timelines)
    late = [t for t in offered.timelines if 0.0 < t.due_s < 0.1]
    assert late
    for t in late:
        assert t.sent_s is not None
        assert t.sent_s >= 0.25
        assert t.ttft_s is not None
        assert t.ttft_s >= 0.25 - t.due_s
    assert summarise(offered.timelines).client_limited


def stop_mid_way(last: bytes | None) -> Answer:
    def answer(seen: Seen) -> Iterator[Step]:
        yield head()
        yield chunk(token_event(seen, 2, 0, usage="running"))
        if last is not None:
            yield last
        yield CLOSE

    return answer


def close_at_once(_seen: Seen) -> Iterator[Step]:
    yield CLOSE


def never_ending(seen: Seen) -> Iterator[Step]:
    yield head()
    while True:
        yield chunk(b": keepalive\n\n")
        yield 0.01


def not_http(_seen: Seen) -> Iterator[Step]:
    yield b"220 smtp.example.org ESMTP\r\n\r\n"


def text_that_is_no_token(seen: Seen) -> Iterator[Step]:
    yield head() + chunk(token_event(seen, 1, 0, usage="final"))
    yield chunk(usage_event(seen, 0)) + chunk(event("[DONE]")) + END_CHUNKS


OOM = event({"error": {"message": "EngineCore died: CUDA out of memory"}})


@pytest.mark.parametrize(
    ("answer", "end", "message", "tokens"),
    [
        (error(429, "queue full"), End.REFUSED, "HTTP 429: queue full", 0),
        (error(503, "overloaded"), End.REFUSED, "HTTP 503: overloaded", 0),
        (error(500, "boom"), End.FAILED, "HTTP 500: boom", 0),
        (error(400, "prompt too long"), End.FAILED, "HTTP 400: prompt too long", 0),
        (stop_mid_way(chunk(OOM)), End.FAILED, "CUDA out of memory", 2),
        (stop_mid_way(None), End.FAILED, "closed the connection mid-answer", 2),
        (stop_mid_way(END_CHUNKS), End.FAILED, "ended before the answer did", 2),
        (close_at_once, End.FAILED, "closed the connection unanswered", 0),
        (not_http, End.FAILED, "not an HTTP/1.1 answer", 0),
        (stream(sizes=lambda asked: []), End.FAILED, "without tokens", 0),
        (stop_mid_way(chunk(event({"choices": [None]}))), End.FAILED, "not a completion event", 2),
        (text_that_is_no_token, End.FAILED, "without tokens", 0),
    ],
)
def test_what_goes_wrong_is_told_apart(answer, end, message, tokens):
    timeline = run_one(answer)
    assert timeline.end is end
    assert message in timeline.error
    assert timeline.output_tokens == tokens


def test_a_server_that_hangs_up_while_a_long_prompt_is_being_sent_costs_that_request_only():
    long = Request("long", 0.0, (Stage(3_000_000, 2),))
    with FakeServer() as server:
        server.longest_body_bytes = 100_000
        first, *others = run(server, [long, *requests(10)]).timelines
    assert first.end is End.FAILED
    assert {t.end for t in others} == {End.COMPLETED}


def test_a_request_without_a_complete_answer_in_time_is_given_up():
    timeline = run_one(never_ending, request_timeout_s=0.2)
    assert timeline.end is End.TIMED_OUT
    assert "0.2 s" in timeline.error


def test_at_the_deadline_the_running_time_out_and_the_unsent_are_cancelled():
    offered_requests = [*requests(3), Request("later", 30.0, (Stage(4, 4),))]
    with FakeServer(never_ending) as server:
        timelines = run(server, offered_requests, deadline_s=0.4).timelines
    assert [t.end for t in timelines] == [End.TIMED_OUT] * 3 + [End.CANCELLED]
    assert timelines[-1].sent_s is None
    assert all(t.ended_s is not None and 0.4 <= t.ended_s < 30 for t in timelines)
    assert len(server.load) == 3


def test_a_run_can_be_ended_as_soon_as_it_has_failed():
    ended: list[Timeline] = []

    def enough(timeline: Timeline) -> bool:
        ended.append(timeline)
        return len(ended) == 3

    offered_requests = [*requests(3), Request("later", 30.0, (Stage(4, 4),))]
    with FakeServer() as server:
        timelines = run(server, offered_requests, stop_when=enough, warmup=2).timelines
    assert [t.end for t in timelines] == [End.COMPLETED] * 3 + [End.CANCELLED]
    assert timelines[-1].sent_s is None
    assert {t.request.id for t in ended} == {r.id for r in offered_requests[:3]}, "warm-up is no part of it"


def test_when_the_engine_dies_nothing_waits_on():
    died = [False]

    def answer(seen: Seen) -> Iterator[Step]:
        died[0] = True
        yield from never_ending(seen)

    offered_requests = [*requests(3), Request("later", 30.0, (Stage(4, 4),))]
    with FakeServer(answer) as server:
        timelines = run(server, offered_requests, abort_when=lambda: died[0]).timelines
    assert {t.end for t in timelines} == {End.FAILED}
    assert all("the engine died" in t.error for t in timelines)


def test_a_dead_server_is_the_users_error_unless_the_caller_owns_it():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    timelines = offer(Target(url, "m"), requests(3), seed=0, abort_when=lambda: True).timelines
    assert [t.end for t in timelines] == [End.FAILED] * 3
    assert "can't be reached" in timelines[0].error


def test_a_server_that_drops_idle_connections_costs_no_request():
    def answer(seen: Seen) -> Iterator[Step]:
        yield from stream()(seen)
        yield CLOSE  # without having announced it

    with FakeServer(answer) as server:
        timelines = run(server, requests(60, gap_s=0.003)).timelines
    assert {t.end for t in timelines} == {End.COMPLETED}


def test_a_second_try_on_a_new_connection_is_not_the_clients_lag():
    """The server takes a request on an idle connection, thinks for 0.2 s, and hangs up: its time, not ours."""

    def answer(seen: Seen) -> Iterator[Step]:
        if len(server.load) == 1:
            yield 0.2
            yield CLOSE
        yield from stream()(seen)

    server = FakeServer(answer)
    with server:
        (timeline,) = run(server, requests(1)).timelines
    assert len(server.load) == 2, "it was sent again"
    assert timeline.end is End.COMPLETED
    assert timeline.sent_s is not None
    assert timeline.sent_s + 0.2 <= timeline.token_s[0]
    assert timeline.ttft_s is not None
    assert timeline.ttft_s >= 0.2


def test_chunks_of_one_read_are_told_apart():
    def answer(seen: Seen) -> Iterator[Step]:
        events = b"".join(chunk(token_event(seen, 2, so_far, usage="running")) for so_far in (0, 2, 4))
        yield head() + events + chunk(event("[DONE]")) + END_CHUNKS

    timeline = run_one(answer)
    assert timeline.output_tokens == 6
    assert timeline.chunk_tokens is not None
    assert timeline.chunk_tokens.tolist() == [2, 2, 2]
    assert timeline.itl_s.tolist() == [0.0, 0.0]


def test_a_request_that_hung_ended_when_it_was_given_up():
    hung = run_one(never_ending, request_timeout_s=0.3)
    assert hung.ended_s is not None
    assert hung.ended_s >= 0.3
    assert summarise([hung]).duration_s >= 0.3
    served = run_one(stream())
    assert served.ended_s is not None
    assert served.ended_s >= served.token_s[-1]


def test_the_same_seed_gives_the_same_bytes_on_the_wire():
    sent = []
    for seed in (7, 7, 8):
        with FakeServer() as server:
            offer(Target(server.url, "m"), requests(10), seed=seed, warmup=2)
            sent.append(sorted(seen.raw.partition(b"\r\n\r\n")[2] for seen in server.seen))
    assert sent[0] == sent[1]
    assert not set(sent[0]) & set(sent[2])


def test_warm_up_is_answered_before_the_start_and_left_out():
    with FakeServer() as server:
        timelines = run(server, requests(5), warmup=3).timelines
    assert len(timelines) == 5
    assert len(server.load) == 8
    warm, measured = server.load[:3], server.load[3:]
    assert max(seen.written_s[-1] for seen in warm) < min(seen.arrived_s for seen in measured)
    prompts = [tuple(seen.body["prompt"]) for seen in server.load]
    assert len(set(prompts)) == 8


def test_stages_follow_one_another_and_each_is_due_when_the_one_before_ended():
    with FakeServer() as server:
        timelines = run(server, requests(4, stages=3)).timelines
    for t in timelines:
        assert t.end is End.COMPLETED
        assert t.output_tokens == 18
        assert t.stage_due_s == (t.due_s, t.token_s[5], t.token_s[11])
        assert t.prompt_tokens == 12 + (12 + 6 + 12) + (2 * (12 + 6) + 12)
    assert len(server.load) == 12


def test_a_stage_shorter_than_asked_fails_its_request():
    with FakeServer(stream(stop_after=4)) as server:
        (timeline,) = run(server, requests(1, stages=2)).timelines
    assert timeline.end is End.FAILED
    assert "4 of 6 tokens" in timeline.error


def test_answers_shorter_than_asked_are_completed_and_noted():
    with FakeServer(stream(stop_after=4)) as server:
        offered = run(server, requests(3))
    assert {t.end for t in offered.timelines} == {End.COMPLETED}
    assert "3 of 3 answers were shorter than asked, although the server took ignore_eos and min_tokens" in offered.notes


def test_progress_counts_up_to_the_whole_run():
    seen: list[Progress] = []
    with FakeServer() as server:
        run(server, requests(30), on_progress=seen.append)
    assert [p.sent for p in seen] == sorted(p.sent for p in seen)
    last = seen[-1]
    assert (last.offered, last.sent, last.in_flight, last.ends) == (30, 30, 0, {End.COMPLETED: 30})
    assert all(p.sent == p.in_flight + sum(p.ends.values()) for p in seen)
    assert len(last.recent) == 30


def test_timelines_keep_the_order_of_the_requests_whatever_their_arrival():
    shuffled = requests(10)[::-1]
    with FakeServer() as server:
        timelines = run(server, shuffled).timelines
    assert [t.request for t in timelines] == shuffled
    assert offer(Target("http://127.0.0.1:1", "m"), [], seed=0).timelines == ()
