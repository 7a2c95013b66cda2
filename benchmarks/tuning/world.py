"""The truth of a task: an engine whose step times and memory are not quite what the tuner's own simulator believes.

    compute, memory, overhead   each times a factor of the task, 0.7 to 1.5, and times a slow wave over the token budget
                                and the sequences (8 % high), so that the optimum lies elsewhere
    knobs                       async scheduling, prefix caching, fp8 KV, block size, watermark and the threshold for
                                long prompts each have an effect that the simulator doesn't know
    activations, fragments      take more than it plans with, so the edges where starts and loads crash lie elsewhere

All of it is drawn from a stream named by the task, and scaled by its `distortion`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log, log2, sin, tau
from pathlib import Path

from tasks import Task

from sloguard.engine.base import LoadPlan, OnPhase, Run, ignore_phase
from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.perf.batch_time import BatchTime
from sloguard.perf.gpus import GIB, Gpu, gpu_named
from sloguard.rng import stream
from sloguard.sim.memory import memory_of
from sloguard.sim.settings import Settings, read_settings
from sloguard.trial import Config

FACTOR = (0.7, 1.5)
WAVE = 0.08


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the simulator doesn't know of a task. Factors are relative to its belief; seconds and shares are added."""

    compute: float
    memory: float
    overhead: float
    phases: tuple[float, float, float, float]
    wave: float
    synchronous: float  # factor of the CPU's time without async scheduling
    planning_s: float  # of every step, whatever is asked
    hashing_s: float  # of every sequence in a step with prefix caching
    fp8: float  # factor of the time to read KV in 8 bit
    block: float  # log factor of the time to read KV with every doubling of the block
    watermark: float  # log factor of the CPU's time with a watermark
    chunk: float  # share of the attention to its context that a chunk of a long prompt pays again
    activations: float  # share of the planned ones that is missing in the plan
    fragments: float  # share of them that is lost under load

    @staticmethod
    def of(task: Task) -> Hidden:
        rng, far = stream(0, "world", task.name), task.distortion
        a, b, c, d = rng.uniform(0, tau, 4).tolist()

        def factor(low: float, high: float) -> float:
            """Log-uniform, drawn towards 1 as the distortion falls."""
            return exp(far * float(rng.uniform(log(low), log(high))))

        def added(high: float) -> float:
            return far * float(rng.uniform(0.0, high))

        return Hidden(
            compute=factor(*FACTOR),
            memory=factor(*FACTOR),
            overhead=factor(*FACTOR),
            phases=(a, b, c, d),
            wave=WAVE * far,
            synchronous=factor(0.5, 3.0),
            planning_s=added(1e-3),
            hashing_s=added(20e-6),
            fp8=factor(1.0, 1.8),
            block=far * float(rng.uniform(-0.06, 0.06)),
            watermark=far * float(rng.uniform(-0.05, 0.05)),
            chunk=added(0.5),
            activations=added(1.0),
            fragments=added(1.0),
        )


class World(SimulatedEngine):
    """The engine that a study of `task` runs. `noise` None is the task's."""

    def __init__(self, task: Task, seed: int, noise: float | None = None) -> None:
        spread = task.noise if noise is None else noise
        model, gpu = find_model_shape(task.model), gpu_named(task.gpu)
        super().__init__(model, gpu, seed=seed, fixed=task.fixed, noise=spread, others_gib=task.others_gib)
        self._task, self._hidden = task, Hidden.of(task)

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        values = self.default_config().replace(**config)
        gpu, others_gib = _short_of_memory(read_settings(values), self, self._task, self._hidden)
        return _True(self, gpu, others_gib, self._task, self._hidden).run(values, plan, trial_dir, on_phase)


class _True(SimulatedEngine):
    """The engine at one config: a GPU with less memory, and step times as they are."""

    def __init__(self, world: World, gpu: Gpu, others_gib: float, task: Task, hidden: Hidden) -> None:
        super().__init__(world.model, gpu, seed=world.seed, fixed=task.fixed, noise=world.noise, others_gib=others_gib)
        self._hidden = hidden

    def step_time(self, settings: Settings, tp: int) -> BatchTime:
        return true_time(super().step_time(settings, tp), settings, self._hidden)


def _short_of_memory(settings: Settings, engine: SimulatedEngine, task: Task, hidden: Hidden) -> tuple[Gpu, float]:
    """What the extra activations take is missing in the budget; what the extra fragments take, beside it."""
    planned_bytes = memory_of(settings, engine.model, engine.gpu, engine.tp, 0).activations
    missing_bytes = int(hidden.activations * planned_bytes / settings.gpu_memory_utilization)
    gpu = replace(engine.gpu, vram_bytes=max(GIB, engine.gpu.vram_bytes - missing_bytes))
    return gpu, task.others_gib + hidden.fragments * planned_bytes / GIB


def true_time(believed: BatchTime, settings: Settings, hidden: Hidden) -> BatchTime:
    tokens, seqs = log2(settings.max_num_batched_tokens), log2(settings.max_num_seqs)
    a, b, c, d = hidden.phases
    compute = hidden.compute * (1 + hidden.wave * sin(a + 0.7 * tokens) * sin(b + 0.5 * seqs))
    memory = hidden.memory * (1 + hidden.wave * sin(c + 0.5 * tokens) * sin(d + 0.7 * seqs))
    kv = memory * 2 ** (hidden.block * log2(settings.block_size / 16))
    if settings.kv_cache_dtype.startswith("fp8"):
        kv *= hidden.fp8
    chunk = hidden.chunk if settings.long_prefill_token_threshold else 0.0
    pieces = tuple(
        replace(
            piece,
            base_s=piece.base_s * memory,
            prefill_token_s=piece.prefill_token_s * compute,
            decode_s=piece.decode_s * hidden.overhead,
            kv_token_s=piece.kv_token_s * kv,
            attention_pair_s=piece.attention_pair_s * compute,
            context_token_s=piece.context_token_s * compute + chunk * piece.kv_token_s * kv,
            mixed_kv_token_s=piece.mixed_kv_token_s * kv,
            mixed_length_token_s=piece.mixed_length_token_s * kv,
        )
        for piece in believed.pieces
    )
    cpu = hidden.overhead * (1.0 if settings.async_scheduling else hidden.synchronous)
    cpu *= exp(hidden.watermark) if settings.watermark else 1.0
    return replace(
        believed,
        pieces=pieces,
        curve=tuple((start, slope_s * compute) for start, slope_s in believed.curve),
        launch_s=believed.launch_s * hidden.overhead,
        cpu_step_s=believed.cpu_step_s * cpu + hidden.planning_s,
        cpu_sequence_s=believed.cpu_sequence_s * cpu + (hidden.hashing_s if settings.enable_prefix_caching else 0.0),
    )
