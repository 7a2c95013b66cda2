"""HTTP/1.1 as far as a load client needs it (RFC 9112): requests as bytes, responses read without a socket."""

from __future__ import annotations

from collections.abc import Mapping

HEAD_LIMIT_BYTES = 65536


class ProtocolError(Exception):
    """The bytes received are not an HTTP/1.1 response."""


def render_request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The whole request as one buffer, so that it costs one system call to send."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class ResponseReader:
    """Reads one response: `feed(data)` gives the body bytes that `data` held, with the transfer coding taken off.

    `status` is 0 until the head is complete. A body ends by Content-Length, by its last chunk, or, where the server
    gave neither, by the end of the connection (`end_of_connection`).
    """

    __slots__ = ("_chunked", "_left", "_pending", "_trailers", "complete", "headers", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.keep_alive = False
        self._chunked = False
        self._trailers = False
        self._left: int | None = 0  # bytes of the body, or of the chunk and its line end, still to come; None: unknown
        self._pending = b""  # the start of a head or of a size line

    def feed(self, data: bytes) -> bytes:
        """Raises ProtocolError where the bytes are not HTTP."""
        if not self.status:
            data = self._read_heads(self._pending + data)
            if not self.status:
                return b""
        if self._chunked:
            return self._read_chunks(data)
        if self._left is not None:
            if len(data) > self._left:
                raise ProtocolError(f"{len(data) - self._left} bytes more than Content-Length")
            self._left -= len(data)
            self.complete = self._left == 0
        return data

    def end_of_connection(self) -> None:
        """Raises ProtocolError unless the response may end here."""
        if self.status and not self._chunked and self._left is None:
            self.complete = True
        elif not self.complete:
            raise ProtocolError("the server closed the connection " + ("mid-answer" if self.status else "unanswered"))

    def _read_heads(self, data: bytes) -> bytes:
        """Reads the head, and any 1xx heads before it; returns what follows."""
        while not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_LIMIT_BYTES or (len(data) >= 5 and not data.startswith(b"HTTP/")):
                    raise ProtocolError(f"not an HTTP/1.1 answer: {data[:40]!r}")
                self._pending = data
                return b""
            self._read_head(data[:end].decode("latin-1"))
            data = data[end + 4 :]
        self._pending = b""
        return data

    def _read_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (len(code) == 3 and code.isdecimal()):
            raise ProtocolError(f"not an HTTP/1.1 answer: {first[:40]!r}")
        if code[0] == "1":
            return
        self.status = int(code)
        self.headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = connection != "close" and (version != "HTTP/1.0" or connection == "keep-alive")
        self._chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        if not self._chunked:
            length = self.headers.get("content-length", "")
            if length and not length.isdecimal():
                raise ProtocolError(f"Content-Length {length[:40]!r}")
            self._left = int(length) if length else None
            self.keep_alive = self.keep_alive and self._left is not None
            self.complete = self._left == 0 or self.status in (204, 304)

    def _read_chunks(self, data: bytes) -> bytes:
        if self._pending:
            data, self._pending = self._pending + data, b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.complete:
            if self._left:
                payload = min(self._left - 2, size - at)  # the last two of _left are the line end
                if payload > 0:
                    pieces.append(data[at : at + payload])
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._pending = data[at:]
                if len(self._pending) > HEAD_LIMIT_BYTES:
                    raise ProtocolError("a chunk's size line has no end")
                break
            self._read_chunk_line(data[at:line_end])
            at = line_end + 2
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_chunk_line(self, line: bytes) -> None:
        if self._trailers:
            self.complete = not line
            return
        try:
            length = int(line.partition(b";")[0], 16)
        except ValueError:
            raise ProtocolError(f"chunk size {line[:40]!r}") from None
        if length:
            self._left = length + 2
        else:
            self._trailers = True
