"""Reading of options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable

import yaml

from sloguard.errors import SpecError
from sloguard.trial import Value


def parse_engine_args(pairs: Iterable[str]) -> dict[str, Value]:
    """`K=V` pairs as engine arguments: names underscored, values read as YAML scalars. Raises SpecError."""
    args: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise SpecError("--engine-arg", pair, "is not K=V", "Write e.g. --engine-arg max_model_len=4096.")
        if name in args:
            raise SpecError("--engine-arg", pair, f"{name} is given twice", "Give each argument once.")
        args[name] = _scalar(pair, text)
    return args


def _scalar(pair: str, text: str) -> Value:
    if text.lstrip().startswith(("{", "[")):
        return text  # JSON arguments of the engine go through as they stand
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(
            "--engine-arg", pair, "has a value that can't be read", "Quote it, e.g. K='\"text\"'."
        ) from error
    return value if isinstance(value, bool | int | float | str) or value is None else text


def api_key_from(variable: str | None) -> str | None:
    """The API key in environment variable `variable`. Raises SpecError where it isn't set."""
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise SpecError(
            "--api-key-env", variable, "no such environment variable is set", "Export it, or drop the flag."
        )
    return os.environ[variable]
