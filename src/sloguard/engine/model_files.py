"""Finds a model's architecture without the network: its own files first, then what is known of it.

1. MODEL/config.json             a local directory
2. the Hugging Face cache        HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME or ~/.cache; only read
3. the built-in table            `perf.models.MODELS`

The user's own figures win over all three: SLOGUARD_KV_BYTES_PER_TOKEN (bytes over all layers, before any split over
GPUs) and SLOGUARD_MODEL_FOOTPRINT_GB (all weights, 10^9 bytes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sloguard.errors import SpecError
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS

KV_VARIABLE = "SLOGUARD_KV_BYTES_PER_TOKEN"
FOOTPRINT_VARIABLE = "SLOGUARD_MODEL_FOOTPRINT_GB"


def find_model_shape(model: str, env: Mapping[str, str] = os.environ) -> ModelShape:
    """The shape of `model`, a path or a Hugging Face id. Raises SpecError, with the fix, where it can't be told."""
    shape = known_model_shape(model, env)
    if shape is None:
        raise SpecError(
            "--model",
            model,
            "no such directory, not in the Hugging Face cache and not in the built-in table of architectures",
            f"Download it first (hf download {model}), or give the path of a directory with its config.json",
        )
    return shape


def known_model_shape(model: str, env: Mapping[str, str] = os.environ) -> ModelShape | None:
    """The same, but None for a model that is nowhere here yet: an engine may still download it."""
    shape = _from_directory(model) or _from_cache(model, env) or _from_table(model)
    return None if shape is None else with_overrides(shape, env)


def with_overrides(shape: ModelShape, env: Mapping[str, str]) -> ModelShape:
    """`shape` with the figures the user states in the environment. Raises SpecError for what is no positive number."""
    kv_bytes = _stated(env, KV_VARIABLE, "bytes per token", "28672")
    footprint_gb = _stated(env, FOOTPRINT_VARIABLE, "GB (10^9 bytes)", "16.1")
    return replace(
        shape,
        stated_kv_bytes_per_token=None if kv_bytes is None else int(kv_bytes),
        stated_weight_bytes=None if footprint_gb is None else int(footprint_gb * 1e9),
    )


def _stated(env: Mapping[str, str], variable: str, unit: str, example: str) -> float | None:
    text = env.get(variable)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    # Below one byte a token it is the GB that other tools read from a variable of this kind.
    if not (number >= 1 if variable == KV_VARIABLE else number > 0) or number == float("inf"):
        raise SpecError(variable, text, f"not a positive number of {unit}", f"Write e.g. {variable}={example}")
    return number


def _from_directory(model: str) -> ModelShape | None:
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return None
    config = directory / "config.json"
    if not config.is_file():
        raise SpecError(
            "--model", model, "the directory has no config.json", "Give the directory of a Hugging Face model"
        )
    return ModelShape.from_config(model, _read_json(config, model))


def _from_cache(model: str, env: Mapping[str, str]) -> ModelShape | None:
    """The snapshot that `refs/main` names, else the newest with a config.json."""
    repository = cache_dir(env) / f"models--{model.replace('/', '--')}"
    if not (repository / "snapshots").is_dir():
        return None
    main = repository / "refs" / "main"
    preferred = [repository / "snapshots" / main.read_text().strip()] if main.is_file() else []
    others = sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for snapshot in [*preferred, *others]:
        if (snapshot / "config.json").is_file():
            return ModelShape.from_config(model, _read_json(snapshot / "config.json", model))
    return None


def _from_table(model: str) -> ModelShape | None:
    """Case does not matter in a Hugging Face id."""
    return next((shape for name, shape in MODELS.items() if name.casefold() == model.casefold()), None)


def cache_dir(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps downloads (its own order of variables)."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(variable):
            return Path(env[variable]).expanduser()
    home = env.get("HF_HOME") or str(Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(home).expanduser() / "hub"


def _read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError("--model", model, f"{path} can't be read ({error})", "Repair or download it again") from error
    if not isinstance(config, dict):
        raise SpecError("--model", model, f"{path} is no JSON object", "Repair or download it again")
    return config
