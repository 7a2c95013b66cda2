"""The simulated engine: vLLM's start-up, memory, scheduling and step times in virtual time. Nothing here is a real GPU.

A run is a function of (seed, config, loads): the same trial gives the same timelines, crash and cost on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sloguard.crash import Evidence
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
from sloguard.engine.lend import serve_command
from sloguard.engine.model_files import find_model_shape
from sloguard.errors import EngineCrash, SpecError
from sloguard.perf.batch_time import BatchTime
from sloguard.perf.coefficients import batch_time, coefficients_for
from sloguard.perf.gpus import GIB, Gpu, gpu_named
from sloguard.perf.model_shape import ModelShape
from sloguard.registry import load as load_class
from sloguard.request import Timeline
from sloguard.rng import stream
from sloguard.route.baselines import LeastJobs
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Quantile
from sloguard.sched.policy import POLICIES, Policy
from sloguard.sim.kernel import Kernel
from sloguard.sim.memory import weight_bytes
from sloguard.sim.noise import jitter
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import simulate
from sloguard.sim.settings import KNOBS, Settings, check_value, read_settings
from sloguard.sim.start import Failure, Start, start
from sloguard.space.layout import LAYOUT, Layout, layout_of, layouts
from sloguard.space.policies import PREFIX, of_policy
from sloguard.space.space import Space
from sloguard.space.vllm import vllm_defaults
from sloguard.trial import Config, Value

VLLM_VERSION = (0, 32, 0)  # whose defaults, decisions and messages are simulated
STOP_S = 5.0
FLAGS = frozenset({"--dtype", *(f"--{knob.replace('_', '-')}" for knob in KNOBS)})
NOISE = 0.02  # spread of step times, between runs of one config and again between steps


class SimulatedEngine:
    """`--engine sim`. `fixed` are the user's own engine arguments; `others_gib` is GPU memory other processes hold.
    With `gpus` a config may say how the model lies on them. Not simulated, and so not offered: pipelines, and data
    parallelism of a model with experts, whose engines would move in step.

    `noise` (0 to 0.10) is the relative spread of step times, drawn once a run and once a step. Raises SpecError for a
    model or GPU that is not known, and for a knob the simulation does not have.
    """

    def __init__(
        self,
        model: ModelShape,
        gpu: Gpu,
        tp: int = 1,
        seed: int = 0,
        *,
        fixed: Mapping[str, Value] | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        noise: float = NOISE,
        others_gib: float = 0.0,
        policy: EnginePolicy | None = None,
        gpus: int | None = None,
    ) -> None:
        if not 0 <= noise <= 0.1:
            raise SpecError("noise", noise, "not a share from 0 to 0.10", "Give e.g. 0.02")
        if tp < 1:
            raise SpecError("tensor_parallel", tp, "not a number of GPUs", "Give 1 or more")
        self._layouts = layouts(gpus, model, pipeline=False, data=model.experts == 1) if gpus is not None else ()
        self._laid_out: dict[str, Value] = {LAYOUT: self._layouts[0]} if self._layouts else {}
        self.model, self.gpu, self.seed = model, gpu, seed
        self.tp = layout_of(self._laid_out, tp).tp
        self.timeouts, self.noise = timeouts, noise
        self.policy = policy
        self._others_bytes = int(others_gib * GIB)
        self._fixed = dict(fixed or {})
        self._defaults = _defaults(model, gpu, self._fixed)
        read_settings(self._defaults)

    @classmethod
    def from_setup(cls, setup: EngineSetup) -> SimulatedEngine:
        if setup.base_url is not None:
            fix = "Drop it, or use --engine endpoint to measure a running server."
            raise SpecError("--base-url", setup.base_url, "a simulated engine has no server", fix)
        if setup.api_key is not None:
            raise SpecError("--api-key-env", "(not shown)", "a simulated engine takes no key", "Drop it.")
        if setup.python is not None:
            fix = "Drop it, or use --engine vllm."
            raise SpecError("--engine-python", setup.python, "a simulated engine starts no Python", fix)
        if setup.gpu is None:
            raise SpecError("--gpu", None, "a simulated engine needs a GPU to simulate", "Name one, e.g. A100-40GB.")
        return cls(
            find_model_shape(setup.model),
            gpu_named(setup.gpu),
            setup.tensor_parallel,
            setup.seed,
            fixed=setup.fixed,
            timeouts=setup.timeouts,
            policy=setup.policy,
            gpus=setup.gpus,
        )

    def default_config(self) -> Config:
        """What vLLM runs on this GPU when nothing is asked, beside the arguments the user fixed."""
        return self._defaults.replace(**self._laid_out)

    def check_space(self, space: Space) -> None:
        for knob in space.knobs:
            for value in () if knob.name == LAYOUT or knob.name.startswith(PREFIX) else knob.outermost():
                check_value(knob.name, value)

    def command_for(self, config: Config) -> list[str]:
        split = self._laid_out or Layout(self.tp).sizes
        argv = ["vllm", "serve", self.model.name]
        return serve_command(argv, self.model.name, {**split, **self._fixed}, config, self.policy)

    def facts(self) -> Facts:
        return Facts(
            version=VLLM_VERSION,
            offered=FLAGS,
            gpu=self.gpu,
            model=self.model,
            layouts=self._layouts,
            crashes_last=False,
        )

    def describe(self) -> dict[str, str]:
        return {
            "engine": "sim",
            "simulated": "true",
            "version": ".".join(map(str, VLLM_VERSION)),
            "gpu": self.gpu.name,
            **({"layouts": " ".join(self._layouts)} if self._layouts else {"tensor_parallel": str(self.tp)}),
            "model": self.model.name,
            "step_times": coefficients_for(self.model, self.gpu, self.tp).source,
            "noise": f"{self.noise:g}",
            **({"policy": self.policy.written({})} if self.policy else {}),
        }

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        config, options = of_policy(config)
        values = self.default_config().replace(**config)
        layout = layout_of(values, self.tp)
        settings = read_settings({name: value for name, value in values.items() if name != LAYOUT})
        on_phase("starting")
        # Named by the values that run, so that a knob written out at its default changes nothing.
        rng = stream(self.seed, "simulated engine", repr(values), plan.seed)
        self._policy(options)  # options that it doesn't take are said before anything is simulated
        begun = start(
            settings,
            self.model,
            self.gpu,
            layout.tp,
            rng,
            others_bytes=self._others_bytes,
            limit_s=self.timeouts.server_start_s,
        )
        if begun.failure is not None:
            raise self._crash(begun, begun.failure, trial_dir)
        on_phase("loading")
        scale = jitter(rng, self.noise)
        served = follow(plan, lambda load: self._serve(settings, begun, load, layout, options, scale))
        on_phase("stopping")
        cost_s = begun.startup_s + sum(_last_s(one.timelines) for one in served) + STOP_S
        effective = {**values, "kv_cache_tokens": begun.memory.kv_blocks * settings.block_size}
        if settings.graph_sizes:
            effective["max_cudagraph_capture_size"] = settings.graph_sizes[-1]
        return Run(served, begun.startup_s, cost_s, effective)

    def _serve(
        self,
        settings: Settings,
        begun: Start,
        load: Load,
        layout: Layout,
        options: Mapping[str, Value],
        scale: Iterator[float],
    ) -> list[Timeline]:
        step_time = self.step_time(settings, layout.tp)

        def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
            kv = KvCache(begun.memory.kv_blocks, settings.block_size, settings.enable_prefix_caching)
            limits = settings.limits(kv.blocks)
            return Replica(
                kernel,
                self._policy(options),
                limits,
                kv,
                step_time,
                on_tokens,
                on_decline,
                lengths=Quantile(),
                step_scale=scale,
                pace_from_first=True,
            )

        return simulate(
            load.requests,
            replica,
            replicas=layout.dp,
            router=LeastJobs() if layout.dp > 1 else None,
            request_timeout_s=self.timeouts.request_s,
            stop_when=load.stop_when,
        )

    def _policy(self, options: Mapping[str, Value]) -> Policy:
        """vLLM's own unless another was asked for."""
        if self.policy is None:
            return Fcfs()
        return load_class(POLICIES, self.policy.name, "--policy", "plan")(**self.policy.options, **options)

    def step_time(self, settings: Settings, tp: int) -> BatchTime:
        """Fewer bytes of weights or KV are read faster in proportion; the arithmetic stays in 16 bit."""
        time = batch_time(
            self.model,
            self.gpu,
            tp,
            eager=settings.enforce_eager,
            graph_sizes=settings.graph_sizes,
            synchronous=not settings.async_scheduling,
        )
        saved_bytes = self.model.weight_bytes - weight_bytes(settings, self.model)
        saved_s = saved_bytes / tp / self.gpu.bandwidth_bytes_s
        kv_share = 0.5 if settings.kv_cache_dtype.startswith("fp8") else 1.0
        return time.reading(-saved_s, kv_share)

    def _crash(self, begun: Start, failure: Failure, trial_dir: Path) -> EngineCrash:
        log = "\n".join(
            (f"INFO sloguard simulates vLLM {self.describe()['version']}: this is no real log", *failure.lines)
        )
        (trial_dir / "engine.log").write_text(log + "\n", encoding="utf-8")
        evidence = Evidence(
            phase=failure.phase,
            exit_code=None if failure.timed_out else 1,
            timed_out=failure.timed_out,
            log_tail=log,
        )
        before_s = begun.startup_s if failure.phase == "load" else 0.0
        return EngineCrash(evidence, before_s + failure.after_s + STOP_S)


def _defaults(model: ModelShape, gpu: Gpu, fixed: Mapping[str, Value]) -> Config:
    own: dict[str, Value] = {
        "max_model_len": model.max_position,
        "quantization": None,
        "max_cudagraph_capture_size": None,
        "watermark": 0.0,
    }
    known = {name: value for name, value in vllm_defaults(VLLM_VERSION, gpu).items() if name in KNOBS}
    return Config({**own, **known, **fixed})


def _last_s(timelines: Sequence[Timeline]) -> float:
    """When the load is over: the end of the last request, of those that were sent."""
    return max((t.last_s for t in timelines if t.sent_s is not None), default=0.0)
