"""One running vLLM server and whether it serves. What vLLM itself says of its health is not enough:

- exit code 0 is no health: a dead engine core ends the server with 0;
- `/health` stays 200 with a stopped worker: only an answered request proves that it serves.

(Both measured with vLLM 0.32.0 on CPU.)
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sloguard.crash import Evidence, Phase
from sloguard.engine.base import Questions
from sloguard.engine.http_probe import ask, one_token, served_models
from sloguard.engine.processes import Server
from sloguard.errors import SpecError
from sloguard.request import End, Timeline
from sloguard.trial import Answer, Answers

HOST = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - as the user asked
PORTS = (
    20000,
    29999,
)  # below those of outgoing connections (Linux) and Kubernetes' nodes: nobody is given one meanwhile
PORT_TRIES = 100
LOG_TAIL_BYTES = 256 * 1024  # the root cause stands well before the last line: eight workers' tracebacks fit
POLL_S = 0.1
QUESTION_TIMEOUT_S = 5.0
DYING_S = 10.0  # how long a server may take to exit after its engine core has died


class Died(Exception):  # noqa: N818 - says what the server did
    """The server failed; `evidence` is what was seen."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        super().__init__(evidence.phase)


def free_port() -> int:
    """A port that nobody listens on. Raises SpecError where none is found."""
    for _ in range(PORT_TRIES):
        port = random.randint(*PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    low, high = PORTS
    raise SpecError("port", f"{low}-{high}", "all ports tried are taken", "Free some: see ss -tlnp.")


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A started server. `preflight_s` bounds how long one tiny request may take. `host` is where it is asked."""

    process: Server
    port: int
    log: Path
    preflight_s: float
    host: str = HOST
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        port: int,
        log: Path,
        preflight_s: float,
        bind: str = HOST,
        api_key: str | None = None,
    ) -> VllmServer:
        """Raises SpecError where the program can't be executed."""
        command = [*argv, "--host", bind, "--port", str(port)]
        host = HOST if bind in EVERYWHERE else bind
        return cls(Server.start(command, env, log, log.parent), port, log, preflight_s, host, api_key)

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def has_exited(self) -> bool:
        return self.process.exit() is not None

    def await_ready(self, limit_s: float) -> str:
        """Waits until one request is answered. Returns the model's name for requests; raises Died (phase startup)."""
        deadline_s = time.monotonic() + limit_s
        while not self._says_healthy():
            if self.has_exited():
                raise self.died("startup")
            if time.monotonic() > deadline_s:
                raise self.died("startup", timed_out=True)
            time.sleep(POLL_S)
        try:
            (model, *_) = served_models(self.base_url, timeout_s=self.preflight_s, api_key=self.api_key)
        except TimeoutError:
            raise self.died("startup", timed_out=True) from None
        except (OSError, ValueError):
            raise self._dying("startup") from None
        self._prove_serving(model, "startup")
        return model

    def answers(self, model: str, questions: Questions, timeout_s: float) -> Answers:
        """To each alone, so that no batch has a part in it. Raises Died (phase load) where there is none in time."""
        return tuple(self._answer(model, prompt, questions.tokens, timeout_s) for prompt in questions.prompts)

    def _answer(self, model: str, prompt: str, tokens: int, timeout_s: float) -> Answer:
        asked = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        try:
            answer = ask(self.base_url, "/v1/completions", timeout_s=timeout_s, body=asked, api_key=self.api_key)
        except TimeoutError:
            raise self.died("load", timed_out=True) from None
        except OSError:
            raise self._dying("load") from None
        if answer.status != 200:
            raise self._dying("load")
        return tuple(answer.body["choices"][0]["token_ids"])

    def check_after_load(self, model: str, timelines: Sequence[Timeline]) -> None:
        """Raises Died (phase load) where the server died or hangs. What a live server failed is its result."""
        if self.has_exited():
            raise self.died("load")
        if any(t.end in (End.FAILED, End.TIMED_OUT) for t in timelines):
            self._prove_serving(model, "load")

    def died(self, phase: Phase, timed_out: bool = False) -> Died:
        ended = self.process.exit()
        return Died(
            Evidence(
                phase=phase,
                exit_code=ended.code if ended else None,
                signal=ended.signal if ended else None,
                timed_out=timed_out,
                log_tail=self.log_tail(),
            )
        )

    def log_tail(self) -> str:
        with self.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")

    def _says_healthy(self) -> bool:
        try:
            return ask(self.base_url, "/health", timeout_s=QUESTION_TIMEOUT_S).status == 200
        except OSError:
            return False

    def _prove_serving(self, model: str, phase: Phase) -> None:
        try:
            answer = ask(
                self.base_url,
                "/v1/completions",
                timeout_s=self.preflight_s,
                body=one_token(model),
                api_key=self.api_key,
            )
        except TimeoutError:
            raise self.died(phase, timed_out=True) from None
        except OSError:
            raise self._dying(phase) from None
        if answer.status >= 500:
            raise self._dying(phase)
        if answer.status != 200 and phase == "startup":
            fix = "sloguard measures models that generate text."
            raise SpecError("--model", model, f"the server refuses to complete a prompt: {answer.text}", fix)

    def _dying(self, phase: Phase) -> Died:
        """The same as `died`, after a moment for the server to end and so to show how."""
        deadline_s = time.monotonic() + DYING_S
        while not self.has_exited() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        return self.died(phase)
