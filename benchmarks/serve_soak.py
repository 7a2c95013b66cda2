"""Does anything leak? A server under more load than it can carry, whose clients hang up at random.

    python benchmarks/serve_soak.py [--model models/demo-tiny] [--rate 60] [--minutes 20]

Poisson arrivals of the three classes of serve_arms.py; three clients in ten hang up, at a random instant, before or
during their answer. Give a --rate of 1.2 times what the server can carry. Every half minute one line: what the
processes hold of memory, what the scheduler keeps of requests, what the KV cache holds, what was refused. At the end
the server is left alone, and all must have gone back to nothing; memory must not have grown by more than --most-growth
MiB after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from serve_arms import CLASSES, OUTPUT_TOKENS, REPO, Arm, Class, Servers, serving, why

from sloguard.engine.lend import scheduler_arguments
from sloguard.engine.vllm_server import Died
from sloguard.rng import stream

HANG_UP = 0.3  # of the clients
LONGEST_STAY_S = 4.0  # of those
SAMPLE_S = 30.0
EMPTY = (
    "sloguard_jobs",
    "sloguard_tracked_requests",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-tiny"))
    parser.add_argument("--rate", type=float, default=60.0, help="requests/s")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--most-growth", type=float, default=40.0, help="MiB")
    parser.add_argument("--logs", type=Path, default=Path("serve-soak"))
    options = parser.parse_args()
    boards = (options.logs / "boards").absolute()
    boards.mkdir(parents=True, exist_ok=True)
    told = {"policy": "sloguard", "boards": str(boards)}
    arm = Arm("plugin", {**scheduler_arguments(told), "middleware": "sloguard.plugins.door.Door"})
    door = {"SLOGUARD_DOOR": json.dumps({"boards": str(boards), "max_wait_s": 10.0, "max_requests": 400})}
    try:
        with serving(options.vllm_python, options.model, options.logs, environment=door) as servers:
            servers.start([arm])
            return asyncio.run(_soak(servers, arm, options))
    except Died as error:
        print(why(error), file=sys.stderr)
        return 1


async def _soak(servers: Servers, arm: Arm, options: argparse.Namespace) -> int:
    url, model = servers.address(arm)
    host, _, port = url.removeprefix("http://").partition(":")
    rng = stream(0, "soak")
    ends: Counter[str] = Counter()
    under_way: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    memory_mib: list[float] = []
    sampled = asyncio.create_task(_sample(servers, arm, ends, began_s, memory_mib))
    due_s = began_s
    while due_s < began_s + 60 * options.minutes:
        due_s += rng.exponential(1 / options.rate)
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        kind = CLASSES[int(rng.choice(len(CLASSES), p=[kind.share for kind in CLASSES]))]
        stay_s = float(rng.uniform(0, LONGEST_STAY_S)) if rng.random() < HANG_UP else None
        task = asyncio.create_task(_client(host, int(port), _body(model, kind, rng), stay_s, ends))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    sampled.cancel()
    await asyncio.sleep(5)
    left = held(servers, arm)
    grown = growth_mib(memory_mib)
    print(f"ends: {dict(ends)}\nleft behind: {left}\nmemory grew by {grown:.1f} MiB after the first quarter")
    return 0 if not any(left.values()) and grown <= options.most_growth else 1


async def _sample(servers: Servers, arm: Arm, ends: Counter[str], began_s: float, memory_mib: list[float]) -> None:
    while True:
        await asyncio.sleep(SAMPLE_S)
        memory_mib.append(servers.memory_bytes(arm) / 2**20)
        now = await asyncio.to_thread(held, servers, arm)
        at_s = asyncio.get_running_loop().time() - began_s
        names = [name.rpartition(":")[2].removeprefix("sloguard_") for name in now]
        shown = "  ".join(f"{name} {value:g}" for name, value in zip(names, now.values(), strict=True))
        print(f"{at_s / 60:5.1f} min  {memory_mib[-1]:7.1f} MiB  {shown}  {dict(ends)}", flush=True)


def held(servers: Servers, arm: Arm) -> dict[str, float]:
    """Raises KeyError for what the server does not tell: that would not be nothing."""
    found = servers.samples(arm)
    values = {name: [value for key, value in found.items() if key.partition("{")[0] == name] for name in EMPTY}
    if untold := [name for name, of in values.items() if not of]:
        raise KeyError(f"not among the server's metrics: {', '.join(untold)}")
    return {name: sum(of) for name, of in values.items()}


def growth_mib(memory_mib: list[float]) -> float:
    """From the second quarter's mean to the last quarter's."""
    quarter = max(1, len(memory_mib) // 4)
    return float(np.mean(memory_mib[-quarter:]) - np.mean(memory_mib[quarter : 2 * quarter])) if memory_mib else 0.0


def _body(model: str, kind: Class, rng: np.random.Generator) -> dict[str, Any]:
    limits = {"slo_ttft_ms": kind.slo.ttft_s, "slo_tpot_ms": kind.slo.tpot_s}
    return {
        "model": model,
        "prompt": rng.integers(5, 900, kind.prompt_tokens).tolist(),
        "max_tokens": int(rng.integers(*OUTPUT_TOKENS)),
        "ignore_eos": True,
        "stream": True,
        "vllm_xargs": {name: limit_s * 1000 for name, limit_s in limits.items() if limit_s is not None},
    }


async def _client(host: str, port: int, body: dict[str, Any], stay_s: float | None, ends: Counter[str]) -> None:
    try:
        async with asyncio.timeout(stay_s):
            ends[await _answer(host, port, body)] += 1
    except TimeoutError:
        ends["hung up"] += 1
    except OSError as error:
        ends[type(error).__name__] += 1


async def _answer(host: str, port: int, body: dict[str, Any]) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        payload = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
        status = (await reader.readline()).split()[1].decode()
        while await reader.read(65536):
            pass
        return status
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(main())
