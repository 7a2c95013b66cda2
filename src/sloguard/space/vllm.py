"""What vLLM lets one configure: the space of the SLO-Guard paper (`paper8`), the modern one (`vllm`), and its defaults.

The modern space is a table. A row is offered where its device, vLLM version and GPU allow it and, where the flags of
the installed vLLM are known (`offered_flags`), where it has that flag. A user's own space is a TOML file, see parse.py.

Read in the sources of vLLM 0.32.0: engine/arg_utils.py (defaults), config/{scheduler,cache,compilation}.py (ranges),
platforms/cpu.py (what the CPU build overrides). Paper: arXiv 2604.17627, section "Search space".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, GpuFacts
from sloguard.space.flags import flag_names
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.layout import LAYOUT
from sloguard.space.policies import PREFIX
from sloguard.space.space import Space
from sloguard.trial import Config, Value

Version = tuple[int, int, int]
Device = Literal["cuda", "cpu"]

BOOL = (True, False)
PAPER8 = Space(
    (
        Categorical("quantization", ("fp16",)),
        Int("max_num_seqs", 4, 128, log=True),
        Int("max_num_batched_tokens", 512, 8192, log=True),
        Float("gpu_memory_utilization", 0.60, 0.95),
        Int("max_model_len", 512, 4096, log=True),
        Categorical("enforce_eager", BOOL),
        Categorical("enable_chunked_prefill", BOOL, when=("enforce_eager", False)),
        Categorical("enable_prefix_caching", BOOL),
    )
)


# Knobs that may change what is answered, with the values that don't.
_LOSSLESS: dict[str, tuple[Value, ...]] = {
    "kv_cache_dtype": ("auto", "bfloat16", "float16"),
    "quantization": ("fp16", "none", None),
}


def lossy(config: Mapping[str, Value]) -> tuple[str, ...]:
    """What in it may change answers, as `name=value`."""
    return tuple(f"{name}={value}" for name, value in config.items() if value not in _LOSSLESS.get(name, (value,)))


def _is_lossy(knob: Knob) -> bool:
    return any(lossy({knob.name: value}) for value in knob.outermost())


@dataclass(frozen=True, slots=True)
class _Row:
    """A knob and where it exists: devices, first vLLM version, least compute capability."""

    knob: Knob
    devices: tuple[Device, ...] = ("cuda", "cpu")
    since: Version = (0, 19, 0)
    capability: tuple[int, int] = (0, 0)


_ROWS = (
    _Row(Int("max_num_seqs", 8, 1024, log=True), ("cuda",)),
    _Row(Int("max_num_seqs", 4, 256, log=True), ("cpu",)),
    _Row(Int("max_num_batched_tokens", 256, 16384, log=True), ("cuda",)),
    _Row(Int("max_num_batched_tokens", 128, 8192, log=True), ("cpu",)),
    _Row(Float("gpu_memory_utilization", 0.70, 0.96), ("cuda",)),
    # On CPU it is a share of the machine's memory, which the system and the engine itself also live in.
    _Row(Float("gpu_memory_utilization", 0.05, 0.50), ("cpu",)),
    # 0 = no cap on how much of a step one long prompt may take. vLLM refuses a threshold above max_model_len.
    _Row(Categorical("long_prefill_token_threshold", (0, 256, 512, 1024, 2048))),
    # Differs from fcfs only where requests carry priorities, or in whom it preempts.
    _Row(Categorical("scheduling_policy", ("fcfs", "priority"))),
    _Row(Categorical("async_scheduling", BOOL), ("cuda",)),  # the CPU build switches it off whatever is asked
    _Row(Categorical("enforce_eager", BOOL)),
    _Row(Categorical("max_cudagraph_capture_size", (64, 128, 256, 512), when=("enforce_eager", False)), ("cuda",)),
    _Row(Categorical("kv_cache_dtype", ("auto", "fp8")), ("cuda",), capability=(8, 9)),  # fp8 in hardware from 8.9
    _Row(Categorical("block_size", (16, 32, 64)), ("cuda",)),
    _Row(Categorical("block_size", (32, 64, 128)), ("cpu",)),  # its attention kernel takes multiples of 32
    _Row(Categorical("enable_prefix_caching", BOOL)),
    _Row(Categorical("enable_chunked_prefill", BOOL)),
    # Proposing by look-up takes no second model. What is proposed is checked, so answers are as without.
    _Row(Categorical("speculative", ("off", "ngram-2", "ngram-3", "ngram-4", "ngram-5"))),
    _Row(Categorical("watermark", (0.0, 0.02, 0.05)), since=(0, 32, 0)),
)


def space_for(
    name: str,
    *,
    version: Version | None = None,
    offered: frozenset[str] | None = None,
    device: Device = "cuda",
    gpu: GpuFacts | None = None,
    max_len: int | None = None,
    allow_lossy: bool = False,
) -> Space:
    """The space `paper8`, `vllm`, or the one in a TOML file, fitted to where it will run.

    `offered`: the flags the engine has (None: unknown, all are assumed). `max_len`: the longest sequence [tokens] to be
    served. Knobs that change answers are in it with `allow_lossy` only. Only `vllm` leaves out what is not offered or
    not allowed; a space that was asked for by its knobs is refused (SpecError).
    """
    if name == "vllm":
        space = _modern(version, offered, device, gpu, max_len)
        return space if allow_lossy else Space(tuple(knob for knob in space.knobs if not _is_lossy(knob)))
    space = _shortened(PAPER8, max_len) if name == "paper8" else _read(name)
    missing = [knob.name for knob in space.knobs if not _is_offered(knob, offered)]
    if missing:
        raise SpecError(
            "--space", name, f"the engine has no flag for {', '.join(missing)}", "Use --space vllm, or drop these knobs"
        )
    if not allow_lossy and (found := [knob.name for knob in space.knobs if _is_lossy(knob)]):
        fix = "Add --allow-lossy, or drop these values"
        raise SpecError("--space", name, f"{', '.join(found)} would change what is answered", fix)
    return space


def _modern(
    version: Version | None, offered: frozenset[str] | None, device: Device, gpu: GpuFacts | None, max_len: int | None
) -> Space:
    capability = (gpu.compute_capability if gpu else None) or (0, 0)
    knobs = [
        row.knob
        for row in _ROWS
        if device in row.devices
        and (version is None or version >= row.since)
        and capability >= row.capability
        and _is_offered(row.knob, offered)
    ]
    most_batched_tokens = max(
        (k.high for k in knobs if isinstance(k, Int) and k.name == "max_num_batched_tokens"), default=0
    )
    # Without chunked prefill a whole prompt is one step, so the longest has to fit the token budget.
    if max_len is None or max_len > most_batched_tokens:
        knobs = [knob for knob in knobs if knob.name != "enable_chunked_prefill"]
    return Space(tuple(_without_longer(knob, max_len) for knob in _with_parents(knobs)))


def _with_parents(knobs: Iterable[Knob]) -> list[Knob]:
    """Frees knobs whose condition names a knob that is not offered: the engine then has the condition's value."""
    kept = list(knobs)
    names = {knob.name for knob in kept}
    return [replace(k, when=None) if k.when is not None and k.when[0] not in names else k for k in kept]


def _without_longer(knob: Knob, max_len: int | None) -> Knob:
    if max_len is None or not isinstance(knob, Categorical) or knob.name != "long_prefill_token_threshold":
        return knob
    return replace(knob, choices=tuple(c for c in knob.choices if isinstance(c, int) and c <= max_len))


def _shortened(space: Space, max_len: int | None) -> Space:
    """`space` with no max_model_len above what the model takes."""
    knob = space.knob("max_model_len")
    assert isinstance(knob, Int)
    if max_len is None or max_len >= knob.high:
        return space
    fitted = replace(knob, low=min(knob.low, max_len), high=max_len)
    return Space(tuple(fitted if k.name == "max_model_len" else k for k in space.knobs))


def _read(name: str) -> Space:
    path = Path(name)
    if path.suffix != ".toml":
        raise SpecError("--space", name, "no such space", "Choose vllm, paper8, or a file that ends in .toml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("--space", name, f"the file can't be read ({error})", "Give the path of a TOML file") from error
    return Space.from_toml(text, name)


def _is_offered(knob: Knob, offered: frozenset[str] | None) -> bool:
    values = knob.choices if isinstance(knob, Categorical) else (None,)
    if knob.name == LAYOUT or knob.name.startswith(PREFIX):
        return True  # whether it may be there is for others to say
    return offered is None or all(flag in offered for value in values for flag in flag_names(knob.name, value))


def offered_flags(help_text: str) -> frozenset[str]:
    """Every long flag that `vllm serve --help=all` defines, e.g. "--max-num-seqs" and "--no-enforce-eager"."""
    definitions = re.findall(r"^ {2}(-.*)$", help_text, flags=re.MULTILINE)
    return frozenset(flag for line in definitions for flag in re.findall(r"--[a-z][a-z0-9-]*", line))


@lru_cache  # asked for with every proposal
def vllm_defaults(version: Version | None, gpu: GpuFacts | None) -> Config:
    """What vLLM's server runs when nothing is asked (`gpu` None: the CPU build with one rank)."""
    tokens, seqs = _batch_defaults(gpu)
    return Config(
        {
            "max_num_batched_tokens": tokens,
            "max_num_seqs": seqs,
            "gpu_memory_utilization": 0.92 if version is None or version >= (0, 19, 0) else 0.90,
            "long_prefill_token_threshold": 0,
            "scheduling_policy": "fcfs",
            "async_scheduling": gpu is not None,
            "enforce_eager": False,
            "kv_cache_dtype": "auto",
            "block_size": 128 if gpu is None else 16,
            "enable_prefix_caching": True,
            "enable_chunked_prefill": True,
            "quantization": "fp16",  # none, in the paper's word
            "speculative": "off",
            **({"watermark": 0.0} if version is None or version >= (0, 32, 0) else {}),
        }
    )


def _batch_defaults(gpu: GpuFacts | None) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of the API server: EngineArgs.get_batch_defaults."""
    if gpu is None:
        return 2048, 128
    if gpu.vram_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.vram_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        return 8192, 1024
    return 2048, 256
