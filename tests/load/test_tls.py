from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server import FakeServer
from sloguard.errors import SpecError
from sloguard.load.drive import offer
from sloguard.load.target import Target
from sloguard.request import End, Request, Stage

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make a certificate with")
REQUESTS = [Request(f"r{i}", i * 0.005, (Stage(3000, 6),)) for i in range(20)]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for localhost, signed by itself, in one file."""
    key, cert, both = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "both.pem"
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([str(OPENSSL), *options.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    both.write_text(key.read_text() + cert.read_text())
    return both


@pytest.fixture
def server(certificate: Path) -> Iterator[FakeServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeServer(tls=context) as running:
        yield running


def test_tokens_arrive_through_tls(server: FakeServer, certificate: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    offered = offer(Target(server.url, "m"), REQUESTS, seed=0)
    assert {t.end for t in offered.timelines} == {End.COMPLETED}
    assert {t.output_tokens for t in offered.timelines} == {6}
    assert len(server.load) == 20


def test_a_certificate_that_nobody_vouches_for_is_refused(server: FakeServer):
    with pytest.raises(SpecError, match="certificate verify failed"):
        offer(Target(server.url, "m"), REQUESTS, seed=0)
