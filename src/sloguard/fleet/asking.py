"""What a router needs to know of a request before any replica has seen it."""

from __future__ import annotations

import json
from typing import Any

from sloguard.fleet.relay import CHAT
from sloguard.route.prefixes import block_keys
from sloguard.sched.asked import Asked
from sloguard.sched.job import Job, Tier

BYTES_PER_TOKEN = 4.0  # of English; learnt from what is answered
WEIGHT = 0.02  # of the latest request
KEY_BYTES = 64  # text that counts as one block: 16 tokens
OUTPUT_TOKENS = 256  # assumed where none are asked for
MESSAGE_BYTES = 16  # what a chat template puts around a message, roughly


class Sizes:
    """How many bytes of prompts are a token, as learnt from prompts whose tokens have been seen."""

    def __init__(self) -> None:
        self.bytes_per_token = BYTES_PER_TOKEN

    def tokens(self, text_bytes: int) -> int:
        return max(1, round(text_bytes / self.bytes_per_token))

    def saw(self, job: Job, prompt_tokens: int) -> None:
        """The prompt of `job`, whose tokens were guessed by this, has so many."""
        if prompt_tokens:
            seen = self.bytes_per_token * job.prompt_tokens / prompt_tokens
            self.bytes_per_token += WEIGHT * (min(max(seen, 1.0), 16.0) - self.bytes_per_token)


def job_of(
    name: str,
    now_s: float,
    path: str,
    body: dict[str, Any] | None,
    raw_bytes: int,
    asked: Asked,
    sizes: Sizes,
    longest_tokens: int,
) -> Job:
    """`body` None: nothing that can be read, of `raw_bytes`. No replica takes more than `longest_tokens`."""
    text, ids = _prompt(path, body or {})
    text = text[: round(longest_tokens * sizes.bytes_per_token)]
    wanted = (
        next((body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name)), None) if body else 0
    )
    return Job(
        id=name,
        arrival_s=now_s,
        prompt_tokens=min(ids or sizes.tokens(len(text) or raw_bytes), longest_tokens),
        output_tokens=wanted if isinstance(wanted, int) and wanted > 0 else OUTPUT_TOKENS,
        prefix_keys=block_keys(text, KEY_BYTES),
        ttft_s=asked.slo.ttft_s,
        tpot_s=asked.slo.tpot_s,
        app=asked.slo_class,
        stages_left=asked.stages_left,
        conversation=asked.conversation or name,
        tier=Tier.BEST_EFFORT if asked.best_effort else Tier.NEW,
    )


def _prompt(path: str, body: dict[str, Any]) -> tuple[bytes, int]:
    """Its text as bytes, and how many tokens it has, or 0 where that is not known."""
    if path == CHAT and isinstance(body.get("messages"), list):
        return b"".join(_message(message) for message in body["messages"]), 0
    prompt = body.get("prompt", body.get("input", body.get("messages", "")))
    if isinstance(prompt, str):
        return prompt.encode(errors="replace"), 0
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return b"".join(token.to_bytes(4, "big", signed=True) for token in prompt if abs(token) < 1 << 31), len(prompt)
    return json.dumps(prompt).encode(), 0


def _message(message: Any) -> bytes:
    """Its text; of images nobody here knows how many tokens they are."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str)).encode(errors="replace") + b" " * MESSAGE_BYTES
