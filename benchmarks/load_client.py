"""How fast can a client offer an open loop before it is itself what is measured?

    python benchmarks/load_client.py [--quick] [--realtime] [--arms A,B] [--vllm-python P] [--guidellm-python P]

Every client offers the same requests at even gaps to the same fast streaming server (load_server.py), each in a
process of its own, one after the other in one run. The server notes when each request arrived; a request's lag is how
much later that was than its due instant, counted from the client's own most punctual request (so a constant offset is
no lag). A rate is held when all requests complete and the p99 of the lag is below 5 ms. The search doubles from
100 req/s until a rate is not held, then bisects; a rate that was not held is given a second chance.

Beside `vllm bench serve` and GuideLLM stand two more: the least that a client on aiohttp can do, and sloguard's own
parsers under asyncio, which is why sloguard has an epoll loop of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
LAG_LIMIT_S = 0.005
LOWEST_RATE = 100.0
HIGHEST_RATE = 51200.0

TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, special_tokens=["<eos>"])
words = ["".join(chr(97 + (i * j + k) % 26) for k in range(1 + j % 7)) for i in range(60) for j in range(60)]
tokenizer.train_from_iterator([" ".join(words)], trainer)
from transformers import PreTrainedTokenizerFast
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Probe:
    rate: float
    lag_p50_s: float
    lag_p99_s: float
    lost: int
    server_late_p99_s: float
    cpu_s: float  # of the client, for each request

    @property
    def held(self) -> bool:
        return not self.lost and self.lag_p99_s < LAG_LIMIT_S


@contextmanager
def process(command: Sequence[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("SHOW") else subprocess.DEVNULL,
        text=True,
        env={**os.environ, **env},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def line_from(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    line = running.stdout.readline().strip()
    if not line:
        raise RuntimeError("a process ended early; set SHOW=1 to see its errors")
    return line


def probe(arm: subprocess.Popen[str], url: str, rate: float, seconds: float) -> Probe:
    n = max(200, int(rate * seconds))
    read_log(url)
    assert arm.stdin is not None
    arm.stdin.write(f"{rate} {n}\n")
    arm.stdin.flush()
    completed, cpu_s = line_from(arm).split()[1:]
    log = read_log(url)
    arrived_s = np.sort(log["arrived_s"])[-n:]  # whatever came before was the client's own check of the server
    lag_s = arrived_s - np.arange(len(arrived_s)) / rate
    lag_s -= lag_s.min()
    late_s = np.percentile(log["late_s"], 99) if log["late_s"] else 0.0
    p50, p99 = np.percentile(lag_s, (50, 99))
    return Probe(rate, float(p50), float(p99), n - int(completed), float(late_s), float(cpu_s) / n)


def read_log(url: str) -> dict[str, list[float]]:
    with urllib.request.urlopen(f"{url}/log") as answer:
        return json.load(answer)


def search(arm: subprocess.Popen[str], url: str, seconds: float, bisections: int) -> tuple[Probe | None, Probe | None]:
    """The highest rate held and the lowest that was not."""

    def try_twice(rate: float) -> Probe:
        first = probe(arm, url, rate, seconds)
        return first if first.held else min(first, probe(arm, url, rate, seconds), key=lambda p: (p.lost, p.lag_p99_s))

    held, failed, rate = None, None, LOWEST_RATE
    while failed is None and rate <= HIGHEST_RATE:
        found = try_twice(rate)
        held, failed = (found, None) if found.held else (held, found)
        rate *= 2
    for _ in range(bisections if held and failed else 0):
        assert held is not None
        assert failed is not None
        found = try_twice((held.rate + failed.rate) / 2)
        held, failed = (found, failed) if found.held else (held, found)
    return held, failed


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast can a client offer an open loop?")
    parser.add_argument("--quick", action="store_true", help="shorter probes and a coarser search")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run server and client under SCHED_RR, on a machine with other work (root)",
    )
    parser.add_argument("--arms", default="sloguard,vllm,guidellm,aiohttp,asyncio")
    parser.add_argument("--vllm-python", default=str(HERE.parent / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--guidellm-python", default="")
    options = parser.parse_args()
    seconds, bisections = (1.5, 2) if options.quick else (4.0, 4)
    pythons = {"vllm": options.vllm_python, "guidellm": options.guidellm_python}
    table = Table(title=f"Open-loop rate held with p99 lag < {LAG_LIMIT_S * 1000:g} ms", title_justify="left")
    for name in (
        "client",
        "held, req/s",
        "p99 lag, ms",
        "not held",
        "p99 lag, ms ",
        "lost",
        "server late p99, ms",
        "CPU, us/req",
    ):
        table.add_column(name, justify="left" if name == "client" else "right")
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as tokenizer, process([sys.executable, str(HERE / "load_server.py")]) as server:
        url = f"http://127.0.0.1:{line_from(server)}"
        if options.realtime:
            os.sched_setscheduler(server.pid, os.SCHED_RR, os.sched_param(1))
        tokenizer_python = next((p for p in pythons.values() if p and Path(p).exists()), None)
        if tokenizer_python:
            subprocess.run([tokenizer_python, "-c", TOKENIZER, tokenizer], check=True, capture_output=True)
        for name in options.arms.split(","):
            python = pythons.get(name, sys.executable)
            if not python or not Path(python).exists():
                table.add_row(name, "not installed")
                continue
            command = [python, str(HERE / "load_arms.py"), name, url, tokenizer]
            with process(command, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", OPENAI_API_KEY="none") as arm:
                line_from(arm)
                if options.realtime:  # not before, for loading a client's libraries is nobody's latency
                    os.sched_setscheduler(arm.pid, os.SCHED_RR, os.sched_param(1))
                held, failed = search(arm, url, seconds, bisections)
            table.add_row(name, *cells(held), *cells(failed), *tail(failed), cpu_cell(held, failed))
            console.print(f"{name}: held {held}, not held {failed}")
    console.print(table)
    console.print(f"Load average {os.getloadavg()[0]:.1f}; scheduling: {'SCHED_RR' if options.realtime else 'normal'}")
    console.print("CPU: of the client, with what it does before and after the load; GuideLLM's holds its start-up too.")
    cores = os.cpu_count()
    console.print(
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {cores} cores ({cpu()})"
    )
    console.print(
        "Server and client share these cores. Server late: end of a decode step after the instant it was for."
    )


def cells(found: Probe | None) -> tuple[str, str]:
    return (f"{found.rate:.0f}", f"{found.lag_p99_s * 1000:.2f}") if found else ("-", "-")


def tail(failed: Probe | None) -> tuple[str, str]:
    return (str(failed.lost), f"{failed.server_late_p99_s * 1000:.1f}") if failed else ("-", "-")


def cpu_cell(held: Probe | None, failed: Probe | None) -> str:
    found = held or failed
    return f"{found.cpu_s * 1e6:.0f}" if found else "-"


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
