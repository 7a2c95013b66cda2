"""What the way to a replica costs: the time of a request by each way, less that straight to the replica.

    python benchmarks/fleet_overhead.py [--ways direct,local,ray,plain-ray] [--requests 2000]

One emulated replica, which answers one token at once, behind: nothing; `--backend local`; `--backend ray`; Ray Serve as
it is (fleet_plain_ray.py). Keep-alive connections, one request after the other on each, at 1 and 32 connections.
RAY_SERVE_ENABLE_HA_PROXY=1 in the environment gives Ray Serve its HAProxy.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
from fleet_arms import REPO, fleet
from fleet_routers import await_answer

from sloguard.engine.vllm_server import free_port

FAST = ("--engine", "emulator", "--model", "Qwen/Qwen2-1.5B", "--gpu", "H100")  # a token takes it some 3 ms
CONNECTIONS = (1, 32)
BODY = {"model": FAST[3], "prompt": "a", "max_tokens": 1}
WARM = 200  # requests, of each way


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default="direct,local,ray,plain-ray")
    parser.add_argument("--requests", type=int, default=2000, help="at each number of connections")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("fleet-overhead"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ways = options.ways.split(",")
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(options.rounds):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            with _served(way, options.out) as url:
                asyncio.run(_ask(url, 1, WARM))
                for connections in CONNECTIONS:
                    began_s = time.perf_counter()
                    took_s = asyncio.run(_ask(url, connections, options.requests))
                    rates.setdefault((way, connections), []).append(len(took_s) / (time.perf_counter() - began_s))
                    found.setdefault((way, connections), []).append(took_s)
    print("| way | connections | p50, ms | p99, ms | p50 over direct, ms | requests/s |\n| --- |" + " ---: |" * 5)
    for connections in CONNECTIONS:
        base = np.median(np.concatenate(found["direct", connections])) if "direct" in ways else float("nan")
        for way in ways:
            took_s = np.concatenate(found[way, connections])
            p50, p99 = np.percentile(took_s, (50, 99)) * 1000
            rate = np.mean(rates[way, connections])
            over = p50 - base * 1000
            print(f"| {way} | {connections} | {p50:.2f} | {p99:.2f} | {over:.2f} | {rate:.0f} |")
    return 0


@contextmanager
def _served(way: str, out: Path) -> Iterator[str]:
    if way in ("local", "ray"):
        with fleet([*FAST, "--backend", way], 1, out / f"{way}.log") as served:
            yield served.url
        return
    port = free_port()
    script = [str(REPO / "benchmarks" / "fleet_plain_ray.py"), str(port), "1", str(out), *FAST]
    direct = ["-m", "sloguard", "serve", *FAST, "--port", str(port)]
    with (out / f"{way}.log").open("wb") as log:
        argv = [sys.executable, *(direct if way == "direct" else script)]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        await_answer(process, port, out / f"{way}.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def _ask(url: str, connections: int, requests: int) -> np.ndarray:
    """Seconds of each request."""
    took_s: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(count: int) -> None:
            for _ in range(count):
                began_s = time.perf_counter()
                async with session.post(f"{url}/v1/completions", json=BODY) as answer:
                    await answer.read()
                    answer.raise_for_status()
                took_s.append(time.perf_counter() - began_s)

        await asyncio.gather(*(client(requests // connections) for _ in range(connections)))
    return np.array(took_s)


if __name__ == "__main__":
    sys.exit(main())
