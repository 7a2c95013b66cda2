from __future__ import annotations

import json

import pytest

from sloguard.errors import SpecError
from sloguard.load.prompts import END_ID, FIRST_ID, render_stages
from sloguard.load.target import Abilities, Target
from sloguard.request import Prefix, Request, Stage

COMPLETIONS = Target("http://127.0.0.1:1/v1", "m")
CHAT = Target("https://[::1]/prefix/", "m", "chat", "secret")


def request(name: str, prompt: int = 20, prefix: Prefix | None = None, stages: int = 1) -> Request:
    return Request(name, 0.0, tuple(Stage(prompt, 5) for _ in range(stages)), prefix=prefix)


def bodies(target: Target, req: Request, seed: int = 1, abilities: Abilities | None = None) -> list[dict]:
    payloads = render_stages(target, abilities or Abilities(), req, seed)
    return [json.loads(payload.partition(b"\r\n\r\n")[2]) for payload in payloads]


@pytest.mark.parametrize("target", [COMPLETIONS, CHAT])
def test_bytes_depend_on_seed_and_id_alone(target):
    first = render_stages(target, Abilities(), request("a"), 1)
    assert first == render_stages(target, Abilities(), request("a"), 1)
    assert first != render_stages(target, Abilities(), request("b"), 1)
    assert first != render_stages(target, Abilities(), request("a"), 2)


def test_a_completion_asks_for_exactly_its_tokens():
    (body,) = bodies(COMPLETIONS, request("a", 1000))
    assert len(body["prompt"]) == 1000
    assert all(FIRST_ID <= token < END_ID for token in body["prompt"])
    assert len(set(body["prompt"])) > 400
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["stream"]) == (5, 5, True, True)


def test_fields_the_server_does_not_take_are_left_out():
    plain = Abilities(
        forced_lengths=False, running_usage=False, final_usage=False, max_tokens_field="max_completion_tokens"
    )
    (body,) = bodies(COMPLETIONS, request("a"), abilities=plain)
    assert set(body) == {"prompt", "model", "max_completion_tokens", "stream"}


@pytest.mark.parametrize("target", [COMPLETIONS, CHAT])
def test_equal_blocks_are_equal_text_and_the_rest_is_not(target):
    def text(name: str, blocks: tuple[int, ...]) -> list:
        body = bodies(target, request(name, 20, Prefix(blocks, 8)))[0]
        return body["prompt"] if "prompt" in body else body["messages"][0]["content"].split()

    a, b, c = text("a", (1, 2)), text("b", (1, 2)), text("c", (1, 3))
    assert a[:16] == b[:16]
    assert a[16:] != b[16:]
    assert a[:8] == c[:8]
    assert a[8:16] != c[8:16]
    assert len(a) == len(b) == len(c) == 20


def test_a_prefix_longer_than_the_prompt_is_cut_to_it():
    (body,) = bodies(COMPLETIONS, request("a", 20, Prefix((1, 2, 3), 8)))
    (longer,) = bodies(COMPLETIONS, request("b", 24, Prefix((1, 2, 3), 8)))
    assert body["prompt"] == longer["prompt"][:20]


def test_each_stage_repeats_what_came_before_it():
    first, second, third = (b["prompt"] for b in bodies(COMPLETIONS, request("a", stages=3)))
    assert (len(first), len(second), len(third)) == (20, 45, 70)
    assert second[:20] == first
    assert third[:45] == second
    roles = [[m["role"] for m in b["messages"]] for b in bodies(CHAT, request("a", stages=2))]
    assert roles == [["user"], ["user", "assistant", "user"]]


def test_the_head_names_host_and_key_and_the_target_hides_the_key():
    head = render_stages(CHAT, Abilities(), request("a"), 1)[0].partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("POST /prefix/v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\n")
    assert "Authorization: Bearer secret" in head
    assert "secret" not in repr(CHAT)
    assert (COMPLETIONS.path, COMPLETIONS.headers()["Host"]) == ("/v1/completions", "127.0.0.1:1")


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://h:99999", "http://h/?q=1", "http://u@h"]
)
def test_a_url_that_names_no_server_is_refused(url):
    with pytest.raises(SpecError, match="--base-url"):
        Target(url, "m")


def test_a_key_that_would_split_the_head_is_refused_without_showing_it():
    with pytest.raises(SpecError) as error:
        Target("http://h", "m", api_key="abc\r\nX: y")
    assert "abc" not in str(error.value)
