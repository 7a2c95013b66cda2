"""`sloguard serve --replicas N` over emulated replicas, as processes of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sloguard.engine.processes import STATE_DIR

CODE = "import sys; from sloguard.cli.app import main; sys.exit(main())"
EMULATED = ("serve", "--engine", "emulator", "--model", "Qwen/Qwen2-1.5B", "--gpu", "H100")
PATIENCE_S = 60.0
TOKENS = 1200  # about two seconds of answer


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(true: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@dataclass
class Fleet:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            sent = None if body is None else json.dumps(body)
            given = {"Content-Type": "application/json", **(headers or {})}
            connection.request("GET" if sent is None else "POST", path, sent, given)
            response = connection.getresponse()
            return response.status, response.read()

    def stream(self, number: int = 0, **fields: object) -> tuple[str, float]:
        """The text of a long answer, and the longest time between two of its tokens."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            body = {"prompt": "Once", "max_tokens": TOKENS, "stream": True, **fields}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            text, gap_s, last_s = "", 0.0, time.monotonic()
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    gap_s, last_s = max(gap_s, time.monotonic() - last_s), time.monotonic()
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text, gap_s

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self, word: str) -> list[psutil.Process]:
        """Those below it with that word on their command line, the oldest first."""
        found = [
            (c, c.create_time()) for c in psutil.Process(self.process.pid).children(recursive=True) if has(c, word)
        ]
        return [process for process, _ in sorted(found, key=lambda pair: pair[1])]

    def up(self) -> int:
        """How many replicas the gateway can use."""
        try:
            lines = self.ask("/metrics")[1].decode().splitlines()
        except OSError:
            return 0
        return sum(line.startswith("sloguard_replica_up{") and line.endswith(" 1.0") for line in lines)


def streamed_while(fleet: Fleet, happens: Callable[[], None], after_s: float) -> list[tuple[str, float]]:
    """What six long answers are, and their longest gaps, if this happens in the middle of them."""
    with ThreadPoolExecutor(6) as pool:
        coming = [pool.submit(fleet.stream) for _ in range(6)]
        time.sleep(after_s)
        happens()
        return [one.result() for one in coming]


def check_orderly_end(fleet: Fleet) -> None:
    """What is under way at SIGTERM is answered to its end."""
    alone = fleet.stream()[0]
    answers = streamed_while(fleet, fleet.process.terminate, 0.5)
    assert [text for text, _ in answers] == [alone] * 6
    assert fleet.process.wait(PATIENCE_S) == 0
    assert "draining: 6 requests under way" in fleet.said()


def has(process: psutil.Process, word: str) -> bool:
    try:
        return word in " ".join(process.cmdline())
    except psutil.Error:  # it is just ending
        return False


@contextmanager
def serving(
    directory: Path, backend: str, *options: str, replicas: int = 2, engine: Sequence[str] = EMULATED
) -> Iterator[Fleet]:
    port, log = free_port(), directory / "log"
    words = [sys.executable, "-c", CODE, *engine, "--backend", backend]
    words += ["--replicas", str(replicas), "--port", str(port), *options]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", STATE_DIR: str(directory / "state")}
    with log.open("wb") as out:
        made = Fleet(subprocess.Popen(words, stdout=out, stderr=out, env=env), port, log)
    try:
        until(lambda: made.up() == replicas or made.process.poll() is not None, 2 * PATIENCE_S)
        yield made
    finally:
        children = psutil.Process(made.process.pid).children(recursive=True) if made.process.poll() is None else []
        made.process.terminate()
        made.process.wait(PATIENCE_S)
        assert not psutil.wait_procs(children, timeout=10)[1]
