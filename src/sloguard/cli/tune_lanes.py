"""Where the trials of `sloguard tune` run when several do at a time."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sloguard.cli.progress import plain_console
from sloguard.engine.gpu_detect import visible_gpus
from sloguard.engine.ray_cluster import cluster, places
from sloguard.errors import SpecError
from sloguard.study.lanes import Lane, Work, await_workers, close_all, gpu_lanes
from sloguard.study.ray_lanes import ray_lanes
from sloguard.study.runner import Study
from sloguard.study.spec import StudySpec


def lanes_of(
    spec: StudySpec,
    api_key: str | None,
    study: Study,
    directory: Path,
    parallel: int,
    ray_address: str | None,
    stack: ExitStack,
) -> list[Lane]:
    """So many, closed by `stack`; none where trials run here, one after another. Raises SpecError where there are too
    few GPUs.
    """
    if parallel == 1 and ray_address is None:
        return []
    each = 0 if spec.engine == "sim" else spec.gpus_each
    if each:
        _check_apart(study, parallel, ray_address)
    work = Work(spec, api_key, study.engine.describe(), os.getcwd())
    if ray_address is not None:
        ray = stack.enter_context(cluster(ray_address))
        if (there := places(ray, each)) < parallel:
            plain_console(stderr=True).print(
                f"the cluster has room for {there:.0f} of {parallel} trials at a time; the rest wait"
            )
        lanes = ray_lanes(ray, work, parallel, each)
    else:
        devices = visible_gpus() if each else []
        if len(devices) < parallel * each:
            problem = f"{parallel} x {each} GPUs are needed, and {len(devices)} are there"
            raise SpecError("--parallel", parallel, problem, "Give less.")
        await_workers(directory)
        lanes = gpu_lanes(replace(work, directory=directory), parallel, devices)
    stack.callback(close_all, lanes)
    return lanes


def _check_apart(study: Study, parallel: int, ray_address: str | None) -> None:
    """Raises SpecError where trials would measure each other."""
    facts = study.engine.facts()
    flag, value = ("--ray-address", ray_address) if ray_address else ("--parallel", parallel)
    if not facts.tunable or facts.device == "cpu":
        problem = "trials at a time would share one server" if not facts.tunable else "trials would share a CPU"
        raise SpecError(flag, value, f"{problem}, and measure each other", "Drop it.")
