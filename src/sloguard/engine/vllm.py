"""The vLLM engine: one server process a trial, on this machine, with the vLLM of a Python of the user's choice.

A trial: end what a killed sloguard left - start the server - wait until it answers one request - offer the load - see
whether it still serves - stop it and everything it started - wait for the GPU's memory.
Works with vLLM 0.19 and newer, GPU and CPU builds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from sloguard.engine import gpu_memory
from sloguard.engine.base import EngineSetup, Facts, OnPhase, Run, Timeouts, ignore_phase
from sloguard.engine.gpu_detect import detect_gpu
from sloguard.engine.model_files import known_model_shape
from sloguard.engine.processes import GRACE_S, reap_orphans, state_dir
from sloguard.engine.vllm_install import find_vllm
from sloguard.engine.vllm_server import Died, VllmServer, free_port
from sloguard.errors import EngineCrash, SpecError
from sloguard.load.drive import Offered, Progress, offer
from sloguard.load.target import Target
from sloguard.perf.gpus import GpuFacts, gpu_named
from sloguard.request import End, Request
from sloguard.space.flags import parse_effective, to_flags
from sloguard.space.vllm import offered_flags
from sloguard.trial import Config, Value

OURS = (
    "model",
    "host",
    "port",
    "uds",
    "api_key",
    "ssl_keyfile",
    "ssl_certfile",
)  # sloguard sets or forbids these itself
DEFAULT_ENV = {"VLLM_NO_USAGE_STATS": "1"}
GPU_RELEASE_S = 30.0
WARMUP_REQUESTS = 4  # first requests meet kernels that are still being compiled; they are sent and left out
LOG, RECORD = "engine.log", "run.json"


class VllmEngine:
    """Serves `model` with `fixed` arguments in every trial. Raises SpecError for what can't be started at all."""

    def __init__(
        self,
        model: str,
        *,
        python: str | None = None,
        fixed: Mapping[str, Value] | None = None,
        tensor_parallel: int = 1,
        gpu: str | None = None,
        seed: int = 0,
        warmup: int = WARMUP_REQUESTS,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.model = _checked_model(model)
        self.fixed = _checked_arguments(fixed or {}, tensor_parallel)
        self.install = find_vllm(python)
        self.timeouts = timeouts or Timeouts()
        self._gpu_name, self._tensor_parallel = gpu, tensor_parallel
        self._seed, self._warmup = seed, warmup
        self._baseline = gpu_memory.used_bytes()

    @classmethod
    def from_setup(cls, setup: EngineSetup) -> VllmEngine:
        if setup.base_url is not None:
            fix = "Drop it, or use --engine endpoint to measure a running server."
            raise SpecError("--base-url", setup.base_url, "the vllm engine starts its own server", fix)
        if setup.api_key is not None:
            raise SpecError("--api-key-env", "(not shown)", "the vllm engine's server takes no key", "Drop it.")
        return cls(
            setup.model,
            python=setup.python,
            fixed=setup.fixed,
            tensor_parallel=setup.tensor_parallel,
            gpu=setup.gpu,
            seed=setup.seed,
            timeouts=setup.timeouts,
        )

    def default_config(self) -> Config:
        """No override: vLLM chooses by its version and GPU, and `Run.effective` tells what it chose."""
        return Config()

    @cached_property
    def _facts(self) -> Facts:
        return Facts(
            device=self.install.device,
            version=self.install.release,
            offered=offered_flags(self.install.help_text()),
            gpu=self._gpu() if self.install.device == "cuda" else None,
            model=known_model_shape(self.model),
        )

    def _gpu(self) -> GpuFacts:
        """The user's word before what is found. Raises SpecError where neither is to be had."""
        if self._gpu_name is not None:
            return gpu_named(self._gpu_name)
        found = detect_gpu()
        return found.known or found

    def facts(self) -> Facts:
        return self._facts

    def describe(self) -> dict[str, str]:
        gpu = self._facts.gpu
        return {
            "engine": "vllm",
            "version": f"{self.install.version} ({self.install.distribution})",
            "python": f"{self.install.python} ({self.install.python_version})",
            "model": self.model,
            "arguments": " ".join(to_flags(self.fixed)),
            "device": gpu.name if gpu else f"CPU, {psutil.cpu_count()} x {platform.machine()}",
            "memory_guard": "on" if gpu and self._facts.model else "off: it needs a GPU and a model of known shape",
        }

    def command_for(self, config: Config) -> list[str]:
        """What a person types to serve the model with `config`."""
        return [*self.install.user_argv(self.model), *self._flags(config)]

    def run(
        self, config: Config, requests: Sequence[Request], trial_dir: Path, on_phase: OnPhase = ignore_phase
    ) -> Run:
        """See `Engine.run`. Leaves `engine.log` (both streams of the server) and `run.json` in `trial_dir`."""
        began_s = time.monotonic()
        record: dict[str, Any] = {"orphans_ended": [orphan.trial_dir for orphan in reap_orphans()]}
        try:
            return self._trial(config, requests, trial_dir, on_phase, began_s, record)
        except Died as died:
            record["crashed_during"] = died.evidence.phase
            raise EngineCrash(died.evidence, time.monotonic() - began_s) from None
        finally:
            record["cost_s"] = time.monotonic() - began_s
            (trial_dir / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _trial(
        self,
        config: Config,
        requests: Sequence[Request],
        trial_dir: Path,
        on_phase: OnPhase,
        began_s: float,
        record: dict[str, Any],
    ) -> Run:
        first = self._first_start_marker()
        limit_s = self.timeouts.server_start_s if first.exists() else self.timeouts.first_start_s
        record |= {"first_start": not first.exists(), "gpu_dirty_bytes": self._dirty_gpus()}
        on_phase("starting")
        with self._server(config, trial_dir, on_phase, record) as server:
            model = server.await_ready(limit_s)
            startup_s = record["startup_s"] = time.monotonic() - began_s
            first.touch()
            offered = self._load(server, model, requests, on_phase)
            record |= {"load_s": time.monotonic() - began_s - startup_s, "notes": list(offered.notes)}
            server.check_after_load(model, offered.timelines)
        effective = parse_effective((trial_dir / LOG).read_text(encoding="utf-8", errors="replace"))
        return Run(list(offered.timelines), startup_s, time.monotonic() - began_s, effective, _notes(offered, record))

    @contextlib.contextmanager
    def _server(
        self, config: Config, trial_dir: Path, on_phase: OnPhase, record: dict[str, Any]
    ) -> Iterator[VllmServer]:
        """A started server that is gone afterwards, whatever happens. Raises SpecError where it can't be ended."""
        argv = [*self.install.server_argv(self.model), *self._flags(config)]
        server = VllmServer.start(argv, self._env(), free_port(), trial_dir / LOG, self.timeouts.preflight_s)
        process = server.process
        record |= {"argv": argv, "port": server.port, "pid": process.pid, "run_id": process.run_id}
        survivors: tuple[int, ...] = ()
        try:
            yield server
        finally:
            crashed = process.exit()
            on_phase("stopping")
            stopping_s = time.monotonic()
            survivors = process.stop(GRACE_S)
            ended = process.exit()
            record |= {
                "exited_by_itself": crashed is not None,
                "exit_code": ended.code if ended else None,
                "signal": ended.signal if ended else None,
                "stop_s": time.monotonic() - stopping_s,
            }
        if survivors:
            fix = "They are stuck in the kernel: see them with ps, or restart the machine."
            raise SpecError("--engine", f"processes {survivors}", "did not end on SIGKILL", fix)

    def _load(self, server: VllmServer, model: str, requests: Sequence[Request], on_phase: OnPhase) -> Offered:
        on_phase("loading")
        last_due_s = max((request.arrival_s for request in requests), default=0.0)
        return offer(
            Target(server.base_url, model),
            requests,
            seed=self._seed,
            request_timeout_s=self.timeouts.request_s,
            deadline_s=max(self.timeouts.trial_s, last_due_s + self.timeouts.request_s),
            warmup=self._warmup,
            on_progress=lambda progress: on_phase(_figures(progress)),
            abort_when=server.has_exited,
        )

    def _flags(self, config: Config) -> list[str]:
        twice = sorted(set(config) & set(self.fixed))
        if twice:
            raise SpecError("--engine-arg", twice[0], "is both pinned and tuned", "Drop the knob from the space.")
        return to_flags({**self.fixed, **config})

    def _env(self) -> dict[str, str]:
        """The user's, with the Python's own tools first (compilers' helpers such as ninja are looked up in PATH)."""
        env = DEFAULT_ENV | dict(os.environ)
        env.pop("VLLM_API_KEY", None)  # this server is ours alone
        env["PATH"] = os.pathsep.join([str(Path(self.install.python).parent), env.get("PATH", os.defpath)])
        return env

    def _first_start_marker(self) -> Path:
        """Exists once this vLLM has served this model here: compiled kernels and weights are cached from then on."""
        name = "\0".join((self.install.python, self.install.version, self.model))
        started = state_dir() / "started"
        started.mkdir(exist_ok=True)
        return started / hashlib.sha256(name.encode()).hexdigest()[:16]

    def _dirty_gpus(self) -> dict[str, int]:
        """Bytes that are still taken on GPUs beyond what was when this engine was made, after waiting for them."""
        return gpu_memory.wait_until_free(self._baseline, GPU_RELEASE_S)


def _notes(offered: Offered, record: Mapping[str, Any]) -> tuple[str, ...]:
    dirty = record["gpu_dirty_bytes"]
    return (*offered.notes, *([f"GPU memory was still taken before the start: {dirty} bytes"] if dirty else []))


def _figures(progress: Progress) -> str:
    ends = progress.ends
    lost = sum(count for end, count in ends.items() if end is not End.COMPLETED)
    done = f"loading: {ends.get(End.COMPLETED, 0)}/{progress.offered} done, {progress.in_flight} in flight"
    return done + (f", {lost} lost" if lost else "")


def _checked_model(model: str) -> str:
    """A name for the hub goes through as it stands; a path must be there."""
    looks_like_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        raise SpecError("--model", model, "the directory holds no config.json", "Give the directory of a checkpoint.")
    if looks_like_path and not path.exists():
        raise SpecError(
            "--model", model, "no such directory", "Give an existing path, or a name on the Hugging Face hub."
        )
    return str(path) if looks_like_path else model


def _checked_arguments(fixed: Mapping[str, Value], tensor_parallel: int) -> dict[str, Value]:
    taken = next((name for name in fixed if name in OURS), None)
    if taken is not None:
        raise SpecError("--engine-arg", taken, "is set by sloguard itself", "Drop it.")
    if tensor_parallel > 1 and fixed.get("tensor_parallel_size", tensor_parallel) != tensor_parallel:
        raise SpecError("--engine-arg", "tensor_parallel_size", "differs from --tensor-parallel", "Give one of them.")
    return {**({"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {}), **fixed}
