"""A streaming OpenAI server that costs as little as Python allows, for measuring clients: one thread, one epoll,
answers rendered beforehand. It steps like an engine: every 10 ms each running request gets one token, in its own chunk.

It notes when each request arrived, on the clock that clients on the same machine share (CLOCK_MONOTONIC), so that all
clients are judged by one watch. `GET /log` returns and forgets what was noted.

    python benchmarks/load_server.py    prints its port
"""

from __future__ import annotations

import json
import re
import select
import socket
from time import perf_counter

STEP_S = 0.010
TOKENS = 16
WRITES_PER_LOOK = 16  # answers written between two looks for arrivals: 0.1 ms or so
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def render(running_usage: bool) -> list[bytes]:
    """[TOKENS] writes of one answer, as vLLM 0.32 words them."""

    def chunk(event: dict | str) -> bytes:
        text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
        data = f"data: {text}\n\n".encode()
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    def usage(n: int) -> dict:
        return {"usage": {"prompt_tokens": 32, "total_tokens": 32 + n, "completion_tokens": n}}

    base = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": "m"}
    writes: list[bytes] = []
    for n in range(1, TOKENS + 1):
        choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": "length" if n == TOKENS else None}
        writes.append(chunk({**base, "choices": [choice], **(usage(n) if running_usage else {})}))
    writes[0] = HEAD + writes[0]
    writes[-1] += chunk({**base, "choices": [], **usage(TOKENS)}) + chunk("[DONE]") + b"0\r\n\r\n"
    return writes


PLAIN, RUNNING = render(False), render(True)


class Connection:
    __slots__ = ("arrived_s", "data", "sock", "step", "writes")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        self.arrived_s = 0.0
        self.writes = PLAIN
        self.step = 0


class Server:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.running: list[Connection] = []
        self.arrived_s: list[float] = []
        self.late_s: list[float] = []  # of each step, how long after its instant it ended

    def serve(self) -> None:
        print(self.listener.getsockname()[1], flush=True)
        next_step_s = perf_counter() + STEP_S
        while True:
            select.select((self.epoll,), (), (), max(0.0, next_step_s - perf_counter()))
            self.look()
            if perf_counter() < next_step_s:
                continue
            if self.running:
                self.step()
                self.late_s.append(perf_counter() - next_step_s)
            next_step_s = max(next_step_s + STEP_S, perf_counter())

    def step(self) -> None:
        batch, self.running = self.running, []
        for first in range(0, len(batch), WRITES_PER_LOOK):
            for connection in batch[first : first + WRITES_PER_LOOK]:
                try:
                    connection.sock.send(connection.writes[connection.step])
                except OSError:
                    continue
                connection.step += 1
                if connection.step < TOKENS:
                    self.running.append(connection)
            self.look()

    def look(self) -> None:
        for number, _ in self.epoll.poll(0, 256):
            if number == self.listener.fileno():
                self.accept()
            else:
                self.read(self.connections[number])

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = Connection(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.epoll.unregister(connection.sock.fileno())
            del self.connections[connection.sock.fileno()]
            connection.sock.close()
            return
        if not connection.data:
            connection.arrived_s = perf_counter()
        connection.data += data
        head, ended, body = connection.data.partition(b"\r\n\r\n")
        if ended:
            length = LENGTH.search(head)
            if len(body) >= (int(length[1]) if length else 0):
                connection.data = b""
                self.answer(connection, head, body)

    def answer(self, connection: Connection, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            self.arrived_s.append(connection.arrived_s)
            connection.writes = RUNNING if b"continuous_usage_stats" in body else PLAIN
            connection.step = 0
            self.running.append(connection)
            return
        reply: object = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        if b"/log" in head.partition(b"\r\n")[0]:
            reply = {"arrived_s": self.arrived_s, "late_s": self.late_s}
            self.arrived_s, self.late_s = [], []
        text = json.dumps(reply).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        connection.sock.setblocking(True)
        connection.sock.sendall(answer)
        connection.sock.setblocking(False)


if __name__ == "__main__":
    Server().serve()
