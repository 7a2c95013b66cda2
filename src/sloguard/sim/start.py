"""Starting a simulated vLLM: what goes wrong, in vLLM's order and vLLM's words, and how long it all takes.

    arguments      the combination is invalid                          seconds after the start
    device         less memory free than gpu_memory_utilization asks
    weights        they don't fit
    profiling      the activations of max_num_batched_tokens don't fit, or the GPU can't do what was asked
    KV cache       nothing is left for it, or too little for one sequence of max_model_len
    graphs         capturing them takes more than was estimated, and the utilisation leaves no room
    deadline       weights, compilation and capture take longer than the caller waits
    load           activations fragment and outgrow the room outside the budget; or a rare fault of the machine

Messages are those of vLLM 0.32 and PyTorch 2.13, so that one classifier reads simulated and real logs. Everything
random is drawn from the generator that is passed in, in one fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sloguard.perf.gpus import GIB, MIB, Gpu
from sloguard.perf.model_shape import ModelShape
from sloguard.sim.memory import Memory, gib, memory_of, weight_bytes
from sloguard.sim.settings import UNQUANTISED, Settings

# Seconds of a warm start (model files and compile cache on local disk), from public vLLM logs of 8B and 70B models.
ARGUMENTS_S = 8.0  # import and parse: an invalid combination is found here
PROCESS_S = 14.0  # until the worker has its GPU
GROUP_S = 6.0  # joining a tensor-parallel group
LOAD_BYTES_S = 2e9  # weights from disk, one rank; ranks beyond the second share the disk
PROFILE_S = 3.0
COMPILE_S, COMPILE_LAYER_S = 4.0, 0.15
CAPTURE_LAYER_S = 6.5e-3  # of one layer in one captured size
SPREAD = 0.06  # of the whole, between starts of one config

GRAPH_SPREAD = 0.15  # of the graphs' memory around vLLM's own estimate
FRAGMENTS, FRAGMENTS_SPREAD = 0.35, 0.5  # median share of the activations lost to fragmentation under load, and spread
FAULT_RATE = 0.01  # starts that end in an illegal memory access for no reason of the config's
NATIVE_FP8 = (8, 9)
SUPPORTED_QUANTIZATION = ("fp8", "awq", "gptq", "awq_marlin", "gptq_marlin", "compressed-tensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Failure:
    """`lines` end with what vLLM prints last; `after_s` counts from the start, or from the load for that phase."""

    phase: Literal["startup", "load"]
    lines: tuple[str, ...]
    after_s: float
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """How a start goes. `failure` in phase "load" comes after a start that worked."""

    memory: Memory
    startup_s: float
    failure: Failure | None


def start(
    settings: Settings,
    model: ModelShape,
    gpu: Gpu,
    tp: int,
    rng: np.random.Generator,
    *,
    others_bytes: int = 0,
    limit_s: float = float("inf"),
) -> Start:
    """Deterministic for equal arguments and state of `rng`. `limit_s` is how long the caller waits for readiness."""
    memory = memory_of(settings, model, gpu, tp, others_bytes)
    startup_s = startup_seconds(settings, model, tp) * float(rng.lognormal(0.0, SPREAD))
    graphs = int(memory.graphs * rng.lognormal(0.0, GRAPH_SPREAD))
    fragments = int(memory.activations * FRAGMENTS * rng.lognormal(0.0, FRAGMENTS_SPREAD))
    faulty, fault_at = float(rng.random()) < FAULT_RATE, float(rng.random())

    def failed(lines: tuple[str, ...], after_s: float) -> Start:
        return Start(memory, startup_s, Failure("startup", lines, min(after_s, limit_s)))

    if invalid := next(_invalid(settings, model, tp), None):
        return failed(invalid, ARGUMENTS_S)
    if memory.free < memory.budget:
        return failed(_core_died(_too_little_free(settings, memory)), PROCESS_S)
    if memory.weights > memory.free:
        return failed(_core_died(_out_of_memory(memory, memory.weights - memory.free, "weights")), PROCESS_S)
    loaded_s = startup_s * (PROCESS_S + PROFILE_S) / startup_seconds(settings, model, tp)
    if unsupported := _unsupported(settings, gpu):
        return failed(_core_died(unsupported), startup_s)
    if memory.weights + memory.runtime + memory.activations > memory.free:
        return failed(_core_died(_out_of_memory(memory, memory.activations, "activations")), loaded_s)
    if memory.kv <= 0:
        return failed(_core_died(_NO_KV), startup_s * 0.8)
    if memory.kv_longest > memory.kv or memory.kv_blocks * settings.block_size < settings.max_model_len:
        return failed(_core_died(_kv_too_small(settings, memory)), startup_s * 0.8)
    if graphs - memory.graphs > memory.slack:
        return failed(_core_died(_out_of_memory(memory, 2 * MIB, "graphs")), startup_s * 0.95)
    if startup_s > limit_s:
        lines = ("INFO [gpu_model_runner.py] Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 61%",)
        return Start(memory, startup_s, Failure("startup", lines, limit_s, timed_out=True))
    if faulty:
        return Start(memory, startup_s, Failure("load", _core_died(_ILLEGAL_ACCESS), 10.0 * fault_at))
    if fragments + max(0, graphs - memory.graphs) > memory.slack:
        lines = _core_died(_out_of_memory(memory, max(2 * MIB, fragments // 8), "load"))
        return Start(memory, startup_s, Failure("load", lines, 5.0 + 20.0 * fault_at))
    return Start(memory, startup_s, None)


def startup_seconds(settings: Settings, model: ModelShape, tp: int) -> float:
    """Median time until the engine is ready."""
    seconds = PROCESS_S + PROFILE_S + weight_bytes(settings, model) / (LOAD_BYTES_S * min(tp, 2))
    if tp > 1:
        seconds += GROUP_S
    if not settings.enforce_eager:
        seconds += COMPILE_S + COMPILE_LAYER_S * model.layers
        seconds += CAPTURE_LAYER_S * model.layers * len(settings.graph_sizes)
    return seconds


def _invalid(s: Settings, model: ModelShape, tp: int) -> Iterator[tuple[str, ...]]:
    """Combinations that vLLM's own argument checks turn down, in its order."""
    if s.quantization not in (*UNQUANTISED, *SUPPORTED_QUANTIZATION):
        known = list(SUPPORTED_QUANTIZATION)
        yield _validation("ModelConfig", f"Unknown quantization method: {s.quantization}. Must be one of {known}.")
    if s.quantization not in (*UNQUANTISED, "fp8", "bitsandbytes") and model.weight_bits is None:
        yield (f"ValueError: Cannot find the config file for {s.quantization}",)
    if s.max_model_len > model.max_position:
        yield _validation(
            "ModelConfig",
            f"User-specified max_model_len ({s.max_model_len}) is greater than the derived max_model_len "
            f"(max_position_embeddings={model.max_position} or model_max_length=None in model's config.json). To allow "
            "overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
        )
    if model.heads % tp:
        yield _validation(
            "VllmConfig",
            f"Total number of attention heads ({model.heads}) must be divisible by tensor parallel size ({tp}).",
        )
    if s.max_num_batched_tokens < s.max_model_len and not s.enable_chunked_prefill:
        yield _validation(
            "SchedulerConfig",
            f"max_num_batched_tokens ({s.max_num_batched_tokens}) is smaller than max_model_len ({s.max_model_len}). "
            "This effectively limits the maximum sequence length to max_num_batched_tokens and makes vLLM reject "
            "longer sequences. Please increase max_num_batched_tokens or decrease max_model_len.",
        )
    if s.max_num_batched_tokens < s.max_num_seqs:
        yield _validation(
            "SchedulerConfig",
            f"max_num_batched_tokens ({s.max_num_batched_tokens}) must be greater than or equal to max_num_seqs "
            f"({s.max_num_seqs}).",
        )
    if s.long_prefill_token_threshold > s.max_model_len:
        yield _validation(
            "SchedulerConfig",
            f"long_prefill_token_threshold ({s.long_prefill_token_threshold}) cannot be greater than the max_model_len "
            f"({s.max_model_len}).",
        )


def _unsupported(s: Settings, gpu: Gpu) -> tuple[str, ...] | None:
    """What the kernels of this GPU can't do, found when they are first compiled."""
    if s.kv_cache_dtype.startswith("fp8") and gpu.compute_capability < NATIVE_FP8:
        return (
            "triton.compiler.errors.CompilationError: at 1:0:",
            "def reshape_and_cache_kernel_flash(",
            "^",
            'ValueError("type fp8e4nv not supported in this architecture. '
            "The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')\")",
        )
    if s.block_size % 16:
        return (
            f"ValueError: No valid attention backend found for cuda with block_size={s.block_size}. "
            "Reasons: {FLASH_ATTN: [block_size not supported], FLASHINFER: [block_size not supported]}.",
        )
    return None


def _validation(model: str, problem: str) -> tuple[str, ...]:
    return (
        f"pydantic_core._pydantic_core.ValidationError: 1 validation error for {model}",
        f"  Value error, {problem} [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]",
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    )


def _core_died(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The cause, and the wrapper text that vLLM's API process prints after it."""
    return (
        "(EngineCore pid=1042) ERROR [core.py:1136] EngineCore failed.",
        "(EngineCore pid=1042) ERROR [core.py:1136] Traceback (most recent call last):",
        *(f"(EngineCore pid=1042) ERROR [core.py:1136] {line}" for line in lines),
        "(APIServer pid=1001) RuntimeError: Engine core initialization failed. See root cause above. "
        "Failed core proc(s): {'EngineCore': 1}",
    )


def _too_little_free(s: Settings, m: Memory) -> tuple[str, ...]:
    return (
        f"ValueError: Free memory on device cuda:0 ({gib(m.free)}/{gib(m.visible)} GiB) on startup is less than "
        f"desired GPU memory utilization ({s.gpu_memory_utilization}, {gib(m.budget)} GiB). Decrease GPU memory "
        "utilization or reduce GPU memory used by other processes.",
    )


def _kv_too_small(s: Settings, m: Memory) -> tuple[str, ...]:
    fits = min(int(s.max_model_len * m.kv / m.kv_longest), m.kv_blocks * s.block_size)
    return (
        f"ValueError: To serve at least one request with the model's max seq len ({s.max_model_len}), "
        f"({gib(m.kv_longest)} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({gib(m.kv)} GiB). Based on the available memory, the estimated maximum model length is {fits}. Try "
        "increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.",
    )


_OUT_OF_MEMORY_AT = {
    "weights": "self.model = model_loader.load_model(vllm_config=self.vllm_config)",
    "activations": "hidden_states = self._dummy_run(self.max_num_tokens, is_profile=True)",
    "graphs": "with torch.cuda.graph(cudagraph, pool=self.graph_pool):",
    "load": "model_output = self.model(input_ids=input_ids, positions=positions)",
}


def _out_of_memory(m: Memory, wanted: int, at: str) -> tuple[str, ...]:
    unit = f"{wanted / GIB:.2f} GiB" if wanted >= GIB else f"{max(wanted, 2 * MIB) / MIB:.2f} MiB"
    return (
        f"    {_OUT_OF_MEMORY_AT[at]}",
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {unit}. GPU 0 has a total capacity of "
        f"{gib(m.visible)} GiB of which {min(wanted // MIB, 30) + 0.69:.2f} MiB is free. If reserved but unallocated "
        "memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
    )


_NO_KV = (
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine.",
)
_ILLEGAL_ACCESS = (
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.",
)
