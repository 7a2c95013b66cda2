"""The knobs a simulated engine understands, read from a config; an unknown one is the user's error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from sloguard.errors import SpecError
from sloguard.sched.policy import Limits
from sloguard.trial import Value

UNQUANTISED = (None, "fp16", "none")
GRAPH_LIMIT = 512  # vLLM's own ceiling for the largest captured batch (config/vllm.py, 0.32)


@dataclass(frozen=True, slots=True)
class Settings:
    """One start of an engine, in vLLM's names."""

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    max_model_len: int
    enforce_eager: bool
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    kv_cache_dtype: str
    block_size: int
    quantization: str | None
    long_prefill_token_threshold: int
    scheduling_policy: str
    async_scheduling: bool
    max_cudagraph_capture_size: int | None
    watermark: float

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        """Batch sizes captured as CUDA graphs: 1, 2, 4, then steps of 8 to 256, then of 16 (vLLM 0.32)."""
        if self.enforce_eager:
            return ()
        asked = self.max_cudagraph_capture_size
        largest = min(2 * self.max_num_seqs, GRAPH_LIMIT) if asked is None else asked
        largest = min(largest, self.max_num_batched_tokens)
        steps = (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16))
        return tuple(size for size in steps if size <= largest)

    def limits(self, kv_blocks: int) -> Limits:
        """With `kv_blocks` usable blocks; vLLM's watermark is a share of those and its placeholder."""
        return Limits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            enable_chunked_prefill=self.enable_chunked_prefill,
            long_prefill_token_threshold=self.long_prefill_token_threshold,
            watermark_blocks=int(self.watermark * (kv_blocks + 1)),
        )


def _whole(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _share(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


KNOBS = tuple(field.name for field in fields(Settings))

# What each knob takes: a test, and the words for an error.
_TAKES: dict[str, tuple[Callable[[Value], bool], str]] = {
    "max_num_seqs": (_whole, "a whole number from 1"),
    "max_num_batched_tokens": (_whole, "a whole number from 1"),
    "gpu_memory_utilization": (_share, "a share above 0, up to 1"),
    "max_model_len": (_whole, "a whole number from 1"),
    "enforce_eager": (lambda v: isinstance(v, bool), "true or false"),
    "enable_chunked_prefill": (lambda v: isinstance(v, bool), "true or false"),
    "enable_prefix_caching": (lambda v: isinstance(v, bool), "true or false"),
    "kv_cache_dtype": (lambda v: v in KV_BYTES, "auto, bfloat16, float16, fp8, fp8_e4m3 or fp8_e5m2"),
    "block_size": (_whole, "a whole number from 1"),
    "quantization": (lambda v: v is None or isinstance(v, str), "a method's name"),
    "long_prefill_token_threshold": (lambda v: v == 0 or _whole(v), "0 or a number of tokens"),
    "scheduling_policy": (lambda v: v in ("fcfs", "priority"), "fcfs or priority"),
    "async_scheduling": (lambda v: isinstance(v, bool), "true or false"),
    "max_cudagraph_capture_size": (lambda v: v is None or _whole(v), "a whole number from 1"),
    "watermark": (lambda v: v == 0 or (_share(v) and v != 1), "a share from 0, below 1"),
}
KV_BYTES: dict[Value, float | None] = {
    "auto": None,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
}


def check_value(name: str, value: Value) -> None:
    """Raises SpecError where the simulated engine has no knob `name`, or the knob doesn't take `value`."""
    if name not in _TAKES:
        known = ", ".join(sorted(_TAKES))
        raise SpecError(name, value, "the simulated engine has no such knob", f"It has: {known}")
    test, words = _TAKES[name]
    if not test(value):
        raise SpecError(name, value, "not a value of this knob", f"Give {words}")


def read_settings(values: Mapping[str, Value]) -> Settings:
    """Settings of a complete config. Raises SpecError for a knob that is unknown, missing or of the wrong kind."""
    for name, value in values.items():
        check_value(name, value)
    missing = [name for name in KNOBS if name not in values]
    if missing:
        raise SpecError(missing[0], None, "not given", "Start from the engine's default config")
    return Settings(**values)  # pyright: ignore[reportArgumentType] - every value was tested above
