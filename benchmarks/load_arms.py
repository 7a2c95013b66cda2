"""The clients that benchmarks/load_client.py compares, each in a process of its own.

    python benchmarks/load_arms.py ARM URL [TOKENIZER]

reads `RATE N` lines, offers N requests (32 tokens in, 16 out) at an even RATE, and answers `done COMPLETED CPU_S` to
each: how many completed, and the processor time it took with everything before and after the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROMPT, OUTPUT = 32, 16
BODY = {
    "model": "m",
    "prompt": list(range(300, 300 + PROMPT)),
    "max_tokens": OUTPUT,
    "stream": True,
    "ignore_eos": True,
}
Arm = Callable[[float, int], int]


def sloguard(url: str, _tokenizer: str) -> Arm:
    from sloguard.load.drive import offer
    from sloguard.load.target import Target
    from sloguard.metrics import summarise
    from sloguard.request import Request, Stage

    def run(rate: float, n: int) -> int:
        requests = [Request(str(i), i / rate, (Stage(PROMPT, OUTPUT),)) for i in range(n)]
        return summarise(offer(Target(url, "m"), requests, seed=0).timelines).completed

    return run


def vllm(url: str, tokenizer: str) -> Arm:
    """`vllm bench serve`, its own code and its own options; even gaps by `--burstiness inf`."""
    from vllm_bench import bench

    def run(rate: float, n: int) -> int:
        options = f"--backend openai --base-url {url} --endpoint /v1/completions --model m --tokenizer {tokenizer}"
        options += f" --dataset-name random --random-input-len {PROMPT} --random-output-len {OUTPUT} --num-prompts {n}"
        options += f" --request-rate {rate} --burstiness inf --ignore-eos --disable-tqdm"
        return bench(options.split())["completed"]

    return run


def guidellm(url: str, tokenizer: str) -> Arm:
    """GuideLLM's own command (0.8), started once a run: it has no way to be asked twice."""

    def run(rate: float, n: int) -> int:
        with tempfile.TemporaryDirectory() as out:
            report = Path(out, "report.json")
            options = {
                "--backend": f"kind=openai_http,target={url},model=m,request_format=/v1/completions",
                "--profile": f"kind=constant,rate={rate}",
                "--constraint": f"kind=max_requests,count={n}",
                "--tokenizer": f"kind=huggingface_auto,model={tokenizer}",
                "--data": f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}",
                "--output": f"kind=json,path={report}",
            }
            command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
            command += [word for option in options.items() for word in option]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            return json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]["successful"]

    return run


def aiohttp(url: str, _tokenizer: str) -> Arm:
    """The least that a client on aiohttp does: one task a request, each read noted, nothing parsed."""
    import aiohttp as library

    async def one(session: library.ClientSession, due_s: float, body: bytes) -> bool:
        await asyncio.sleep(due_s - time.perf_counter())
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
            seen = [(time.perf_counter(), data) async for data in response.content.iter_any()]
        return bool(seen)

    async def offer(rate: float, n: int) -> int:
        body = json.dumps(BODY).encode()
        async with library.ClientSession(connector=library.TCPConnector(limit=0)) as session:
            start_s = time.perf_counter() + 0.05
            return sum(await asyncio.gather(*(one(session, start_s + i / rate, body) for i in range(n))))

    return lambda rate, n: asyncio.run(offer(rate, n))


def asyncio_protocol(url: str, _tokenizer: str) -> Arm:
    """sloguard's own parsers under asyncio's transports, instead of its own epoll loop."""
    from sloguard.load.http1 import ResponseReader, render_request
    from sloguard.load.tokens import TokenStream

    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({**BODY, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}).encode()
    payload = render_request("POST", "/v1/completions", {"Host": host}, body)

    class Exchange(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def begin(self, ended: Callable[[Exchange], None]) -> None:
            self.ended, self.reader, self.tokens = ended, ResponseReader(), TokenStream()
            self.transport.write(payload)  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            at_s = time.perf_counter()
            if part := self.reader.feed(data):
                self.tokens.feed(part, at_s)
            if self.reader.complete:
                self.ended(self)

    async def offer(rate: float, n: int) -> int:
        loop = asyncio.get_running_loop()
        idle = [(await loop.create_connection(Exchange, host, int(port)))[1] for _ in range(max(8, int(rate / 4)))]
        all_ended = loop.create_future()
        completed = 0

        def ended(exchange: Exchange) -> None:
            nonlocal completed
            idle.append(exchange)
            completed += 1
            if completed == n:
                all_ended.set_result(None)

        async def send_on_new() -> None:
            (await loop.create_connection(Exchange, host, int(port)))[1].begin(ended)

        def send() -> None:
            if idle:
                idle.pop().begin(ended)
            else:
                openings.append(loop.create_task(send_on_new()))

        openings: list[asyncio.Task[None]] = []
        start_s = loop.time() + 0.05
        for i in range(n):
            loop.call_at(start_s + i / rate, send)
        await all_ended
        for exchange in idle:
            exchange.transport.close()
        return completed

    return lambda rate, n: asyncio.run(offer(rate, n))


ARMS = {
    "sloguard": sloguard,
    "vllm": vllm,
    "guidellm": guidellm,
    "aiohttp": aiohttp,
    "asyncio": asyncio_protocol,
}


def cpu_s() -> float:
    return sum(os.times()[:4])  # this process's and its children's


def main() -> None:
    run = ARMS[sys.argv[1]](sys.argv[2], sys.argv[3])
    print("ready", flush=True)
    for line in sys.stdin:
        rate, n = line.split()
        gc.collect()
        gc.freeze()
        before_s = cpu_s()
        with contextlib.redirect_stdout(io.StringIO()):
            completed = run(float(rate), int(n))
        print(f"done {completed} {cpu_s() - before_s}", flush=True)


if __name__ == "__main__":
    main()
