"""Replicas behind one endpoint, as `sloguard serve --replicas N` starts them. Used by the fleet_*.py scripts."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sloguard.engine.vllm_server import free_port

REPO = Path(__file__).resolve().parents[1]
EMULATED = ("--engine", "emulator", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "L4")
START_LIMIT_S = 600.0
ASK_S = 120.0
SAMPLE = re.compile(r"^(sloguard_\w*(?:\{[^}]*\})?) (\S+)", re.MULTILINE)


@dataclass
class Fleet:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_S)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """GET, or POST where there is a body."""
        with closing(self.connect()) as connection:
            sent = None if body is None else json.dumps(body)
            connection.request("GET" if sent is None else "POST", path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def model(self) -> str:
        return json.loads(self.ask("/v1/models")[1])["data"][0]["id"]

    def samples(self) -> dict[str, float]:
        """Of its own metrics, by name with labels; none while nobody answers."""
        try:
            status, text = self.ask("/metrics")
        except OSError:
            return {}
        return {name: float(value) for name, value in SAMPLE.findall(text.decode())} if status == 200 else {}

    def count(self, name: str) -> float:
        """Over all labels."""
        return sum(value for key, value in self.samples().items() if key.partition("{")[0] == name)

    def members(self) -> list[psutil.Process]:
        """Its processes, itself too."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def await_up(self, replicas: int) -> float:
        """Seconds until so many serve. Raises SystemExit where it ends before, or takes too long."""
        began_s = time.monotonic()
        while self.count("sloguard_replica_up") < replicas:
            if self.process.poll() is not None or time.monotonic() - began_s > START_LIMIT_S:
                sys.exit(f"the replicas are not up; see {self.log}")
            time.sleep(0.2)
        return time.monotonic() - began_s


@contextmanager
def fleet(
    words: Sequence[str], replicas: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Fleet]:
    """`words` are flags of `sloguard serve`, without those of the port and the number of replicas."""
    port = free_port()
    argv = [sys.executable, "-m", "sloguard", "serve", *words, "--replicas", str(replicas), "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        )
    made = Fleet(process, port, log)
    try:
        made.await_up(replicas)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
