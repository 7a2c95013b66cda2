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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from sloguard.engine import gpu_memory
from sloguard.engine.base import (
    EnginePolicy,
    EngineSetup,
    Facts,
    Load,
    LoadPlan,
    OnPhase,
    Run,
    Timeouts,
    follow,
    ignore_phase,
)
from sloguard.engine.gpu_detect import detect_gpu
from sloguard.engine.lend import check_hooks, lent_environment, refuse_ours, scheduler_arguments, serve_command
from sloguard.engine.loading import WARMUP_REQUESTS, offer_load
from sloguard.engine.model_files import known_model_shape
from sloguard.engine.processes import GRACE_S, reap_orphans, state_dir
from sloguard.engine.vllm_install import VllmInstall, find_vllm
from sloguard.engine.vllm_server import Died, VllmServer, free_port
from sloguard.errors import EngineCrash, SpecError
from sloguard.load.drive import Offered
from sloguard.load.promises import promise_fields
from sloguard.load.prompts import no_extra
from sloguard.load.target import Target
from sloguard.perf.gpus import GpuFacts, gpu_named
from sloguard.perf.model_shape import ModelShape
from sloguard.request import Timeline
from sloguard.space.flags import count_of, flag_names, parse_effective, to_flags
from sloguard.space.layout import LAYOUT, layouts
from sloguard.space.policies import of_policy
from sloguard.space.space import Space
from sloguard.space.vllm import offered_flags, vllm_defaults
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
LOOKED_UP = "speculation was measured on random prompts: confirm it on your own traffic"
LOG, RECORD = "engine.log", "run.json"


def _is_count(value: Value) -> bool:
    count = count_of(value)
    return count is not None and count >= 1


def _is_share(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


_COUNT = (_is_count, "whole numbers from 1")
# What vLLM's own checks refuse whatever the model (config/{scheduler,cache,parallel}.py, 0.32): a test, and its words.
_TAKES: dict[str, tuple[Callable[[Value], bool], str]] = {
    "gpu_memory_utilization": (_is_share, "shares above 0, up to 1"),
    "max_num_seqs": _COUNT,
    "max_num_batched_tokens": _COUNT,
    "block_size": _COUNT,
    "tensor_parallel_size": _COUNT,
    "pipeline_parallel_size": _COUNT,
}


class VllmEngine:
    """Serves `model` with `fixed` arguments in every trial, and `env` on top of the environment. With `gpus` a config
    may say how the model lies on them; else it is the first of `Facts.layouts`. Raises SpecError for what can't be
    started at all.
    """

    def __init__(
        self,
        model: str,
        *,
        python: str | None = None,
        fixed: Mapping[str, Value] | None = None,
        tensor_parallel: int = 1,
        gpus: int | None = None,
        gpu: str | None = None,
        warmup: int = WARMUP_REQUESTS,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        policy: EnginePolicy | None = None,
    ) -> None:
        self.model = checked_model(model)
        self.fixed = checked_arguments(fixed or {}, tensor_parallel)
        self.install = find_vllm(python)
        self.timeouts = timeouts or Timeouts()
        self._gpu_name, self._gpus = gpu, gpus
        self.policy = policy
        self._extra_env = dict(env or {})
        if policy is not None:
            refuse_ours(self.fixed)
            check_hooks(self.install)
            self._extra_env |= lent_environment(self.install, state_dir())
        self._warmup = warmup
        self._ended = reap_orphans()  # what they held of the GPU is not part of a clean device
        self._baseline = gpu_memory.settled_bytes(GPU_RELEASE_S) if self._ended else gpu_memory.used_bytes()

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
            gpus=setup.gpus,
            gpu=setup.gpu,
            timeouts=setup.timeouts,
            policy=setup.policy,
        )

    def default_config(self) -> Config:
        """vLLM's documented defaults for its version and GPU; `Run.effective` says what it really chose."""
        facts = self._facts
        length = {"max_model_len": facts.model.max_position} if facts.model else {}
        return Config({**length, **vllm_defaults(facts.version, facts.gpu), **self._laid_out})

    @cached_property
    def _facts(self) -> Facts:
        model, offered = known_model_shape(self.model), offered_flags(self.install.help_text())
        return Facts(
            device=self.install.device,
            version=self.install.release,
            offered=offered,
            gpu=self._gpu() if self.install.device == "cuda" else None,
            model=model,
            layouts=self._layouts(model, offered),
            answers=True,
        )

    def _layouts(self, model: ModelShape | None, offered: frozenset[str]) -> tuple[str, ...]:
        if self._gpus is None:
            return ()
        if self.install.device == "cpu":
            raise SpecError("--gpus", self._gpus, f"{self.install.python} has vLLM for CPUs", "Drop it.")
        pipeline, data = "--pipeline-parallel-size" in offered, "--data-parallel-size" in offered
        return layouts(self._gpus, model, pipeline=pipeline, data=data)

    @property
    def _laid_out(self) -> dict[str, Value]:
        return {LAYOUT: self._facts.layouts[0]} if self._gpus is not None else {}

    def _gpu(self) -> GpuFacts:
        """The user's word before what is found. Raises SpecError where neither is to be had."""
        if self._gpu_name is not None:
            return gpu_named(self._gpu_name)
        found = detect_gpu()
        return found.known or found

    def facts(self) -> Facts:
        """Raises SpecError for a pinned argument that this vLLM doesn't have: it would fail every start."""
        offered = self._facts.offered or frozenset()
        for name, value in self.fixed.items():
            for flag in flag_names(name.partition(".")[0], value):
                if flag not in offered:
                    fix = "Mend the name, or see what `vllm serve --help=all` offers."
                    raise SpecError("--engine-arg", name, f"vLLM {self.install.version} has no {flag}", fix)
        return self._facts

    def check_space(self, space: Space) -> None:
        for knob in space.knobs:
            _check_not_ours(knob.name, "--space")
            if knob.name in _TAKES:
                takes, words = _TAKES[knob.name]
                wrong = [value for value in knob.outermost() if not takes(value)]
                if wrong:
                    raise SpecError(knob.name, wrong[0], "not a value that vLLM takes", f"Give {words}")

    def describe(self) -> dict[str, str]:
        gpu = self._facts.gpu
        return {
            "engine": "vllm",
            "version": f"{self.install.version} ({self.install.distribution})",
            "python": f"{self.install.python} ({self.install.python_version})",
            "model": self.model,
            "arguments": " ".join(to_flags(self.fixed)),
            **({"gpus": str(self._gpus)} if self._gpus is not None else {}),
            "device": gpu.name if gpu else f"CPU, {psutil.cpu_count()} x {platform.machine()}",
            **({"policy": self.policy.written({})} if self.policy else {}),
            "memory_guard": "on" if gpu and self._facts.model else "off: it needs a GPU and a model of known shape",
        }

    def command_for(self, config: Config) -> list[str]:
        """What a person types to serve the model with `config`."""
        self._refuse_twice(config)
        fixed = {**self._laid_out, **self.fixed}
        return serve_command(self.install.user_argv(self.model), self.model, fixed, config, self.policy)

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        """See `Engine.run`. Leaves `engine.log` (both streams of the server) and `run.json` in `trial_dir`."""
        began_s = time.monotonic()
        ended, self._ended = [*self._ended, *reap_orphans()], []
        record: dict[str, Any] = {"orphans_ended": [orphan.trial_dir for orphan in ended]}
        try:
            return self._trial(config, plan, trial_dir, on_phase, began_s, record)
        except Died as died:
            record["crashed_during"] = died.evidence.phase
            raise EngineCrash(died.evidence, time.monotonic() - began_s) from None
        finally:
            record["cost_s"] = time.monotonic() - began_s
            (trial_dir / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _trial(
        self,
        config: Config,
        plan: LoadPlan,
        trial_dir: Path,
        on_phase: OnPhase,
        began_s: float,
        record: dict[str, Any],
    ) -> Run:
        with self.serving(config, trial_dir, on_phase, record) as (server, model):
            startup_s = record["startup_s"] = time.monotonic() - began_s
            notes: list[str] = []

            def offered(load: Load) -> Sequence[Timeline]:
                offered = self._load(server, model, load, on_phase)
                notes.extend(offered.notes)
                server.check_after_load(model, offered.timelines)
                return offered.timelines

            questions = plan.questions
            try:
                answers = server.answers(model, questions, self.timeouts.request_s) if questions else ()
                served = () if questions and not questions.passed_by(answers) else follow(plan, offered)
            finally:
                record |= {"load_s": time.monotonic() - began_s - startup_s, "notes": list(dict.fromkeys(notes))}
        effective = parse_effective((trial_dir / LOG).read_text(encoding="utf-8", errors="replace"))
        return Run(served, startup_s, time.monotonic() - began_s, effective, _notes(record, config), answers)

    @contextlib.contextmanager
    def serving(
        self, config: Config, trial_dir: Path, on_phase: OnPhase, record: dict[str, Any]
    ) -> Iterator[tuple[VllmServer, str]]:
        """A server that has answered a request, and its model's name; gone afterwards, whatever happens.

        Leaves `engine.log` in `trial_dir` and facts in `record`. Raises Died where the engine fails, SpecError where
        it can't be started or ended.
        """
        first = self._first_start_marker(config)
        limit_s = self.timeouts.server_start_s if first.exists() else self.timeouts.first_start_s
        record |= {"first_start": not first.exists(), "gpu_dirty_bytes": self._dirty_gpus()}
        on_phase("starting")
        with self._server(config, trial_dir, on_phase, record) as server:
            model = server.await_ready(limit_s)
            first.touch()
            yield server, model

    @contextlib.contextmanager
    def _server(
        self, config: Config, trial_dir: Path, on_phase: OnPhase, record: dict[str, Any]
    ) -> Iterator[VllmServer]:
        """A started server that is gone afterwards, whatever happens. Raises SpecError where it can't be ended."""
        argv = [*self.install.server_argv(self.model), *self._flags(config)]
        server = VllmServer.start(
            argv,
            server_environment(self.install) | self._extra_env,
            free_port(),
            trial_dir / LOG,
            self.timeouts.preflight_s,
        )
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

    def _load(self, server: VllmServer, model: str, load: Load, on_phase: OnPhase) -> Offered:
        return offer_load(
            Target(server.base_url, model),
            load,
            warmup=self._warmup,
            timeouts=self.timeouts,
            on_phase=on_phase,
            abort_when=server.has_exited,
            extra=promise_fields if self.policy else no_extra,
        )

    def _flags(self, config: Config) -> list[str]:
        self._refuse_twice(config)
        arguments, options = of_policy(config)
        arguments = {**self._laid_out, **self.fixed, **arguments}
        if self.policy is None:
            return to_flags(arguments)
        told = {"policy": self.policy.name, "policy_options": {**self.policy.options, **options}}
        return to_flags({**arguments, **scheduler_arguments(told)})

    def _refuse_twice(self, config: Config) -> None:
        twice = sorted(set(config) & set(self.fixed))
        if twice:
            raise SpecError("--engine-arg", twice[0], "is both pinned and tuned", "Drop the knob from the space.")

    def _first_start_marker(self, config: Config) -> Path:
        """Exists once this vLLM has served this model, laid out alike: kernels and weights are cached from then on."""
        laid_out = {**self._laid_out, **config}.get(LAYOUT)
        told = (self.install.python, self.install.version, self.model, *([str(laid_out)] if laid_out else []))
        name = "\0".join(told)
        started = state_dir() / "started"
        started.mkdir(exist_ok=True)
        return started / hashlib.sha256(name.encode()).hexdigest()[:16]

    def _dirty_gpus(self) -> dict[str, int]:
        """Bytes that are still taken on GPUs beyond what was when this engine was made, after waiting for them."""
        return gpu_memory.wait_until_free(self._baseline, GPU_RELEASE_S)


def server_environment(install: VllmInstall) -> dict[str, str]:
    """The user's, with the Python's own tools first (compilers' helpers such as ninja are looked up in PATH)."""
    env = DEFAULT_ENV | dict(os.environ)
    env.pop("VLLM_API_KEY", None)  # whoever is let in is decided by sloguard
    env["PATH"] = os.pathsep.join([str(Path(install.python).parent), env.get("PATH", os.defpath)])
    return env


def _notes(record: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    dirty = record["gpu_dirty_bytes"]
    return (
        *record["notes"],
        *([f"GPU memory was still taken before the start: {dirty} bytes"] if dirty else []),
        *([LOOKED_UP] if config.get("speculative", "off") != "off" else []),
    )


def checked_model(model: str) -> str:
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


def _check_not_ours(name: str, field: str) -> None:
    if name in OURS:
        raise SpecError(field, name, "is set by sloguard itself", "Drop it.")


def checked_arguments(fixed: Mapping[str, Value], tensor_parallel: int) -> dict[str, Value]:
    for name in fixed:
        _check_not_ours(name, "--engine-arg")
    if tensor_parallel > 1 and fixed.get("tensor_parallel_size", tensor_parallel) != tensor_parallel:
        raise SpecError("--engine-arg", "tensor_parallel_size", "differs from --tensor-parallel", "Give one of them.")
    return {**({"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {}), **fixed}
