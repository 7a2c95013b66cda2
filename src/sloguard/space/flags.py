"""Configs as vLLM spells them: command-line flags, the YAML of `vllm serve --config`, and its log read back.

vLLM's booleans are pairs `--x / --no-x`, and several default to True, so False is always written out. Its YAML reader
turns `x: true` into `--x`; what it makes of `x: false` depends on the version (0.32: `--no-x`, older ones: nothing), so
False is written `no-x: true`, which every version reads alike (utils/argparse_utils.py, load_config_file).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping

import yaml

from sloguard.space.layout import LAYOUT, Layout
from sloguard.trial import Value


def _quantization(value: Value) -> dict[str, Value]:
    """`none` is as the checkpoint is; fp16 the paper's word for "not quantised, 16-bit weights"."""
    return {"dtype": "float16"} if value == "fp16" else {} if value == "none" else {"quantization": value}


def _speculative(value: Value) -> dict[str, Value]:
    """`ngram-3`: where the last four to two tokens stood before in the text, the three after them are proposed."""
    found = re.fullmatch(r"ngram-(\d+)", str(value))
    if found is None:
        return {} if value == "off" else {"speculative": value}
    lookup = {
        "method": "ngram",
        "num_speculative_tokens": int(found[1]),
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    }
    return {"speculative_config": json.dumps(lookup)}


# Knobs whose values are not those of one flag of the same name: from a value to vLLM's arguments.
_SPELLED: dict[str, Callable[[Value], dict[str, Value]]] = {
    "quantization": _quantization,
    "speculative": _speculative,
    LAYOUT: lambda value: Layout.named(value).sizes,
}


def spelled(config: Mapping[str, Value]) -> dict[str, Value]:
    """`config` in the names and values of vLLM's arguments."""
    return {key: value for knob, chosen in config.items() for key, value in _spelled(knob, chosen).items()}


def _spelled(name: str, value: Value) -> dict[str, Value]:
    return _SPELLED[name](value) if name in _SPELLED and value is not None else {name: value}


def flag_names(name: str, value: Value) -> tuple[str, ...]:
    """The flags that set `name` to `value`, without their arguments."""
    return tuple(f"--{key.replace('_', '-')}" for key in _spelled(name, value))


def to_flags(config: Mapping[str, Value]) -> list[str]:
    """Arguments for `vllm serve`; None leaves the flag out."""
    flags: list[str] = []
    for key, value in _entries(config):
        flags += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return flags


def to_yaml(config: Mapping[str, Value], fixed: Mapping[str, Value]) -> str:
    """A file for `vllm serve --config`: `fixed` (model, pinned arguments) first, then `config`, which wins over it."""
    merged = {**fixed, **config}
    return yaml.safe_dump(dict(_entries(merged)), sort_keys=False, default_flow_style=False, allow_unicode=True)


def _entries(config: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    """(flag without dashes, value); True means the bare flag."""
    for name, value in spelled(config).items():
        key = name.replace("_", "-")
        if value is False:
            yield f"no-{key}", True
        elif value is not None:
            yield key, value


_MULTIPLES = {"": 1, **{u: 1000**n for n, u in enumerate("kmgt", 1)}, **{u: 1024**n for n, u in enumerate("KMGT", 1)}}


def count_of(value: Value) -> int | None:
    """A whole number as vLLM's flags read it: 8192, "8192", "8k" (8,000), "8K" (8,192); None where it is none."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", value.strip())):
        return int(float(found[1]) * _MULTIPLES[found[2]])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_NON_DEFAULT = re.compile(r"non-default args: \{(.*)\}")
_ENGINE = re.compile(r"Initializing a V1 LLM engine \(v([^)]+)\) with config: (.*)")
# One number or word each: name -> pattern. Where a line comes more than once, the last one counts.
_LINES: dict[str, re.Pattern[str]] = {
    "max_num_batched_tokens": re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)"),
    "max_model_len": re.compile(r"Using max model len (\d+)"),
    "kv_cache_tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
    "async_scheduling": re.compile(r"Asynchronous scheduling is (enabled|disabled)"),
    "cudagraph_mode": re.compile(r"'cudagraph_mode': <CUDAGraphMode\.(\w+)"),
    "max_cudagraph_capture_size": re.compile(r"'max_cudagraph_capture_size': (\w+)"),
}
# Lines of the compiler, 0.28 to 0.33: kernels came from the cache that earlier starts left, or were compiled anew.
_FROM_CACHE = re.compile(r"Directly load (?:the compiled graph|AOT compilation)")
_COMPILED = re.compile(r"Cache the graph of compile range|Compiling a graph for compile range")
_WORDS: dict[str, Value] = {"enabled": True, "disabled": False, "None": None}
_RENAMED = {"max_seq_len": "max_model_len"}
# Of the engine's own description, what a configuration can change.
_EFFECTIVE = frozenset(
    {
        "max_model_len",
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "enforce_eager",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "seed",
    }
)
# Of the arguments, what says where and who, not how: addresses, names and secrets stay out of the record.
_NOT_KNOBS = frozenset(
    {"host", "port", "uds", "model", "model_tag", "config", "served_model_name", "api_key", "hf_token"}
)


def parse_effective(log_text: str) -> dict[str, Value]:
    """What vLLM (0.19 to 0.33) said it runs, in knob names; empty where the log says nothing.

    The engine's description of itself wins over the arguments it was given. `kv_cache_tokens` is the KV cache's size,
    `vllm_version` the engine's version, and `compile_cache` "hit" or "miss" where it compiles at all.
    """
    found: dict[str, Value] = {}
    for arguments in _NON_DEFAULT.findall(log_text):
        for item in _items(arguments):
            key, _, value = item.partition(":")
            _keep(found, key.strip().strip("'\""), value, unless=_NOT_KNOBS)
    for name, pattern in _LINES.items():
        for text in pattern.findall(log_text):
            word = text.replace(",", "")
            found[name] = int(word) if word.isdigit() else _WORDS.get(word, word)
    if _COMPILED.search(log_text) or _FROM_CACHE.search(log_text):
        found["compile_cache"] = "miss" if _COMPILED.search(log_text) else "hit"
    for version, description in _ENGINE.findall(log_text):
        found["vllm_version"] = version
        for item in _items(description):
            key, _, value = item.partition("=")
            name = _RENAMED.get(key.strip(), key.strip())
            if name in _EFFECTIVE:
                _keep(found, name, value)
    return dict(sorted(found.items()))


def _keep(found: dict[str, Value], name: str, text: str, unless: frozenset[str] = frozenset()) -> None:
    """Stores a scalar; structures and objects that print themselves in their own way are passed over."""
    text = text.strip()
    if name in unless:
        return
    if re.fullmatch(r"[A-Za-z_][\w.]*", text) and text not in ("True", "False", "None"):
        found[name] = text.removeprefix("torch.")  # a bare word: kv_cache_dtype=auto, dtype=torch.bfloat16
        return
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return
    if value is None or isinstance(value, bool | int | float | str):
        found[name] = value


def _items(text: str) -> Iterator[str]:
    """Splits at the commas that stand outside any bracket or quotes."""
    depth, quote, start, escaped = 0, "", 0, False
    for position, char in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]
