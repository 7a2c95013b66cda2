"""One endpoint over many replicas: what a client sees of it, whatever becomes of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleets import NAME, TOKEN, Fleet, fleet, until
from sloguard.sched.asked import DECLINED


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory):
    with fleet(tmp_path_factory.mktemp("two")) as made:
        yield made


def events(text: str) -> list[Any]:
    *told, end = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert end == "[DONE]"
    return [json.loads(part) for part in told]


def text_of(text: str) -> str:
    choices = [choice for told in events(text) for choice in told["choices"]]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)


def test_answers_come_as_from_one_server(two: Fleet):
    ask = {"model": NAME, "prompt": "Once", "max_tokens": 5}
    whole = two.post("/v1/completions", **ask)
    assert whole["usage"] == {"prompt_tokens": 1, "total_tokens": 6, "completion_tokens": 5}
    status, text, headers = two.ask("/v1/completions", {**ask, "stream": True})
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert text_of(text) == whole["choices"][0]["text"]
    assert "token_ids" not in text
    assert not any(name.startswith("x-sloguard") for name in headers)
    chat = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True}
    text = two.ask("/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}})[1]
    assert events(text)[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events(text)[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/ready"])
def test_whoever_serves_says_who_and_when_once(two: Fleet, path: str):
    with closing(two.connect()) as connection:
        response = two.begin(connection, path, {"prompt": "a"} if path == "/v1/completions" else None)
        assert [len(response.headers.get_all(name, [])) for name in ("date", "server")] == [1, 1]


def test_what_a_client_asks_for_it_gets(two: Fleet):
    """Token ids, which the gateway asks for itself."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": 3, "stream": True, "return_token_ids": True}
    told = events(two.ask("/v1/completions", body)[1])
    assert sum(len(choice["token_ids"]) for one in told for choice in one["choices"]) == 3


def test_other_paths_go_to_a_replica(two: Fleet):
    assert json.loads(two.ask("/v1/models")[1])["data"][0]["id"] == NAME
    assert json.loads(two.ask("/tokenize", {"prompt": "abcdefgh"})[1])["count"] == 2
    assert two.ask("/no/such/path")[0] == 404


@pytest.mark.parametrize(
    ("given", "headers", "says"),
    [
        ({"slo_ttft_ms": "soon"}, {}, "slo_ttft_ms"),
        ({}, {"x-slo-class": "none-such"}, "slo_class"),
        ({"slo_hops_left": 3}, {}, "slo_hops_left is for routers"),
        ({}, {"x-slo-ticket": "mine"}, "no such header"),
    ],
)
def test_bad_promises_are_refused_at_the_gateway(two: Fleet, given: dict[str, Any], headers: dict[str, str], says: str):
    status, text, _ = two.ask("/v1/completions", {"model": NAME, "prompt": "a", "vllm_xargs": given}, headers)
    assert status == 400
    assert says in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("path", ["/invocations", "/v1/responses"])
def test_what_the_gateway_does_not_read_is_the_engine_s_business(two: Fleet, path: str):
    asked = {"vllm_xargs": {"slo_class": "none-such"}} if path == "/invocations" else {}
    assert two.ask(path, {"prompt": "a", **asked})[0] == 404  # the emulator has neither


@pytest.mark.parametrize("target", ["%2F@elsewhere/x", "/v1/%2e%2e/x", "/sloguard%2Fstatus"])
def test_no_path_leads_past_a_replica_s_door(two: Fleet, target: str):
    with closing(two.connect()) as connection:
        connection.putrequest("GET", target)
        connection.endheaders()
        assert connection.getresponse().status == 404


def test_figures_of_one_name_are_told_together(two: Fleet):
    two.ask("/v1/completions", {"prompt": "a", "vllm_xargs": {"slo_ttft_ms": "soon"}})
    lines = two.ask("/metrics")[1].splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_an_engine_s_own_refusal_is_passed_on(two: Fleet):
    status, text, _ = two.ask("/v1/completions", {"model": "another", "prompt": "a"})
    assert (status, json.loads(text)["error"]["type"]) == (404, "NotFoundError")
    assert two.ask("/v1/completions", {"model": NAME, "prompt": ""})[0] == 400


def test_load_is_spread_and_every_replica_is_measured(two: Fleet):
    before = two.metrics()
    with ThreadPoolExecutor(16) as pool:
        for answer in pool.map(lambda _: two.post("/v1/completions", prompt="abc", max_tokens=40), range(48)):
            assert answer["usage"]["completion_tokens"] == 40
    after = two.metrics()
    name = 'sloguard_requests_total{{outcome="best-effort",replica="{}",slo_class="best-effort"}}'
    served = [after[name.format(replica)] - before.get(name.format(replica), 0.0) for replica in ("r0", "r1")]
    assert sum(served) == 48
    assert min(served) >= 12
    assert after["sloguard_routing_seconds_count"] >= 48


def test_a_conversation_stays_where_its_memory_is(two: Fleet):
    key = 'sloguard_requests_total{{outcome="best-effort",replica="{}",slo_class="batch"}}'
    for conversation in range(3):
        before = two.metrics()
        for left in (2, 1, 0):
            xargs = {"slo_class": "batch", "slo_conversation": f"c{conversation}", "slo_stages_left": left}
            two.post("/v1/completions", prompt="a", max_tokens=2, vllm_xargs=xargs)
        after = two.metrics()
        assert sorted(after.get(key.format(r), 0.0) - before.get(key.format(r), 0.0) for r in ("r0", "r1")) == [0, 3]


def test_a_replica_s_refusal_sends_a_request_on_and_the_last_one_serves_it(tmp_path: Path):
    """More promises than two replicas can keep: some hop, and nobody hears of it."""
    with fleet(tmp_path, policy="slos-serve") as made, ThreadPoolExecutor(40) as pool:
        xargs = {"slo_ttft_ms": 30, "slo_tpot_ms": 20}
        body = {"prompt": "word " * 4000, "max_tokens": 3, "vllm_xargs": xargs}

        def ask(number: int) -> str:
            return made.ask("/v1/completions", {**body, "stream": number % 2 == 0})[1]

        answers = list(pool.map(ask, range(40)))
        assert all('"finish_reason":"length"' in answer for answer in answers)
        assert not any(DECLINED in answer for answer in answers)
        assert made.count("sloguard_hops_total") > 0
        assert made.count("sloguard_hops_total") == made.count("sloguard_declined_total")


def test_no_hops_where_there_is_nobody_else(tmp_path: Path):
    with fleet(tmp_path, replicas=1, policy="slos-serve") as made, ThreadPoolExecutor(20) as pool:
        xargs = {"slo_ttft_ms": 30}
        body = {"prompt": "word " * 4000, "max_tokens": 3, "vllm_xargs": xargs}
        assert all(status == 200 for status, *_ in pool.map(lambda _: made.ask("/v1/completions", body), range(20)))
        assert made.count("sloguard_hops_total") == 0


def test_without_replicas_clients_are_told_when_to_come_again(tmp_path: Path):
    with fleet(tmp_path, replicas=0) as made:
        status, text, headers = made.ask("/v1/completions", {"prompt": "a"})
        assert (status, json.loads(text)["error"]["code"]) == (503, 503)
        assert int(headers["retry-after"]) > 0
        assert made.ask("/v1/models")[0] == 503
        assert made.ask("/ready")[0] == 503


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_goes_on_where_its_replica_is_gone(tmp_path: Path, path: str):
    with fleet(tmp_path) as made:
        ask: dict[str, Any] = {"max_tokens": 2500, "stream": True, "stream_options": {"include_usage": True}}
        ask |= {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
        alone = made.ask(path, ask)[1]
        with closing(made.connect()) as connection:
            response = made.begin(connection, path, ask)
            head = response.read(2000).decode()
            made.replicas[serving(made)].cut()
            text = head + response.read().decode()
        assert text_of(text) == text_of(alone)
        assert events(text)[-1]["usage"] == events(alone)[-1]["usage"]
        assert len({told["id"] for told in events(text)}) == 1
        assert made.metrics()['sloguard_lost_replicas_total{when="answering"}'] == 1
        assert made.count("sloguard_replica_up") == 1


def test_a_stream_that_can_not_go_on_says_so(tmp_path: Path):
    with fleet(tmp_path) as made, closing(made.connect()) as connection:
        ask = {"prompt": "Once", "max_tokens": 4000, "stream": True, "frequency_penalty": 0.5}
        response = made.begin(connection, "/v1/completions", ask)
        head = response.read(2000).decode()
        made.replicas[serving(made)].cut()
        last = events(head + response.read().decode())[-1]
        assert last["error"]["code"] == 502
        why = "the replica ended under the answer, and an answer of this kind can't be continued elsewhere"
        assert last["error"]["message"] == why
        assert made.count("sloguard_given_up_total") == 1


def test_a_whole_answer_is_made_anew_where_its_replica_is_gone(tmp_path: Path):
    with fleet(tmp_path) as made, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(made.post, "/v1/completions", prompt="Once", max_tokens=800)
        until(lambda: made.count("sloguard_jobs") > 0)
        made.replicas[serving(made)].cut()
        assert coming.result()["usage"]["completion_tokens"] == 800


def test_a_client_that_hangs_up_leaves_nothing_behind(tmp_path: Path):
    with fleet(tmp_path) as made:
        for _ in range(5):
            with closing(made.connect()) as connection:
                ask = {"prompt": "Once", "max_tokens": 5000, "stream": True}
                made.begin(connection, "/v1/completions", ask).read(500)
        until(lambda: made.count("sloguard_jobs") == 0)
        status = json.loads(made.ask("/sloguard/status", None, {"Authorization": f"Bearer {TOKEN}"})[1])
        assert [member["sent"] for member in status["members"]] == [0, 0]
        assert status["in_flight"] == 0


def serving(made: Fleet) -> int:
    """The replica that the one request under way is at."""
    token = {"Authorization": f"Bearer {TOKEN}"}
    members = json.loads(made.ask("/sloguard/status", None, token)[1])["members"]
    return next(at for at, member in enumerate(members) if member["sent"])
