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
    shape = _found(model, env, *_stated_figures(env))
    if shape is None:
        raise SpecError(
            "--model",
            model,
            "no such directory, not in the Hugging Face cache and not in the built-in table of architectures",
            f"Download it first (hf download {model}), or give the path of a directory with its config.json",
        )
    return shape


def known_model_shape(model: str, env: Mapping[str, str] = os.environ) -> ModelShape | None:
    """The same, but None where it can't be told: an engine may still download the model, or know an architecture that
    is not known here. Raises SpecError only where the user's own figures are none.
    """
    figures = _stated_figures(env)
    try:
        return _found(model, env, *figures)
    except SpecError:
        return None


def _found(
    model: str, env: Mapping[str, str], kv_bytes_per_token: int | None, weight_bytes: int | None
) -> ModelShape | None:
    config = _config_in_directory(model) or _config_in_cache(model, env)
    shape = _from_table(model) if config is None else ModelShape.from_config(model, config, weight_bytes)
    if shape is None:
        return None
    return replace(shape, stated_kv_bytes_per_token=kv_bytes_per_token, stated_weight_bytes=weight_bytes)


def _stated_figures(env: Mapping[str, str]) -> tuple[int | None, int | None]:
    """(KV bytes per token, bytes of all weights) as the user states them. Raises SpecError for what is no figure."""
    kv_bytes = _stated(env, KV_VARIABLE, "bytes per token", "28672")
    footprint_gb = _stated(env, FOOTPRINT_VARIABLE, "GB (10^9 bytes)", "16.1")
    return (
        None if kv_bytes is None else int(kv_bytes),
        None if footprint_gb is None else int(footprint_gb * 1e9),
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


def _config_in_directory(model: str) -> dict[str, Any] | None:
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return None
    config = directory / "config.json"
    if not config.is_file():
        raise SpecError(
            "--model", model, "the directory has no config.json", "Give the directory of a Hugging Face model"
        )
    return _read_json(config, model)


def _config_in_cache(model: str, env: Mapping[str, str]) -> dict[str, Any] | None:
    """Of the snapshot that `refs/main` names, else the newest with a config.json."""
    repository = cache_dir(env) / f"models--{model.replace('/', '--')}"
    if not (repository / "snapshots").is_dir():
        return None
    main = repository / "refs" / "main"
    preferred = [repository / "snapshots" / main.read_text().strip()] if main.is_file() else []
    others = sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for snapshot in [*preferred, *others]:
        if (snapshot / "config.json").is_file():
            return _read_json(snapshot / "config.json", model)
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
