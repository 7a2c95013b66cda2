"""What load is offered to, and what its server was found to accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from sloguard.errors import SpecError

Api = Literal["completions", "chat"]
PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible endpoint. `base_url` may end in `/v1`. The key is sent, and never shown or stored.

    Raises SpecError for a URL or an API that can't be used.
    """

    base_url: str
    model: str
    api: Api = "completions"
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _is_server_address(self.base_url):
            fix = "Give it as http://HOST:PORT or https://HOST, in ASCII: a name in punycode, a path percent-encoded."
            raise SpecError("--base-url", self.base_url, "not the address of a server", fix)
        if self.api not in PATHS:
            raise SpecError("api", self.api, "no such API", f"Choose one of {', '.join(PATHS)}.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            fix = "Check the variable that holds it."
            raise SpecError("api_key", "(not shown)", "holds characters that no key has", fix)

    @property
    def tls(self) -> bool:
        return urlsplit(self.base_url).scheme == "https"

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.base_url).port or (443 if self.tls else 80)

    @property
    def path(self) -> str:
        """Of the API's route, below any prefix that `base_url` has."""
        return urlsplit(self.base_url).path.rstrip("/").removesuffix("/v1") + PATHS[self.api]

    def headers(self) -> dict[str, str]:
        host = f"[{self.host}]" if ":" in self.host else self.host
        headers = {
            "Host": host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}",
            "User-Agent": "sloguard",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        return headers if self.api_key is None else {**headers, "Authorization": f"Bearer {self.api_key}"}


def _is_server_address(url: str) -> bool:
    """Whether `url` can go on the wire as it stands, as a name to look up, a header and a path."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # refuses empty and overlong labels, as looking it up does
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(host) and port != 0 and plain


@dataclass(frozen=True, slots=True)
class Abilities:
    """The optional request fields that a server takes. `forced_lengths`: `ignore_eos` and `min_tokens`."""

    forced_lengths: bool = True
    running_usage: bool = True  # stream_options.continuous_usage_stats
    token_ids: bool = False  # return_token_ids: asked for only without running usage, for it also echoes the prompt
    final_usage: bool = True  # stream_options.include_usage
    max_tokens_field: str = "max_tokens"
