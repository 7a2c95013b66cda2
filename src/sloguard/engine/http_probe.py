"""Single questions to an OpenAI-compatible server: is it there, whom does it serve, does it still answer?

The load goes through `load/`; this is for control, straight to the host (no proxy), one connection a question.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LONGEST_ANSWER_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is the parsed JSON, or the text where it is none."""

    status: int
    body: Any

    @property
    def text(self) -> str:
        """One line, for a message to the user."""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return " ".join(text.split())[:300]


def ask(base_url: str, path: str, *, timeout_s: float, body: Any = None, api_key: str | None = None) -> Answer:
    """GET, or POST where there is a `body` (sent as JSON). `base_url` may end in `/v1`; `path` never holds it twice.

    Raises TimeoutError where nothing came for `timeout_s`, ConnectionError or another OSError where there is no server.
    """
    url = urlsplit(base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    payload = None if body is None else json.dumps(body)
    if payload is not None:
        headers["Content-Type"] = "application/json"
    try:
        prefix = url.path.rstrip("/").removesuffix("/v1")
        connection.request("GET" if payload is None else "POST", prefix + path, payload, headers)
        response = connection.getresponse()
        text = response.read(LONGEST_ANSWER_BYTES).decode(errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError(f"the answer is no HTTP ({type(error).__name__})") from error
    finally:
        connection.close()
    try:
        return Answer(response.status, json.loads(text))
    except ValueError:
        return Answer(response.status, text)


def served_models(base_url: str, *, timeout_s: float, api_key: str | None = None) -> tuple[str, ...]:
    """The names under which the server takes requests; empty where it doesn't say. Raises OSError as `ask` does."""
    answer = ask(base_url, "/v1/models", timeout_s=timeout_s, api_key=api_key)
    cards = answer.body.get("data") if answer.status == 200 and isinstance(answer.body, dict) else None
    return tuple(str(card["id"]) for card in cards or () if isinstance(card, dict) and "id" in card)


def one_token(model: str) -> dict[str, Any]:
    """The smallest completion there is; token ids that every vocabulary has."""
    return {"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0}
