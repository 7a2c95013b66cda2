"""Puts the application of ray_app.py on a Ray cluster, and takes it down again."""

# pyright: reportMissingImports=false
# (Ray is optional)

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from sloguard.engine.ray_cluster import FLAG, cluster, places
from sloguard.engine.serving import OnServing, check_port, draining
from sloguard.errors import SpecError
from sloguard.fleet.ray_app import APP, GATEWAY, REPLICA, Told, build

POLL_S = 0.5
ASK_S = 5.0
KEEP_ALIVE_S = 300
GONE = (KeyError, TimeoutError, RayError, RayServeException)  # as Ray says it in one place or another


def run(told: Mapping[str, Any], address: str | None, host: str, port: int, drain_s: float, say: OnServing) -> None:
    """Serves until it is interrupted (KeyboardInterrupt), and then drains. `address` None starts a Ray of its own on
    this machine. Raises SpecError where the cluster can't be reached or lacks what a replica needs.
    """
    with cluster(address) as ray:
        was_there = _check_ours(address, host, port)
        _check_room(told, places(ray, told["gpus"]), address, say)
        try:
            if not was_there:
                serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=KEEP_ALIVE_S))
            say(f"Ray Serve is starting {told['replicas']} replicas")
            _deploy(told)
            say(f"served at http://{host}:{port}/v1")
            while True:
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one ends the wait
                asyncio.run(_drain(drain_s, say))
        finally:
            with suppress(KeyboardInterrupt, *GONE):
                serve.delete(APP)
            if not was_there:
                with suppress(KeyboardInterrupt, *GONE):
                    serve.shutdown()


def _check_ours(address: str | None, host: str, port: int) -> bool:
    """Whether Ray Serve is there already. Raises SpecError where it listens elsewhere or has what is in our way."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        check_port(host, port)
        return False
    there = client.http_config
    if (there.host, there.port) != (host, port):
        problem = f"Ray Serve listens at {there.host}:{there.port} already"
        raise SpecError("--port", port, problem, f"Give --host {there.host} --port {there.port}, or end it first.")
    for name, found in serve.status().applications.items():
        if name == APP or client.get_serve_details()["applications"][name]["route_prefix"] == "/":
            problem = f"Ray Serve has an application {name!r} ({found.status}) there, which would be replaced"
            raise SpecError(FLAG, address, problem, "End it, or use another cluster.")
    return True


def _check_room(told: Mapping[str, Any], there: float, address: str | None, say: OnServing) -> None:
    """Raises SpecError where there never will be enough; a cluster may grow."""
    if there >= told["replicas"]:
        return
    problem = f"there is room for {there:.0f} of them with {told['gpus']} GPUs each"
    if address is None:
        raise SpecError("--replicas", told["replicas"], problem, "Give fewer.")
    say(f"{told['replicas']} replicas are asked for, and {problem} now; the rest wait for more machines")


def _deploy(told: Mapping[str, Any]) -> None:
    """Returns once it serves."""
    try:
        serve.run(build(told), name=APP, route_prefix="/", blocking=False)
    except (RuntimeError, TimeoutError) as error:
        found = serve.status().applications.get(APP)
        deployment = found.deployments.get(REPLICA) if found else None
        lines = (deployment.message if deployment and deployment.message else str(error)).strip().splitlines()
        raise SpecError("--replicas", told["replicas"], lines[-1], "See the log above.") from error


async def _drain(drain_s: float, say: OnServing) -> None:
    deadline_s = time.monotonic() + drain_s
    said = -1
    with suppress(*GONE):
        gateways = serve.get_deployment_handle(GATEWAY, APP)
        while time.monotonic() < deadline_s:
            left = sum(await gateways.broadcast("drain").results_async(timeout_s=ASK_S))
            if not left:
                break
            if left != said:
                said = left
                say(draining(left))
            await asyncio.sleep(POLL_S)


def config_yaml(told: Mapping[str, Any], host: str, port: int) -> str:
    """For `serve deploy` and KubeRay's RayService (`serveConfigV2`)."""
    args = {name: value for name, value in Told.model_validate(told).model_dump().items() if value is not None}
    app = {"name": APP, "route_prefix": "/", "import_path": "sloguard.fleet.ray_app:build", "args": args}
    http = {"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_S}
    return yaml.safe_dump({"http_options": http, "applications": [app]}, sort_keys=False)
