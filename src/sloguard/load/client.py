"""Many HTTP exchanges at once on one thread: an epoll loop without tasks, so that little stands between a due instant
and the system call that sends. Measured beside aiohttp and asyncio by benchmarks/load_client.py.

Proxies, redirects and compression are not followed: what is measured is the server at the given address.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import ssl
from collections.abc import Callable
from time import perf_counter

from sloguard.errors import SpecError
from sloguard.load.http1 import ProtocolError, ResponseReader
from sloguard.load.target import Target
from sloguard.load.tokens import StreamError, TokenStream
from sloguard.request import End

RECV_BYTES = 65536
EVENTS_PER_POLL = 64  # bounds how long answers can hold up a request that falls due (about 0.5 ms)
SPARE_CONNECTIONS = 8  # kept open ahead of need, so that a request rarely waits for a handshake
YOUNG_S = 1.0  # a spare connection that the server closes sooner is not replaced: it would go on for ever
ERROR_BODY_BYTES = 4096
READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Exchange:
    """One HTTP request and the answer to it. Instants are `perf_counter()` seconds."""

    __slots__ = ("connection", "end", "error", "error_body", "job", "payload", "reader", "sent_s", "tokens")

    def __init__(self, payload: bytes, job: int = 0) -> None:
        self.payload, self.job = payload, job
        self.sent_s: float | None = None  # when its bytes were first given to the kernel, on whichever connection
        self.end: End | None = None
        self.error = ""
        self.connection: Connection | None = None
        self.reader = ResponseReader()
        self.tokens = TokenStream()
        self.error_body = b""

    def restart(self) -> None:
        self.reader, self.connection = ResponseReader(), None


class Connection:
    """A socket on its way to being connected, idle, or busy with one exchange."""

    __slots__ = ("exchange", "idled", "opened_s", "ready", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ready = False
        self.idled = False  # it was open before its exchange came, so the server may have given it up meanwhile
        self.opened_s = perf_counter()
        self.exchange: Exchange | None = None
        self.unsent: memoryview | None = None


class Client:
    """`send` exchanges, `poll` for those that ended. A context manager: leaving it closes every socket."""

    def __init__(self, target: Target) -> None:
        """Raises SpecError where the host name can't be resolved."""
        self._target = target
        self._tls = ssl.create_default_context() if target.tls else None
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise SpecError("--base-url", target.base_url, "the host is not known", "Check the host's name.") from None
        self._addresses = [(family, address) for family, _, _, _, address in found]
        self._connections: dict[int, Connection] = {}
        self._idle: dict[Connection, None] = {}  # a stack: the last used is used next
        self._opening = 0  # connections without an exchange that are not ready yet
        self._finished: list[Exchange] = []
        self._steps: tuple[Callable[[Connection, int], None], ...] = (self._connect_step, self._answer_step)
        self._epoll = select.epoll()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()

    def use_first_address_that_answers(self, timeout_s: float) -> None:
        """Settles on one of the host's addresses (IPv6, IPv4). Raises OSError where none takes a connection."""
        for index, (family, address) in enumerate(self._addresses):
            try:
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.settimeout(timeout_s)
                    sock.connect(address)
                self._addresses = [self._addresses[index]]
                return
            except OSError:
                if index == len(self._addresses) - 1:
                    raise

    def open(self, connections: int) -> None:
        """Begins to open connections until this many are idle or opening."""
        for _ in range(connections - len(self._idle) - self._opening):
            if isinstance(self._connect(), str):
                break  # whoever needs it will fail, and say why
            self._opening += 1

    @property
    def opening(self) -> int:
        return self._opening

    def send(self, exchange: Exchange) -> None:
        """Sends now, or as soon as a new connection is ready. How it went is for `poll` to tell."""
        if self._idle:
            connection, _ = self._idle.popitem()
            connection.idled = True
            connection.exchange, exchange.connection = exchange, connection
            self._send(connection, exchange)
        else:
            self._send_on_new(exchange)
        if len(self._idle) + self._opening < SPARE_CONNECTIONS:
            self.open(SPARE_CONNECTIONS)

    def poll(self, timeout_s: float) -> list[Exchange]:
        """Handles what has arrived, waiting for it at most `timeout_s`; returns the exchanges that have ended."""
        events = self._epoll.poll(0, EVENTS_PER_POLL)
        if not events and timeout_s > 0 and not self._finished:
            if self._epoll.fileno() < 1024:
                select.select((self._epoll,), (), (), timeout_s)  # epoll's own timeout is in whole milliseconds
                events = self._epoll.poll(0, EVENTS_PER_POLL)
            else:
                events = self._epoll.poll(timeout_s, EVENTS_PER_POLL)
        connections = self._connections
        for number, mask in events:
            connection = connections.get(number)
            if connection is not None:
                self._steps[connection.ready](connection, mask)
        finished, self._finished = self._finished, []
        return finished

    def abandon(self, exchange: Exchange, end: End, error: str) -> None:
        """Ends an exchange from this side: its connection is closed, so that the server can stop working on it."""
        if exchange.connection is not None:
            self._drop(exchange.connection)
        exchange.end, exchange.error = end, error

    def _send_on_new(self, exchange: Exchange) -> None:
        connection = self._connect()
        if isinstance(connection, str):
            self._finish(exchange, End.FAILED, connection)
        else:
            connection.exchange, exchange.connection = exchange, connection

    def _connect(self) -> Connection | str:
        """A connection on its way, or why there is none."""
        family, address = self._addresses[0]
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return f"no socket: {error.strerror}"
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failed = sock.connect_ex(address)
        if failed not in (0, errno.EINPROGRESS):
            sock.close()
            return os.strerror(failed)
        connection = Connection(sock)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), WRITE)
        return connection

    def _connect_step(self, connection: Connection, _mask: int) -> None:
        sock = connection.sock
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return self._lost(connection, os.strerror(error))
        if self._tls is not None:
            if not isinstance(sock, ssl.SSLSocket):
                host = self._target.host
                sock = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                connection.sock = sock
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                return self._epoll.modify(sock.fileno(), READ)
            except ssl.SSLWantWriteError:
                return self._epoll.modify(sock.fileno(), WRITE)
            except OSError as failure:
                return self._lost(connection, f"TLS: {failure}")
        connection.ready = True
        self._epoll.modify(sock.fileno(), READ)
        if connection.exchange is not None:
            return self._send(connection, connection.exchange)
        self._opening -= 1
        self._idle[connection] = None
        return None

    def _send(self, connection: Connection, exchange: Exchange) -> None:
        if exchange.sent_s is None:  # a second try is the server's doing, not this client's lag
            exchange.sent_s = perf_counter()
        connection.unsent = memoryview(exchange.payload)
        self._send_rest(connection)

    def _send_rest(self, connection: Connection) -> None:
        assert connection.unsent is not None
        try:
            sent = connection.sock.send(connection.unsent)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError as error:
            return self._lost(connection, error.strerror or str(error))
        connection.unsent = connection.unsent[sent:] if sent < len(connection.unsent) else None
        if connection.unsent is not None:
            self._epoll.modify(connection.sock.fileno(), READ | WRITE)
        return None

    def _answer_step(self, connection: Connection, mask: int) -> None:
        if mask & WRITE and connection.unsent is not None:
            self._epoll.modify(connection.sock.fileno(), READ)
            self._send_rest(connection)
        if mask & ~WRITE and connection.sock.fileno() >= 0:  # unless sending the rest just failed
            while self._read(connection):
                pass

    def _read(self, connection: Connection) -> bool:
        """Whether to read on at once: TLS may hold bytes that epoll can't see."""
        try:
            data = connection.sock.recv(RECV_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self._lost(connection, error.strerror or str(error))
            return False
        at_s = perf_counter()  # not before: what is read may have come after the event that woke this
        exchange = connection.exchange
        if not data or exchange is None:
            self._closed(connection, at_s)
            return False
        self._received(connection, exchange, data, at_s)
        return self._tls is not None and connection.exchange is not None

    def _received(self, connection: Connection, exchange: Exchange, data: bytes, at_s: float) -> None:
        reader = exchange.reader
        try:
            body = reader.feed(data)
            if reader.status == 200:
                if body:
                    exchange.tokens.feed(body, at_s)
            elif len(exchange.error_body) < ERROR_BODY_BYTES:
                exchange.error_body += body
            if reader.complete:
                self._answered(connection, exchange, at_s)
        except (ProtocolError, StreamError) as error:
            self._fail(connection, exchange, str(error))

    def _answered(self, connection: Connection, exchange: Exchange, at_s: float) -> None:
        """Raises StreamError for an answer that ended without its end."""
        if exchange.reader.status == 200:
            exchange.tokens.close(at_s)
        connection.exchange = None
        if exchange.reader.keep_alive and connection.unsent is None:
            self._idle[connection] = None
        else:
            self._drop(connection)
        self._finish(exchange, None, "")

    def _closed(self, connection: Connection, at_s: float) -> None:
        """The server closed the connection."""
        exchange = connection.exchange
        if exchange is None or not exchange.reader.status:
            return self._lost(connection, "the server closed the connection unanswered")
        try:
            exchange.reader.end_of_connection()
            return self._answered(connection, exchange, at_s)
        except (ProtocolError, StreamError) as error:
            return self._fail(connection, exchange, str(error))

    def _lost(self, connection: Connection, reason: str) -> None:
        exchange = connection.exchange
        self._drop(connection)
        if exchange is None:
            if perf_counter() - connection.opened_s > YOUNG_S:
                self.open(SPARE_CONNECTIONS)
        elif connection.idled and not exchange.reader.status:
            exchange.restart()  # the server gave the idle connection up as we used it: once more, on a new one
            self._send_on_new(exchange)
        else:
            self._finish(exchange, End.FAILED, reason)

    def _fail(self, connection: Connection, exchange: Exchange, reason: str) -> None:
        self._drop(connection)
        self._finish(exchange, End.FAILED, reason)

    def _finish(self, exchange: Exchange, end: End | None, error: str) -> None:
        """`end` None: answered in full; what the status means is for the caller to say."""
        exchange.connection = None
        exchange.end, exchange.error = end, error
        self._finished.append(exchange)

    def _drop(self, connection: Connection) -> None:
        number = connection.sock.fileno()
        del self._connections[number]
        if connection.exchange is None and not connection.ready:
            self._opening -= 1
        self._idle.pop(connection, None)
        connection.exchange = None
        self._epoll.unregister(number)
        with contextlib.suppress(OSError):
            connection.sock.close()
