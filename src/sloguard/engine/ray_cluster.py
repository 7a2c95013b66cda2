"""A Ray cluster: one that runs already, or one for this command alone. Needs the extra `ray`."""

from __future__ import annotations

import importlib
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from math import inf
from typing import Any

from sloguard.errors import MissingExtra, SpecError

OBJECT_STORE_BYTES = 100 << 20  # nothing large goes through it; Ray takes 30 % of the memory unasked
OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would kill a worker's children at once, and theirs would be left: ours end with their parent by themselves.
    "RAY_kill_child_processes_on_worker_exit": "false",
    # As on a Mac: all of Ray listens on loopback. It is read when Ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
THREADS = "OMP_NUM_THREADS"  # Ray sets it to the CPUs that an actor reserves: engines would run as nowhere else
CLIENT = "ray://"
FLAG = "--ray-address"
ANSWER_S = 5.0


def ray_for(address: str | None) -> Any:
    """The module `ray`, not connected. Before it is first imported: a cluster of one's own (`address` None) takes
    settings from the environment. Raises MissingExtra, and SpecError where nobody answers at an address.
    """
    if address is not None:
        _check_answers(address)
    else:
        for name, value in OWN.items():
            os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra(FLAG if address else "--backend ray", "ray") from error


@contextmanager
def cluster(address: str | None) -> Generator[Any]:
    """Yields the module `ray`, connected. `address` None starts a Ray of its own on this machine.

    Raises MissingExtra, and SpecError where no cluster answers.
    """
    if address is not None and address.startswith(CLIENT):
        fix = "Give this command on a machine of the cluster, e.g. with `ray job submit`, and `auto` as address."
        raise SpecError(FLAG, address, "is an address of Ray Client, by which nothing can be watched", fix)
    ray = ray_for(address)
    ending = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
        else:
            ray.init(address=address)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        why = " ".join(str(error).split())
        if address is None:
            raise SpecError("--backend", "ray", f"Ray can't be started here ({why})", "Use --backend local.") from error
        raise SpecError(FLAG, address, f"this cluster can't be used ({why})", "See `ray status`.") from error
    signal.signal(signal.SIGTERM, ending)  # Ray has put its own there, which ends at once
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for a minute. What is no HOST:PORT is Ray's to read."""
    host, _, port = address.rpartition(":")
    if address.startswith(CLIENT) or not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SpecError(FLAG, address, f"nobody answers there ({why})", "See `ray status` on the cluster.") from error


def cores(ray: Any) -> int:
    """Of the cluster as it is now, taken or not."""
    return int(ray.cluster_resources().get("CPU", 0))


def places(ray: Any, gpus: int) -> float:
    """For how many that take so many GPUs of one machine the cluster has room as it is now."""
    if not gpus:
        return inf
    return sum(node["Resources"].get("GPU", 0) // gpus for node in ray.nodes() if node["Alive"])
