"""What one would write on Ray Serve without sloguard: replicas that call their engine, an ingress that calls a replica
by Ray's own router (power of two choices by queue length), token by token. Used by the fleet_*.py scripts; not part of
the package.
"""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import ray
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from sloguard.engine.http_probe import ask
from sloguard.engine.processes import PARENT, Server
from sloguard.engine.vllm_server import free_port

MOST_REQUESTS = 100_000
app = FastAPI()


@serve.deployment(max_ongoing_requests=MOST_REQUESTS, ray_actor_options={"num_cpus": 0.1})
class Replica:
    def __init__(self, directory: str, emulated: list[str]) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        argv = [sys.executable, "-m", "sloguard", "serve", *emulated, "--port", str(port)]
        log = Path(directory) / f"engine-{port}.log"
        self._server = Server.start(argv, {**os.environ, PARENT: str(os.getpid())}, log, log.parent)
        while not self._is_ready():
            time.sleep(0.1)
        self._session: aiohttp.ClientSession | None = None

    def _is_ready(self) -> bool:
        try:
            return ask(self._url, "/ready", timeout_s=2.0).status == 200
        except OSError:
            return False

    async def answer(self, path: str, body: bytes) -> AsyncGenerator[Any]:
        """The status, and then what comes, as it comes."""
        self._session = self._session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with self._session.post(self._url + path, data=body, headers={"Content-Type": "application/json"}) as got:
            yield got.status
            async for chunk in got.content.iter_any():
                yield chunk

    def __del__(self) -> None:
        self._server.stop(0.0)


@serve.deployment(max_ongoing_requests=MOST_REQUESTS, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Ingress:
    def __init__(self, replicas: DeploymentHandle, model: str) -> None:
        self._replicas, self._model = replicas.options(stream=True), model

    @app.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self._model, "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        body = await request.body()
        coming = self._replicas.answer.remote("/v1/completions", body)
        status = await anext(coming)
        if json.loads(body).get("stream"):
            return StreamingResponse(coming, status, media_type="text/event-stream")
        return Response(b"".join([chunk async for chunk in coming]), status, media_type="application/json")


def main() -> None:
    """`python benchmarks/fleet_plain_ray.py PORT REPLICAS DIRECTORY FLAG...`, until SIGTERM; the flags are of
    `sloguard serve --engine emulator`.
    """
    port, replicas, directory, emulated = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    model = emulated[emulated.index("--model") + 1]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, object_store_memory=100 << 20, num_cpus=4)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    bound = Replica.options(num_replicas=replicas).bind(directory, emulated)
    serve.run(Ingress.bind(bound, model), name="plain", route_prefix="/")
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
