"""One tiny request before the load: is the server there, and which optional fields does it take?"""

from __future__ import annotations

import json
from dataclasses import replace
from time import perf_counter

from sloguard.errors import SpecError
from sloguard.load.client import Client, Exchange
from sloguard.load.prompts import render_stages
from sloguard.load.run_figures import EMULATES
from sloguard.load.target import Abilities, Target
from sloguard.load.tokens import Counting, error_message
from sloguard.request import End, Request, Stage

PREFLIGHT_TIMEOUT_S = 30.0
EMULATED = "x-sloguard-emulated"  # a header of servers that emulate a GPU, which it names
REJECTED = (400, 422)  # what servers answer to a field that they don't know
_PROBE = Request("preflight", 0.0, (Stage(prompt_tokens=4, output_tokens=3),))

# From the most telling form of a request to the plainest; the first that the server takes is used for the whole run.
RUNGS = (
    *(
        Abilities(forced_lengths=forced, running_usage=running, final_usage=final)
        for forced in (True, False)
        for running, final in ((True, True), (False, True), (False, False))
    ),
    Abilities(forced_lengths=False, running_usage=False, max_tokens_field="max_completion_tokens"),
)


class Unavailable(Exception):  # noqa: N818 - says what the server is
    """The server did not answer the preflight request, or answered that it can't serve."""


def preflight(client: Client, target: Target, seed: int) -> tuple[Abilities, tuple[str, ...]]:
    """What the server accepts, and notes on what it does not.

    Raises SpecError for what the user can mend (key, model, route) and Unavailable for a server that can't serve.
    """
    try:
        client.use_first_address_that_answers(PREFLIGHT_TIMEOUT_S)
    except OSError as error:
        raise Unavailable(f"can't be reached ({error.strerror or error})") from None
    refusal = ""
    for rung in RUNGS:
        probe = _ask(client, target, rung, seed)
        if probe.reader.status in REJECTED:
            refusal = refusal or answer_text(probe)
            continue
        _check(probe, target)
        found = rung
        if rung.final_usage and probe.tokens.counting is not Counting.EXACT:
            found = replace(rung, running_usage=False)
            with_ids = _ask(client, target, replace(found, token_ids=True), seed)
            if with_ids.reader.status == 200 and with_ids.tokens.counting is Counting.EXACT:
                found = replace(found, token_ids=True)
        notes = [] if found.forced_lengths else [f"output lengths not forced: the server refused to ({refusal})"]
        if (gpu := probe.reader.headers.get(EMULATED)) is not None:
            notes.append(f"{EMULATES} {gpu}: figures are a model's, none was measured on a GPU")
        return found, tuple(notes)
    raise SpecError("--model", target.model, f"the server rejects a plain request: {refusal}", "See the server's API.")


def _ask(client: Client, target: Target, abilities: Abilities, seed: int) -> Exchange:
    exchange = Exchange(render_stages(target, abilities, _PROBE, seed)[0])
    client.send(exchange)
    give_up_s = perf_counter() + PREFLIGHT_TIMEOUT_S
    while not client.poll(0.1):
        if perf_counter() > give_up_s:
            client.abandon(exchange, End.TIMED_OUT, "")
            raise Unavailable(f"gave no answer to one tiny request in {PREFLIGHT_TIMEOUT_S:g} s")
    return exchange


def _check(probe: Exchange, target: Target) -> None:
    status, text = probe.reader.status, answer_text(probe)
    if status in (401, 403):
        fix = "Name the environment variable that holds the key: --api-key-env VAR."
        raise SpecError("--base-url", target.base_url, f"the server does not let us in: {text}", fix)
    if status == 404:
        raise SpecError(
            "--model", target.model, f"{target.base_url} does not serve it: {text}", "See /v1/models there."
        )
    if 300 <= status < 400:
        where = probe.reader.headers.get("location", "another address")
        raise SpecError("--base-url", target.base_url, f"redirects to {where}", "Give that address.")
    if probe.end is not None or status != 200:
        raise Unavailable(f"does not serve: {text}")
    if not probe.tokens.output_tokens:
        raise Unavailable("gave an answer without tokens")


def answer_text(exchange: Exchange) -> str:
    """Why an exchange did not succeed, in one line."""
    if exchange.error:
        return exchange.error
    body = exchange.error_body.decode(errors="replace").strip()
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    text = error_message(parsed) if isinstance(parsed, dict) else " ".join(body.split())[:200]
    return f"HTTP {exchange.reader.status}" + (f": {text}" if text else "")
