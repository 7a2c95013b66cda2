"""The way to one replica: its server's HTTP, whatever started it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from sloguard.plugins.options import router_proof

Headers = Sequence[tuple[str, str]]
CONNECT_S = 2.0
KEEP_ALIVE_S = 3.0  # servers close after 5: a connection they close as we write to it is a request lost
# Of one connection only (RFC 9110, 7.6.1), or made anew for the next by whoever serves it.
OF_CONNECTION = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "authorization",
        "expect",
        "date",
        "server",
    )
)


class Lost(Exception):  # noqa: N818 - says what became of the replica
    """The replica can't be reached, or broke off in the middle."""


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: str  # with its query
    headers: Headers = ()
    body: bytes = b""


class Reply(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Lost where it breaks off."""
        ...


class Link(Protocol):
    @property
    def name(self) -> str:
        """Of the replica, never given to another."""
        ...

    @property
    def proof(self) -> str:
        """That it is its router who asks, for its scheduler."""
        ...

    def ask(self, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Hangs up when the context is left. Raises Lost."""
        ...


class HttpLink:
    """To a server at `base_url`, whose door knows us by `token`."""

    def __init__(self, session: aiohttp.ClientSession, name: str, base_url: str, token: str) -> None:
        self._session, self.name, self._base_url, self.proof = session, name, base_url, router_proof(token)
        self._ours = {"Authorization": f"Bearer {token}"}

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[Reply]:
        headers = [(name, value) for name, value in call.headers if name.lower() not in OF_CONNECTION]
        try:
            async with self._session.request(
                call.method,
                URL(self._base_url + call.path, encoded=True),  # as the client wrote it
                headers=[*headers, *self._ours.items()],
                data=call.body,
                allow_redirects=False,
            ) as response:
                yield _HttpReply(response)
        except (aiohttp.ClientError, OSError) as error:  # OSError holds the timeout of a connection
            raise Lost(f"{self.name}: {error or type(error).__name__}") from error


class _HttpReply:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = [(name, value) for name, value in response.headers.items() if name.lower() not in OF_CONNECTION]

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(str(error) or type(error).__name__) from error


def session() -> aiohttp.ClientSession:
    """Without limits on how many, or how long: promises are kept by routing, not by queueing here."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
