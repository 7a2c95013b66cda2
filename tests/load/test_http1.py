from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.load.http1 import ProtocolError, ResponseReader, render_request

PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` as a socket might deliver it: cut at any places."""
    marks = sorted({0, len(data), *(min(c, len(data)) for c in cuts)})
    return [data[a:b] for a, b in pairwise(marks)]


def read(pieces: list[bytes]) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    return reader, b"".join(reader.feed(piece) for piece in pieces)


@given(PIECES, CUTS, st.sampled_from([b"", b";ext=1"]), st.sampled_from([b"", b"Trailer: x\r\n"]))
def test_a_chunked_body_reads_the_same_however_it_is_cut(chunks, cuts, extension, trailer):
    coded = b"".join(b"%X%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks)
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    reader, body = read(cut(head + coded + b"0\r\n" + trailer + b"\r\n", cuts))
    assert body == b"".join(chunks)
    assert (reader.complete, reader.status, reader.keep_alive, reader.headers["x-a"]) == (True, 200, True, "b")


@given(st.binary(max_size=200), CUTS)
def test_a_body_of_known_length_is_complete_exactly_at_its_end(payload, cuts):
    data = b"HTTP/1.1 429 Slow down\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
    reader = ResponseReader()
    pieces = cut(data, cuts)
    body = b""
    for piece in pieces[:-1]:
        body += reader.feed(piece)
        assert not reader.complete or not payload
    assert body + reader.feed(pieces[-1]) == payload
    assert reader.complete
    assert reader.status == 429


@given(st.binary(max_size=200), CUTS)
def test_without_a_length_the_body_ends_with_the_connection(payload, cuts):
    reader, body = read(cut(b"HTTP/1.1 200 OK\r\n\r\n" + payload, cuts))
    assert body == payload
    assert not reader.complete
    reader.end_of_connection()
    assert reader.complete
    assert not reader.keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        b"",
    ],
)
def test_a_connection_that_ends_early_is_an_error(head):
    reader, _ = read([head])
    with pytest.raises(ProtocolError, match="closed the connection"):
        reader.end_of_connection()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"H" + b"x" * 70000,
    ],
)
def test_what_is_not_http_is_an_error(data):
    with pytest.raises(ProtocolError):
        ResponseReader().feed(data)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_keep_alive_follows_version_and_header(head, kept):
    reader, _ = read([head + b"\r\n"])
    assert reader.complete
    assert reader.keep_alive is kept


def test_a_request_is_one_buffer_with_its_length():
    assert render_request("POST", "/v1/x", {"Host": "h"}, b"{}") == (
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
    )
