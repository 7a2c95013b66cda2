"""What a client is sent: one response, begun once, whatever becomes of the replicas behind it."""

from __future__ import annotations

import json

from sloguard.fleet.link import Headers
from sloguard.plugins.asgi import Send, error_body
from sloguard.plugins.door import STATE_HEADER


class Client:
    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def begin(self, status: int, headers: Headers) -> None:
        """Does nothing where it has begun."""
        if not self.begun:
            self.begun = True
            told = [(name, value) for name, value in headers if name.lower() != STATE_HEADER]
            encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told]
            await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def body(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, headers: Headers, data: bytes) -> None:
        await self.begin(status, [*headers, ("content-length", str(len(data)))])
        await self.body(data, more=False)

    async def fail(self, status: int, why: str, retry_s: int | None = None) -> None:
        """An error, in a stream that has begun as vLLM ends one."""
        error = json.dumps({"error": error_body(status, why)})
        if self.begun:
            return await self.body(f"data: {error}\n\ndata: [DONE]\n\n".encode(), more=False)
        again = [("retry-after", str(retry_s))] if retry_s else []
        return await self.whole(status, [("content-type", "application/json"), *again], error.encode())
