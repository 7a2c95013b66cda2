"""Replicas on a Ray cluster: Ray Serve starts, watches, replaces and scales them; requests go straight to them.

    client -> Ray Serve's proxy -> Gateway (an ingress deployment) -> HTTP -> the server that a Replica keeps

A Replica is an actor with GPUs, and in it a `sloguard serve` of its own. Gateways learn where the servers are from what
replicas tell Ray Serve's controller, which passes it on to every router (`SloRequestRouter`). Tokens don't pass through
Ray's handles: docs/design.md says why.
"""

# pyright: reportMissingImports=false
# (Ray is optional)

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from math import ceil
from typing import Any

import ray
from pydantic import BaseModel
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from ray.serve.schema import LoggingConfig

from sloguard.engine.http_probe import ask
from sloguard.engine.processes import GRACE_S, PARENT, Server, reap_orphans
from sloguard.engine.ray_cluster import THREADS
from sloguard.engine.serving import forwarded, run_dir
from sloguard.engine.slo_classes import SloClasses, to_toml
from sloguard.engine.vllm_server import free_port
from sloguard.fleet import ray_known
from sloguard.fleet.link import HttpLink, session
from sloguard.fleet.local import last_line
from sloguard.fleet.members import Members
from sloguard.fleet.server import gateway_app
from sloguard.plugins.asgi import App
from sloguard.plugins.door import STATUS_PATH
from sloguard.plugins.options import API_KEY, CONTROL_TOKEN, DOOR, DoorOptions
from sloguard.plugins.states import read
from sloguard.route.headroom import pressure

APP, REPLICA, GATEWAY = "sloguard", "Replica", "Gateway"
FOLLOW_S = 0.1
ASK_S = 2.0
HEALTH_S, HEALTH_TIMEOUT_S = 1.0, 5.0
TARGET_PRESSURE = 0.7  # of what the promises leave; above it more replicas are wanted
PRESSURE = "pressure"
LOOK_BACK_S = 15.0
MOST_STARTS = 3  # that fail, before a deployment has failed


class Told(BaseModel):
    """The whole application, as the `args` of a Serve config. `words` start one replica: the flags of `sloguard serve`
    that are neither about many nor about classes, which `door` has. `gpus` and `cpus` are a replica's.
    """

    words: list[str]
    door: dict[str, Any]
    replicas: int = 1
    most_replicas: int | None = None  # None: so many as `replicas`, whatever comes
    gpus: float = 0
    cpus: float = 1
    router: str = "headroom"
    api_key_env: str | None = None
    start_timeout_s: float = 900.0
    drain_timeout_s: float = 30.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 300.0  # a start takes minutes: what is there stays for a while


class Replica:
    """Keeps one server. Its start is over when the server is ready; a server that ends or hangs ends the replica."""

    def __init__(self, told: Told) -> None:
        reap_orphans()
        self._hangs = False
        self._told, self._token, self._port = told, secrets.token_urlsafe(24), free_port()
        self._host = ray.util.get_node_ip_address()
        self._stack = ExitStack()
        place = self._stack.enter_context(run_dir())
        self._log, classes = place / "replica.log", place / "classes.toml"
        classes.write_text(to_toml(SloClasses(default=told.door["default_class"], classes=told.door["slo_classes"])))
        words = ["--host", self._host, "--port", str(self._port), "--api-key-env", CONTROL_TOKEN]
        words += ["--slo-classes", str(classes)]
        argv = [sys.executable, "-m", "sloguard", "serve", *told.words, *words]
        inherited = {name: value for name, value in os.environ.items() if name != THREADS}
        env = {**inherited, CONTROL_TOKEN: self._token, PARENT: str(os.getpid())}
        self._server = Server.start(argv, env, self._log, place)
        self._stack.enter_context(forwarded(self._log, sys.stdout.buffer))
        self._await_ready(time.monotonic() + told.start_timeout_s)

    def _await_ready(self, deadline_s: float) -> None:
        while not self._is_ready():
            if self._server.exit() is not None:
                raise RuntimeError(f"the server ended before it served: {last_line(self._log)}")
            if time.monotonic() > deadline_s:
                self._server.stop()
                raise RuntimeError(f"the server was not ready in {self._told.start_timeout_s:.0f} s")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return ask(self._url, "/ready", timeout_s=ASK_S).status == 200
        except OSError:
            return False

    @property
    def _url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def record_replica_metadata(self) -> dict[str, Any]:
        """Where it is, for those who route. Ray Serve asks for it once, and tells it with the replica."""
        return {"url": self._url, "token": self._token}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How much of what its promises leave is taken. Ray Serve asks for it."""
        status = await asyncio.to_thread(ask, self._url, STATUS_PATH, timeout_s=ASK_S, api_key=self._token)
        now_s = time.monotonic()
        return {PRESSURE: pressure(now_s, read(status.body["state"], now_s - status.body["age_s"]))}

    async def check_health(self) -> None:
        """Raises where the server is gone, or its engine hangs. Ray Serve asks, and replaces a replica that fails."""
        if self._server.exit() is not None:
            raise RuntimeError(f"the server ended: {last_line(self._log)}")
        try:
            ready = await asyncio.to_thread(ask, self._url, "/ready", timeout_s=ASK_S)
        except OSError as error:
            self._hangs = True
            raise RuntimeError(f"the server does not answer ({error or type(error).__name__})") from error
        self._hangs = False
        if ready.status != 200:
            raise RuntimeError(f"the server is not ready: {ready.text}")

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            # It drains, and then ends its engine; one that hangs can do neither.
            self._server.stop(0.0 if self._hangs else self._told.drain_timeout_s + 2 * GRACE_S)
            self._stack.close()


class SloRequestRouter(RequestRouter):
    """What Ray Serve keeps in every process that holds a handle to the replicas. Gateways need of it only where they
    are; a call by handle goes to where the fewest requests are under way.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        ray_known.servers = [
            ray_known.ServerAt(replica.replica_id.unique_id, told["url"], told["token"])
            for replica in replicas
            if (told := replica.replica_metadata)
        ]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where all are full
        return [self.select_available_replicas(candidate_replicas) or candidate_replicas]


def wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """How many replicas there should be, for Ray Serve's autoscaler: so many that the pressure on each is as wanted."""
    pressures = (context.aggregated_metrics or {}).get(PRESSURE, {}).values()
    there = context.current_num_replicas
    if not pressures:
        return max(there, context.capacity_adjusted_min_replicas), {}
    needed = ceil(sum(pressures) / len(pressures) * there / TARGET_PRESSURE)
    return min(max(needed, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas), {}


class _GatewayDeployment:
    def __init__(self, *_: object) -> None:
        """The replicas' handle is an argument so that Ray Serve deploys them first."""

    async def drain(self) -> int:
        """Lets nobody in any more. Returns how many requests are under way."""
        return self.app.drain()  # pyright: ignore[reportAttributeAccessIssue] - `serve.ingress` puts the app there


def _gateway(told: Told) -> App:
    secret = {API_KEY: os.environ.get(told.api_key_env, "")} if told.api_key_env else {}
    door = {DOOR: DoorOptions(**told.door).model_dump_json(exclude={"api_key", "control_token"})}
    options = DoorOptions.from_environment({**door, **secret, CONTROL_TOKEN: secrets.token_urlsafe(24)})
    return gateway_app(options, told.router, _from_ray)


@asynccontextmanager
async def _from_ray(members: Members) -> AsyncGenerator[None]:
    serve.get_deployment_handle(REPLICA, APP).options(method_name="check_health")  # so its router begins
    async with session() as client:
        following = asyncio.create_task(_follow(members, client))
        try:
            yield
        finally:
            following.cancel()


async def _follow(members: Members, client: Any) -> None:
    seen: Sequence[ray_known.ServerAt] = ()
    while True:
        if (found := ray_known.servers) != seen:
            seen = found
            members.set([HttpLink(client, at.name, at.url, at.token) for at in found])
        await asyncio.sleep(FOLLOW_S)


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of a Serve config: `import_path: sloguard.fleet.ray_app:build`."""
    told = Told.model_validate(args)
    scale = {"num_replicas": told.replicas}
    if told.most_replicas is not None:
        policy = {"policy_function": "sloguard.fleet.ray_app:wanted"}
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=told.replicas,
                max_replicas=told.most_replicas,
                upscale_delay_s=told.upscale_delay_s,
                downscale_delay_s=told.downscale_delay_s,
                look_back_period_s=LOOK_BACK_S,
                policy=policy,
            )
        }
    shared = {
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "logging_config": LoggingConfig(enable_access_log=False),
    }
    replicas = serve.deployment(
        Replica,
        name=REPLICA,
        ray_actor_options={"num_gpus": told.gpus, "num_cpus": told.cpus},
        graceful_shutdown_timeout_s=told.drain_timeout_s + 3 * GRACE_S,
        request_router_config=RequestRouterConfig(request_router_class=SloRequestRouter),
        max_constructor_retry_count=MOST_STARTS,
        **scale,
        **shared,
    ).bind(told)

    def app() -> App:
        return _gateway(told)

    gateways = serve.deployment(
        serve.ingress(app)(_GatewayDeployment),
        name=GATEWAY,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=told.drain_timeout_s,
        **shared,
    )
    return gateways.bind(replicas)
