"""Request bodies, made before the clock starts: the same seed gives the same bytes.

Prompts are random, so that no two share a prefix unless their `Request.prefix` says so. Completions get token ids;
chats get common words, about one token each, and their true length is what the server counts.

A request of several stages is a conversation: stage k's prompt is everything before it (with random tokens where the
model's answers stood, so that the bytes don't depend on the answers) and its own new tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sloguard.load.http1 import render_request
from sloguard.load.target import Abilities, Target
from sloguard.request import Prefix, Request
from sloguard.rng import stream

# Below 260 tokenizers keep special and byte tokens; from 1000 on a small vocabulary may have ended. (Mistral's tekken
# keeps all of the first 1000 ids for control tokens: they are valid there, and as random as any.)
FIRST_ID, END_ID = 260, 1000
_ID_TEXT = np.array([f"{i}," for i in range(FIRST_ID, END_ID)], dtype="S4")  # three digits each, so joining is a gather

_COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name team minute idea body back parent face others
level office door health person art war history party result change morning reason research girl guy moment air
teacher force education
"""
WORDS = np.array(_COMMON.split())


Extra = Callable[[Request, int], Mapping[str, Any]]  # body fields of a request's stage, given the stage's index


def no_extra(_request: Request, _stage: int) -> Mapping[str, Any]:
    return {}


def render_stages(
    target: Target, abilities: Abilities, request: Request, seed: int, extra: Extra = no_extra
) -> tuple[bytes, ...]:
    """One HTTP request for each stage, complete with its head. What `extra` gives is added to the body."""
    turns = _draw_turns(request, seed, len(WORDS) if target.api == "chat" else END_ID - FIRST_ID)
    payloads: list[bytes] = []
    for index, stage in enumerate(request.stages):
        asked = turns[: 2 * index + 1]
        prompt = _chat(asked) if target.api == "chat" else _completion(asked)
        options = {"model": target.model, **length_options(abilities, stage.output_tokens), **stream_options(abilities)}
        options |= extra(request, index)
        body = prompt + b"," + json.dumps(options, separators=(",", ":")).encode()[1:]
        payloads.append(render_request("POST", target.path, target.headers(), body))
    return tuple(payloads)


def length_options(abilities: Abilities, output_tokens: int) -> dict[str, Any]:
    options: dict[str, Any] = {abilities.max_tokens_field: output_tokens}
    if abilities.forced_lengths:
        options |= {"min_tokens": output_tokens, "ignore_eos": True}
    return options


def stream_options(abilities: Abilities) -> dict[str, Any]:
    options: dict[str, Any] = {"stream": True}
    if abilities.final_usage:
        running = {"continuous_usage_stats": True} if abilities.running_usage else {}
        options["stream_options"] = {"include_usage": True, **running}
    if abilities.token_ids:
        options["return_token_ids"] = True
    return options


def _draw_turns(request: Request, seed: int, choices: int) -> list[NDArray[np.int64]]:
    """[2 x stages - 1] turns of [tokens] draws below `choices`: prompt, stand-in answer, prompt, ..."""
    rng = stream(seed, "prompt", request.id)
    turns: list[NDArray[np.int64]] = []
    for stage in request.stages:
        shared = _draw_prefix(request.prefix, seed, choices)[: stage.prompt_tokens] if not turns else _NOTHING
        own = rng.integers(choices, size=stage.prompt_tokens - len(shared))
        turns += [np.concatenate([shared, own]), rng.integers(choices, size=stage.output_tokens)]
    return turns[:-1]


_NOTHING = np.empty(0, dtype=np.int64)


def _draw_prefix(prefix: Prefix | None, seed: int, choices: int) -> NDArray[np.int64]:
    if prefix is None:
        return _NOTHING
    blocks = [stream(seed, "block", i).integers(choices, size=prefix.block_tokens) for i in prefix.block_ids]
    return np.concatenate([_NOTHING, *blocks])


def _completion(turns: list[NDArray[np.int64]]) -> bytes:
    """The start of a JSON object."""
    return b'{"prompt":[' + _ID_TEXT[np.concatenate(turns)].tobytes()[:-1] + b"]"


def _chat(turns: list[NDArray[np.int64]]) -> bytes:
    """The start of a JSON object."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": " ".join(WORDS[turn])} for i, turn in enumerate(turns)]
    return b'{"messages":' + json.dumps(messages, separators=(",", ":")).encode()
