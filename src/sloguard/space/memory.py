"""The memory guard: does a config leave room for the weights, the work of one step and one sequence of full length?

    needed    = weights + activations + KV of one sequence of max_model_len tokens        [bytes on one GPU]
    available = gpu_memory_utilization * VRAM

vLLM pages its KV cache, so many sequences share what there is; it refuses to start only where less than one fits
(v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory). The guard does the same and estimates low wherever it has
to estimate: what it refuses can't start, what it lets pass may still fail. Read in vLLM 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, GpuFacts
from sloguard.perf.model_shape import ModelShape
from sloguard.space.flags import count_of
from sloguard.space.layout import Layout, layout_of
from sloguard.space.vllm import Version, vllm_defaults
from sloguard.trial import Value

LOGIT_BYTES = 4  # logits are computed in float32
NULL_BLOCK_SINCE: Version = (0, 32, 0)  # from here on one KV block is held back and can't serve a request

# Bytes of one KV element by prefix of `kv_cache_dtype`; longest first. Packed formats are taken without their scales.
_KV_BYTES = (
    ("turboquant_3bit", 0.375),
    ("nvfp4", 0.5),
    ("int4", 0.5),
    ("turboquant_4bit", 0.5),
    ("fp8", 1.0),
    ("int8", 1.0),
)
# Bits of a weight where the engine quantises a 16-bit checkpoint while loading it.
_ONLINE_BITS = {"fp8": 8.0, "bitsandbytes": 4.0}


@dataclass(frozen=True, slots=True)
class Fit:
    """`needed_bytes` by use on one GPU; `reason` says in one line why it can't start, None where it may."""

    needed_bytes: dict[str, int]
    available_bytes: int
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None

    @property
    def kv_room_bytes(self) -> int:
        """What is left for the KV cache."""
        return self.available_bytes - sum(n for use, n in self.needed_bytes.items() if use != "kv_cache")


def fits(
    config: Mapping[str, Value],
    model: ModelShape,
    gpu: GpuFacts,
    tp: int = 1,
    *,
    fixed: Mapping[str, Value] | None = None,
    version: Version | None = None,
) -> Fit:
    """Judges `config`; what it leaves open is taken from `fixed` (the arguments pinned by the user), then from vLLM's
    defaults. `tp` is the number of tensor-parallel ranks where neither of them says.

    The engines of data parallelism hold all weights each, but for experts, of which each GPU has its share (0.32:
    flatten_tp_across_dp_and_pcp in fused_moe/config.py); a floor is that share of everything.
    """
    given: dict[str, Value] = {**vllm_defaults(version, gpu), **(fixed or {}), **config}
    given |= layout_of(given, 1).sizes
    tp = _count(given, "tensor_parallel_size", tp)
    stages = _count(given, "pipeline_parallel_size", 1)
    ranks = tp * stages * (_count(given, "data_parallel_size", 1) if model.experts > 1 else 1)
    if model.heads % tp:
        return Fit({}, 0, f"{model.heads} attention heads of {model.name} can't be split over {tp} GPUs")
    loaded = _as_loaded(model, given)
    # "auto" or -1: vLLM shortens the limit to what fits, so a single token has to
    automatic = given.get("max_model_len") in ("auto", -1)
    max_len = 1 if automatic else _count(given, "max_model_len", model.max_position)
    kv = _sequence_bytes(loaded, given, max_len, tp, version) // stages
    if stated := _count(given, "kv_cache_memory_bytes", 0):  # then vLLM takes this, whatever the utilisation
        return _judged({"kv_cache": kv}, stated, max_len, "is what kv_cache_memory_bytes gives")
    share = given["gpu_memory_utilization"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise SpecError(
            "gpu_memory_utilization", share, "not a share of the GPU's memory", "Give a number up to 1, e.g. 0.9"
        )
    needed = {
        "weights": max(0, loaded.weight_bytes // ranks - _offloaded_bytes(given)),
        "activations": _activation_bytes(loaded, given, tp),
        "kv_cache": kv,
    }
    where = f"is {share:g} of the {gpu.vram_bytes / GIB:.1f} GiB of {gpu.name}"
    return _judged(needed, int(share * gpu.vram_bytes), max_len, where)


def _offloaded_bytes(given: Mapping[str, Value]) -> int:
    """Weights that each GPU leaves in the host's memory (`--cpu-offload-gb`, GiB a GPU)."""
    offloaded = given.get("cpu_offload_gb")
    return int(offloaded * GIB) if isinstance(offloaded, int | float) and not isinstance(offloaded, bool) else 0


def _judged(needed: dict[str, int], available: int, max_len: int, where: str) -> Fit:
    if sum(needed.values()) <= available:
        return Fit(needed, available)
    kv, rest = needed["kv_cache"], " + ".join(f"{use} {n / GIB:.2f}" for use, n in needed.items() if use != "kv_cache")
    total = f"{rest} + KV cache {kv / GIB:.2f} GiB" if rest else f"{kv / GIB:.2f} GiB"
    return Fit(needed, available, f"one sequence of {max_len} tokens needs {total}; {available / GIB:.2f} GiB {where}")


def _as_loaded(model: ModelShape, given: Mapping[str, Value]) -> ModelShape:
    """The model as these arguments load it."""
    if given.get("dtype") in ("float32", "float"):
        model = replace(model, dtype_bytes=4)
    online = _ONLINE_BITS.get(str(given.get("quantization")))
    return replace(model, weight_bits=online) if online and model.weight_bits is None else model


def _sequence_bytes(
    model: ModelShape, given: Mapping[str, Value], max_len: int, tp: int, version: Version | None
) -> int:
    """KV of one sequence of full length in whole blocks, and the block that is held back."""
    block = _count(given, "block_size", 16)
    null_blocks = 1 if version is not None and version >= NULL_BLOCK_SINCE else 0
    tokens = (-(-max_len // block) + null_blocks) * block
    chunk = _count(given, "max_num_batched_tokens", 0)
    return model.kv_bytes(tokens, tp, kv_dtype_bytes(given.get("kv_cache_dtype")), chunk)


def _activation_bytes(model: ModelShape, given: Mapping[str, Value], tp: int) -> int:
    """A floor for the peak of the profiling step: the widest moment of a layer, or the logits, not both.

    In the MLP the input (hidden), the up projection (2 widths with a gate) and its activated half are alive at once.
    """
    width = model.intermediate * model.active_experts + model.shared_intermediate
    alive = model.hidden + (3 if model.gated_mlp else 2) * width // tp
    layer = _count(given, "max_num_batched_tokens", 0) * alive * model.dtype_bytes
    logits = _count(given, "max_num_seqs", 0) * model.vocab * LOGIT_BYTES
    return max(layer, logits)


def kv_dtype_bytes(kv_cache_dtype: Value) -> float | None:
    """Bytes of one KV element under vLLM's `kv_cache_dtype`; None where it is the model's own type."""
    return next((size for prefix, size in _KV_BYTES if str(kv_cache_dtype).startswith(prefix)), None)


def _count(given: Mapping[str, Value], name: str, otherwise: int) -> int:
    stated = count_of(given.get(name))
    return otherwise if stated is None else stated


def max_sequences(
    fit: Fit, config: Mapping[str, Value], model: ModelShape, tokens: int, layout: Layout, share: float
) -> int:
    """How many sequences of `tokens` tokens fit in `share` of the room for KV of one engine."""
    per_sequence = model.kv_bytes(tokens, layout.tp, kv_dtype_bytes(config.get("kv_cache_dtype"))) / layout.pp
    return max(0, int(share * fit.kv_room_bytes / per_sequence))
