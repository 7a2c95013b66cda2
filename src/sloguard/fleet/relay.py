"""One stream of an answer, as its client sees it, whichever replicas give it. No sockets and no clock.

    bytes of a replica -> events -> `out`, for the client
                            \\-> token ids so far -> the request by which another replica goes on

An answer that breaks off goes on elsewhere with prompt and answer so far as its prompt, in token ids, so that no token
is given twice, lost, or made anew after the client has seen it. What can't be put into a prompt (a grammar half
followed, a tool call half parsed) can't go on once the client has seen part of it; an answer of which nothing was sent
always begins again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sloguard.sched.asked import DECLINED

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DATA, END, DONE = b"data: ", b"\n\n", b"[DONE]"
COMPLETION_TOKENS = 16  # what completions give where nothing is asked
# Whose state lies in the engine and not in the text, by what else than these values asks for them.
STATEFUL: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "echo": (None, False),
    "suffix": (None, ""),
    "stop": (None, "", []),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "structured_outputs": (None,),
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "thinking_token_budget": (None,),
    "tools": (None, []),
}
LENGTHS = ("max_tokens", "max_completion_tokens", "min_tokens")
CHAT_ONLY = ("messages", "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice")
OF_PROMPTS = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")  # done to the prompt's ids already
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Relay:
    """`body` is the client's, parsed. `longest_tokens` is the most that prompt and answer together may have.

    What `feed` puts into `out` counts as seen by the client: whoever sends takes it from there once it is sent.
    """

    def __init__(self, path: str, body: Mapping[str, Any], longest_tokens: int) -> None:
        self._path, self._body, self._longest_tokens = path, body, longest_tokens
        self.out = bytearray()
        self.prompt_ids: list[int] = []
        self.ids: list[int] = []
        self.begun = False  # whether the client sees anything of it
        self.over = False
        self.declined = False
        self.error = b""  # the event by which the replica said that it can't go on
        self._ended: set[int] = set()  # choices of which it has been told why they ended
        self._choices = len(_prompts(body)) * (body["n"] if type(body.get("n")) is int else 1)
        self._shows_ids = bool(body.get("return_token_ids"))
        self._plain = self._asks_ids = bool(body.get("stream")) and _is_plain(body)
        self._untold = 0  # of the latest tokens, those whose text has not come yet
        self._head: dict[str, Any] = {}
        self._continued = 0  # tokens of the answer that stand in the prompt of who goes on
        self._rest = b""
        self._held = b""  # events without anything in them yet: a verdict may follow

    @property
    def _finished(self) -> bool:
        """What may be missing is usage and the end mark."""
        return len(self._ended) >= self._choices

    @property
    def complete(self) -> bool:
        """Whether nothing but its end is missing."""
        return self._finished or (self.begun and not self._left())

    @property
    def can_go_on(self) -> bool:
        return not self.begun or self._finished or (self._plain and bool(self.prompt_ids) and self._left() >= 0)

    def request(self) -> tuple[str, dict[str, Any]]:
        """Path and body for the next replica. What the one before it left unfinished is forgotten."""
        self._rest, self._held, self.declined, self.error = b"", b"", False, b""
        body = dict(self._body)
        if not self.begun:
            self.ids, self.prompt_ids, self._untold, self._head = [], [], 0, {}
            self._ended.clear()
            return self._path, body | ({"return_token_ids": True} if self._asks_ids else {})
        if not self._shows_ids:  # nobody has seen these: they are half a character
            del self.ids[len(self.ids) - self._untold :]
            self._untold = 0
        self._continued = len(self.ids)
        for name in (*CHAT_ONLY, *OF_PROMPTS):
            body.pop(name, None)
        body |= {"prompt": [*self.prompt_ids, *self.ids], "max_tokens": self._left(), "return_token_ids": True}
        if body.get("min_tokens"):
            body["min_tokens"] = max(0, body["min_tokens"] - len(self.ids))
        return COMPLETIONS, body

    def feed(self, chunk: bytes) -> None:
        *events, self._rest = (self._rest + chunk).split(END)
        for event in events:
            if not (self.declined or self.error) and event.strip():
                self._take(event)

    def finish(self) -> None:
        """Ends an answer that is complete."""
        self.over = True
        if not self._finished:
            choice = {"index": 0, **self._words(""), "finish_reason": "length", "stop_reason": None}
            self.out += _framed({**self._head, "choices": [choice]})
        if (self._body.get("stream_options") or {}).get("include_usage") and self.prompt_ids:
            used = {"prompt_tokens": len(self.prompt_ids), "completion_tokens": len(self.ids)}
            self.out += _framed({**self._head, "choices": [], "usage": {**used, "total_tokens": sum(used.values())}})
        self.out += DATA + DONE + END

    def _take(self, event: bytes) -> None:
        payload = event.removeprefix(DATA)
        if payload == DONE:
            # vLLM writes no event for a verdict: it has no tokens.
            self.declined = not self.begun and not self.ids and not self._ended
            self.over = not self.declined
            return None if self.declined else self._give(event + END)
        try:
            told = json.loads(payload)
        except ValueError:  # a comment, for example: as it is
            self._plain = False
            return self._give(event + END)
        choices = told.get("choices") or []
        if "error" in told:
            self.error = event
        elif any(choice.get("stop_reason") == DECLINED for choice in choices):
            self.declined = True
        else:
            self._pass_on(event, told, choices)
        return None

    def _pass_on(self, event: bytes, told: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        said = any(choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices)
        out = self._noted(told, choices) if self._asks_ids else event + END
        self._ended |= {choice.get("index", 0) for choice in choices if choice.get("finish_reason")}
        if self.begun or self.ids or said or self._ended or not self._plain:
            self._give(out)
        else:
            self._held += out

    def _give(self, out: bytes) -> None:
        self.begun = True
        self.out += self._held + out
        self._held = b""

    def _noted(self, told: dict[str, Any], choices: list[dict[str, Any]]) -> bytes:
        prompt_ids = told.get("prompt_token_ids")
        for choice in choices:
            ids = choice.get("token_ids") or []
            prompt_ids = choice.get("prompt_token_ids") or prompt_ids
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else delta.get("content")
            beyond_text = delta is not None and any(delta[name] for name in delta if name not in ("role", "content"))
            if beyond_text or (text and not ids):
                self._plain = False
            if self._continued and self._path == CHAT:
                choice.pop("text", None)
                choice["delta"] = {"content": text}
            self.ids += ids
            self._untold = 0 if text else self._untold + len(ids)
        if not self._continued:
            self.prompt_ids = self.prompt_ids or prompt_ids or []
            self._head = self._head or {name: told.get(name) for name in ("id", "object", "created", "model")}
        if not self._shows_ids:
            told.pop("prompt_token_ids", None)
            for choice in choices:
                choice.pop("prompt_token_ids", None)
                choice.pop("token_ids", None)
        if self._continued and told.get("usage"):
            usage = told["usage"]
            usage["prompt_tokens"] -= self._continued
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._continued
        return _framed({**told, **self._head})

    def _left(self) -> int:
        """Tokens that are still to come at most."""
        asked = self._body.get("max_completion_tokens") or self._body.get("max_tokens")
        room = self._longest_tokens - len(self.prompt_ids)
        if asked is None:
            asked = COMPLETION_TOKENS if self._path == COMPLETIONS else room
        return min(asked, room) - len(self.ids)

    def _words(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._path == CHAT else {"text": text}


def is_declined(answer: object) -> bool:
    """Of a whole answer: whether the replica left it to another."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return bool(choices) and choices[0].get("stop_reason") == DECLINED


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]


def _is_plain(body: Mapping[str, Any]) -> bool:
    lengths = all(body.get(name) is None or type(body[name]) is int for name in LENGTHS)
    usual = all(any(_same(body.get(name), one) for one in values) for name, values in STATEFUL.items())
    return usual and lengths and len(_prompts(body)) == 1 and _is_text(body)


def _is_text(body: Mapping[str, Any]) -> bool:
    """Whether token ids hold all of the prompt: of images, sounds and embeddings they hold the places only."""
    messages = body.get("messages") or ()
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    plain = all(isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in parts)
    return plain and body.get("prompt_embeds") is None


def _same(value: object, other: object) -> bool:
    """0 is not False here."""
    return type(value) is type(other) and value == other


def _framed(told: Mapping[str, Any]) -> bytes:
    return DATA + _json(told).encode() + END
