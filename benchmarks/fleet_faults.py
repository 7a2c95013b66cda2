"""What becomes of answers when a replica is killed, or hangs, in the middle of them?

    python benchmarks/fleet_faults.py [--backend local] [--rounds 10] [--clients 6] [--model models/demo-tiny]

Two real vLLM servers (CPU) behind one endpoint. What each prompt is answered without faults, greedily, is known from
before. Then, `--rounds` times each: `--clients` answers are streamed at once, half of them chat, and while they are
under way all processes of one replica's engine get SIGKILL, or SIGSTOP (and SIGCONT once all answers have ended). The
next round waits until both replicas are up again. An answer is lost where it ends without its last token, wrong where
its text or its usage is not the same.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from fleet_arms import REPO, Fleet, fleet

PROMPTS = 12
ENGINE = "vllm.entrypoints.openai.api_server"
ARGUMENTS = ("enforce_eager=true", "max_model_len=2048", "gpu_memory_utilization=0.05", "kv_cache_memory_bytes=64M")
LEAST_WAIT_S, MOST_WAIT_S = 0.5, 2.0  # from the start of the answers to the fault


@dataclass(frozen=True, slots=True)
class Answer:
    """`gap_s` is the longest time between two of its tokens, or before its first."""

    text: str
    usage: tuple[int, int]
    finish: str | None
    gap_s: float
    error: str = ""

    def same(self, other: Answer) -> bool:
        return (self.text, self.usage, self.finish) == (other.text, other.usage, other.finish)


@dataclass(slots=True)
class Wave:
    """One answer for each client, all at once."""

    fleet: Fleet
    expected: list[Answer]
    tokens: int
    got: dict[int, Answer] = field(default_factory=dict[int, Answer])

    def start(self, clients: int, first: int) -> list[threading.Thread]:
        asked = [(first + number) % PROMPTS for number in range(clients)]
        threads = [threading.Thread(target=self._take, args=(which,)) for which in asked]
        for thread in threads:
            thread.start()
        return threads

    def _take(self, which: int) -> None:
        self.got[which] = stream(self.fleet, which, self.tokens)

    def problems(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for which, answer in self.got.items():
            if answer.error or answer.finish is None:
                found.append(("lost", f"prompt {which}: {answer.error or 'ended early'}"))
            elif not answer.same(self.expected[which]):
                found.append(("wrong", f"prompt {which}: {answer} for {self.expected[which]}"))
        return found

    @property
    def gap_s(self) -> float:
        return max(answer.gap_s for answer in self.got.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-tiny"))
    parser.add_argument("--backend", default="local", choices=("local", "ray"))
    parser.add_argument("--rounds", type=int, default=10, help="of each fault")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=300, help="of an answer")
    parser.add_argument("--out", type=Path, default=Path("fleet-faults"), help="directory of logs")
    options = parser.parse_args()
    words = ["--model", options.model, "--engine-python", options.vllm_python, "--backend", options.backend]
    words += [word for pair in ARGUMENTS for word in ("--engine-arg", pair)]
    with fleet(words, 2, options.out / "serve.log") as served:
        expected = [stream(served, which, options.tokens) for which in range(PROMPTS)]
        print(
            "| fault | times | answers | lost | wrong | longest gap without, s | with a fault, p50 / most, s |", end=""
        )
        print(" both up again, p50 / most, s |\n| --- |" + " ---: |" * 7)
        bad = [line for name in ("SIGSTOP", "SIGKILL") for line in _faults(name, served, expected, options)]
    print("\n".join(bad))
    return 1 if bad else 0


def _faults(name: str, served: Fleet, expected: list[Answer], options: Any) -> list[str]:
    """One row of the table. Returns what went wrong."""
    gaps_s: list[float] = []
    mended_s: list[float] = []
    problems: list[tuple[str, str]] = []
    calm = Wave(served, expected, options.tokens)
    for thread in calm.start(options.clients, 0):
        thread.join()
    for turn in range(options.rounds):
        wave = Wave(served, expected, options.tokens)
        threads = wave.start(options.clients, turn)
        time.sleep(LEAST_WAIT_S + (MOST_WAIT_S - LEAST_WAIT_S) * turn / options.rounds)
        victims = _engine(served, turn % 2)
        for victim in victims:
            victim.send_signal(signal.Signals[name])
        began_s = time.monotonic()
        for thread in threads:
            thread.join()
        if name == "SIGSTOP":
            for victim in victims:
                victim.send_signal(signal.SIGCONT)
        while name == "SIGKILL" and served.count("sloguard_replica_up") > 1:  # until it is noticed
            time.sleep(0.05)
        served.await_up(2)
        mended_s.append(time.monotonic() - began_s)
        gaps_s.append(wave.gap_s)
        problems += wave.problems()
    ends = Counter(kind for kind, _ in problems)
    print(
        f"| {name} | {options.rounds} | {options.rounds * options.clients} | {ends['lost']} | {ends['wrong']} | "
        f"{calm.gap_s:.2f} | {median(gaps_s):.2f} / {max(gaps_s):.2f} | {median(mended_s):.0f} / {max(mended_s):.0f} |",
        flush=True,
    )
    return [what for _, what in problems]


def _engine(served: Fleet, which: int) -> list[psutil.Process]:
    """All processes of one replica's vLLM."""
    found: list[psutil.Process] = []
    for process in served.members():
        try:
            if ENGINE in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    leader = sorted(found, key=lambda process: process.pid)[which % len(found)]
    return [leader, *leader.children(recursive=True)]


def stream(served: Fleet, which: int, tokens: int) -> Answer:
    prompt = f"Tell me story number {which}"
    chat = which % 2
    body = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"temperature": 0, "ignore_eos": True, "max_tokens": tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    text, usage, finish, error, gap_s, last_s = "", (0, 0), None, "", 0.0, time.monotonic()
    try:
        with closing(served.connect()) as connection:
            path = "/v1/chat/completions" if chat else "/v1/completions"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                return Answer("", usage, None, 0.0, f"status {response.status}: {response.read().decode()}")
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                now_s = time.monotonic()
                gap_s, last_s = max(gap_s, now_s - last_s), now_s
                event = json.loads(line[6:])
                error = error or str(event.get("error", ""))
                for choice in event.get("choices", ()):
                    text += choice["delta"].get("content") or "" if chat else choice["text"]
                    finish = choice["finish_reason"] or finish
                if told := event.get("usage"):
                    usage = told["prompt_tokens"], told["completion_tokens"]
    except OSError as broken:
        error = repr(broken)
    return Answer(text, usage, finish, gap_s, error)


if __name__ == "__main__":
    sys.exit(main())
