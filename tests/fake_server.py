"""A fake OpenAI-compatible streaming server: real HTTP on loopback, its behaviour a generator per request.

An answer is a generator of `bytes` (written at once, as they are) and `float` (seconds to wait); when it ends, the
connection is kept for the next request unless it yielded `CLOSE`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CLOSE = None
Step = bytes | float | None
PREFLIGHT_TOKENS = 3


@dataclass
class Seen:
    """One request as the server saw it. Instants are `perf_counter()` seconds, comparable with the client's."""

    raw: bytes
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    arrived_s: float
    written_s: list[float] = field(default_factory=list)

    @property
    def asked_tokens(self) -> int:
        return self.body.get("max_tokens") or self.body["max_completion_tokens"]

    @property
    def is_preflight(self) -> bool:
        return self.asked_tokens == PREFLIGHT_TOKENS


Answer = Callable[[Seen], Iterator[Step]]


class FakeServer:
    """`with FakeServer(answer) as server:` serves on a free port until left."""

    def __init__(
        self, answer: Answer | None = None, *, preflight: Answer | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer or stream()
        self.preflight = preflight or stream()
        self.longest_body_bytes = float("inf")  # a longer one ends the connection unread
        self.seen: list[Seen] = []
        self.connections: list[socket.socket] = []
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError):  # the client went away
                    sock = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                    outer.connections.append(sock)
                    with sock:
                        while outer._serve_one(sock):
                            pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True
            request_queue_size = 1024

        self._server = Server(("127.0.0.1", 0), Handler)
        port = self._server.server_address[1]
        self.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"

    def __enter__(self) -> FakeServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    @property
    def load(self) -> list[Seen]:
        """What was offered, without the preflight."""
        return [seen for seen in self.seen if not seen.is_preflight]

    def _serve_one(self, sock: socket.socket) -> bool:
        data = sock.recv(65536)
        arrived_s = time.perf_counter()
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if int(headers["content-length"]) > self.longest_body_bytes:
            return False
        while len(body) < int(headers["content-length"]):
            body += sock.recv(65536)
        seen = Seen(head + b"\r\n\r\n" + body, first.split()[1], headers, json.loads(body), arrived_s)
        self.seen.append(seen)
        for step in (self.preflight if seen.is_preflight else self.answer)(seen):
            if step is None:
                sock.shutdown(socket.SHUT_RDWR)
                return False
            if isinstance(step, bytes):
                seen.written_s.append(time.perf_counter())
                sock.sendall(step)
            else:
                time.sleep(step)
        return True


def head(status: int = 200, extra: str = "", *, chunked: bool = True) -> bytes:
    kind = "text/event-stream" if status == 200 else "application/json"
    coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
    return f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\n{coding}{extra}\r\n".encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


END_CHUNKS = b"0\r\n\r\n"


def event(data: dict[str, Any] | str) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def token_event(seen: Seen, tokens: int, so_far: int, *, usage: str) -> bytes:
    """One chunk that carries `tokens` tokens; `usage` is "running", "final", "ids" or "none"."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if "messages" in seen.body:
        choice["delta"] = {"content": " x" * tokens}
    else:
        choice["text"] = " x" * tokens
    if usage == "ids":
        choice["token_ids"] = list(range(tokens))
    chunk_: dict[str, Any] = {"id": "x", "choices": [choice]}
    if usage == "running":
        chunk_["usage"] = {"prompt_tokens": prompt_tokens(seen), "completion_tokens": so_far + tokens}
    return event(chunk_)


def prompt_tokens(seen: Seen) -> int:
    if "messages" in seen.body:
        return 3 + sum(len(message["content"].split()) for message in seen.body["messages"])
    return len(seen.body["prompt"])


def usage_event(seen: Seen, tokens: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens(seen), "completion_tokens": tokens}
    return event({"id": "x", "choices": [], "usage": usage})


def stream(
    *,
    sizes: Callable[[int], list[int]] = lambda asked: [1] * asked,
    usage: str = "running",
    gap_s: float = 0.0,
    stop_after: int = 10**9,
) -> Answer:
    """A well-behaved answer: role first (chat), chunks of `sizes(asked)` tokens, finish, usage, [DONE]."""

    def answer(seen: Seen) -> Iterator[Step]:
        yield head()
        if "messages" in seen.body:
            yield chunk(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
        asked = min(seen.asked_tokens, stop_after)
        so_far = 0
        for size in sizes(asked):
            if gap_s and so_far:
                yield gap_s
            yield chunk(token_event(seen, size, so_far, usage=usage))
            so_far += size
        finish = "length" if asked == seen.asked_tokens else "stop"
        yield chunk(event({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": finish}]}))
        if usage != "none":
            yield chunk(usage_event(seen, so_far))
        yield chunk(event("[DONE]")) + END_CHUNKS

    return answer


def error(status: int, message: str = "no") -> Answer:
    def answer(_seen: Seen) -> Iterator[Step]:
        body = json.dumps({"error": {"message": message, "code": status}}).encode()
        yield head(status, f"Content-Length: {len(body)}\r\n", chunked=False) + body

    return answer
