"""`sloguard serve --replicas N`: several engines behind one endpoint."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloguard.cli.options import parse_engine_args
from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator import emulator_app
from sloguard.engine.gpu_detect import VISIBLE, visible_gpus
from sloguard.engine.ray_cluster import ray_for
from sloguard.engine.serving import check_port
from sloguard.engine.vllm_install import find_vllm
from sloguard.errors import MissingExtra, SpecError
from sloguard.fleet.local import LocalFleet, LocalSetup, NeverServed, environments
from sloguard.plugins.options import DoorOptions
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.route.base import ROUTERS
from sloguard.study.choice import read_choice

EXIT_CRASHED, EXIT_REJECTED = 1, 2
BACKENDS = ("ray", "local")
EMIT = "--emit-serve-config"
CORES = "VLLM_CPU_OMP_THREADS_BIND"
OF_CLASSES = ("--slo-classes", "--default-slo")  # other machines have no such file: they are told what is in it


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`emit` is where a Serve config goes instead of anything being started."""

    replicas: int
    backend: str
    router: str
    host: str
    port: int
    drain_timeout_s: float
    start_timeout_s: float
    api_key_env: str | None
    max_replicas: int | None
    ray_address: str | None
    emit: Path | None


def serve_fleet(
    options: FleetOptions,
    flags: Mapping[str, Any],
    emulated: Emulated | None,
    door: DoorOptions,
    say: Callable[[str], None],
) -> int:
    """`flags` are those of one replica, by name; None is one that is not given. `emulated` is what it emulates."""
    if options.backend not in BACKENDS:
        raise SpecError("--backend", options.backend, "no such backend", f"Give {' or '.join(BACKENDS)}.")
    read_choice(options.router, "--router").make(ROUTERS, "--router", "choose", {"rng": None})
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        problem = f"is less than the {options.replicas} of --replicas"
        raise SpecError("--max-replicas", options.max_replicas, problem, "Give more, or drop it.")
    _gpus_each(flags)
    if emulated is not None:
        emulator_app(emulated, emulated.model)  # refuses what each replica would, once
    return (_local if options.backend == "local" else _ray)(options, flags, door, say)


def _local(options: FleetOptions, flags: Mapping[str, Any], door: DoorOptions, say: Callable[[str], None]) -> int:
    for flag, value in (
        ("--max-replicas", options.max_replicas),
        ("--ray-address", options.ray_address),
        (EMIT, options.emit),
    ):
        if value is not None:
            raise SpecError(flag, str(value), "is for --backend ray", "Drop it.")
    check_port(options.host, options.port)
    setup = LocalSetup(
        argv=[sys.executable, "-m", "sloguard", "serve", *_words(flags)],
        environments=_environments(options.replicas, flags),
        door=door,
        router=options.router,
        host=options.host,
        port=options.port,
        drain_timeout_s=options.drain_timeout_s,
    )
    try:
        LocalFleet(setup).run(say, sys.stdout.buffer)
    except NeverServed as error:
        say(str(error))
        return EXIT_REJECTED if error.code == EXIT_REJECTED else EXIT_CRASHED
    say("ended")
    return 0


def _ray(options: FleetOptions, flags: Mapping[str, Any], door: DoorOptions, say: Callable[[str], None]) -> int:
    if options.emit is not None:
        _check_new(options.emit)
    try:
        ray_for(options.ray_address if options.emit is None else None)  # a file can be written far from the cluster
    except MissingExtra as error:
        if options.emit is None:
            raise
        raise MissingExtra(f"{EMIT}, which implies --backend ray,", error.extra) from error
    on_ray = importlib.import_module("sloguard.fleet.ray_serve")
    each = _gpus_each(flags)
    on_gpus = flags["--engine"] == "vllm" and find_vllm(flags["--engine-python"]).device != "cpu"
    told = {
        "words": _words({flag: value for flag, value in flags.items() if flag not in OF_CLASSES}),
        "replicas": options.replicas,
        "most_replicas": options.max_replicas,
        "gpus": each if on_gpus else 0,
        "cpus": 0 if options.ray_address is None and options.emit is None else 1,  # nothing else runs on its own Ray
        "router": options.router,
        "door": door.model_dump(mode="json", exclude={"api_key", "control_token"}),
        "api_key_env": options.api_key_env,
        "start_timeout_s": options.start_timeout_s,
        "drain_timeout_s": options.drain_timeout_s,
    }
    if options.emit is not None:
        write_text_atomic(options.emit, on_ray.config_yaml(told, options.host, options.port))
        say(f"wrote {options.emit}: serve deploy {options.emit}")
        return 0
    on_ray.run(told, options.ray_address, options.host, options.port, options.drain_timeout_s, say)
    say("ended")
    return 0


def _check_new(file: Path) -> None:
    """Raises SpecError."""
    check_writable(EMIT, file)
    if file.exists():
        raise SpecError(EMIT, str(file), "is there already", "Remove it, or give another file.")


def _words(flags: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for flag, value in flags.items():
        values: Sequence[Any] = () if value is None else value if isinstance(value, list) else (value,)
        words += [word for one in values for word in (flag, str(one))]
    return words


def _gpus_each(flags: Mapping[str, Any]) -> int:
    """How many a replica takes. Raises SpecError for a replica of several engines."""
    arguments = parse_engine_args(flags["--engine-arg"] or ())
    if arguments.get("data_parallel_size", 1) != 1:
        asked = f"data_parallel_size={arguments['data_parallel_size']}"
        raise SpecError("--engine-arg", asked, "a replica is one engine", "Drop it, and give more --replicas.")
    return int(flags["--tensor-parallel"]) * int(arguments.get("pipeline_parallel_size") or 1)


def _environments(replicas: int, flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each replica has GPUs of its own; on a CPU, cores. Raises SpecError where there are too few GPUs."""
    inherited = dict(os.environ)
    if flags["--engine"] == "emulator":
        return [inherited] * replicas
    each = _gpus_each(flags)
    if find_vllm(flags["--engine-python"]).device == "cpu":
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        if CORES in inherited or len(cores) < replicas:
            return [inherited] * replicas
        return environments(replicas, cores, len(cores) // replicas, inherited, CORES)
    devices = visible_gpus()
    if len(devices) < replicas * each:
        problem = f"{replicas} x {each} GPUs are needed, and {len(devices)} are there"
        raise SpecError("--replicas", replicas, problem, "Give fewer.")
    return environments(replicas, devices, each, inherited, VISIBLE)
