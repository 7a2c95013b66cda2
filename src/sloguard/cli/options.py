"""Reading of options that several commands share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sloguard.errors import SpecError
from sloguard.load.results import read_results
from sloguard.load.run_figures import RunFigures, held_against
from sloguard.slo import NO_SLO, StageSLO
from sloguard.trial import Value

_INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")  # no leading zeros: 0123456 is a name, such as a revision's
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE][+-]))([eE][+-]?[0-9]+)?")
_ENDLESS = re.compile(r"[+-]?\.?(inf|infinity|nan)", re.IGNORECASE)
_LIMITS = ("ttft", "tpot", "e2el")
_EXAMPLES_MS = {"ttft": 500, "tpot": 50, "e2el": 10000}
_WORDS = {"true": True, "false": False}
# Names are compared without case and separators. "tokens" counts tokens; only "token" is one.
_SECRET = re.compile(r"apikey|accesskey|privatekey|secret|password|passwd|token$")
_SECRET_FIX = {
    "hf_token": "Export HF_TOKEN in the environment instead: the engine inherits it",
    "api_key": "Drop it: a server that is started here serves nobody else",
}


def parse_engine_args(pairs: Iterable[str]) -> dict[str, Value]:
    """`K=V` pairs as engine arguments, names underscored.

    A value is a whole number, a finite decimal number, or true or false in any case. Anything else (`off`, `none`,
    `null`, `12:30`, JSON) is text and goes to the engine as it stands. Raises SpecError, also for a name that stands
    for a secret: arguments are part of the study's record.
    """
    args: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise SpecError("--engine-arg", pair, "is not K=V", "Write e.g. --engine-arg max_model_len=4096.")
        _refuse_secret(name, text)
        if name in args:
            raise SpecError("--engine-arg", pair, f"{name} is given twice", "Give each argument once.")
        args[name] = _scalar(pair, text.strip())
    return args


def _refuse_secret(name: str, text: str) -> None:
    """Looks at the names in a JSON value, too. The error doesn't repeat the value."""
    for key in (name, *re.findall(r'"([^"]*)"\s*:', text)):
        if _SECRET.search(re.sub(r"[^a-z0-9]", "", key.lower())):
            fix = _SECRET_FIX.get(key, "Give it to the engine in an environment variable or in a file of its own")
            raise SpecError("--engine-arg", key, "a secret would be written into the study's files", fix)


def _scalar(pair: str, text: str) -> Value:
    if not text:
        fix = "Give one, or drop the argument to leave it to the engine"
        raise SpecError("--engine-arg", pair, "has no value", fix)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    number = float(text) if _FLOAT.fullmatch(text) else None
    if _ENDLESS.fullmatch(text) or (number is not None and not math.isfinite(number)):
        raise SpecError("--engine-arg", pair, "is not a finite number", "Give a number, e.g. 0.9")
    return text if number is None else number


def api_key_from(variable: str | None) -> str | None:
    """The API key in environment variable `variable`. Raises SpecError where it isn't set."""
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise SpecError(
            "--api-key-env", variable, "no such environment variable is set", "Export it, or drop the flag."
        )
    return os.environ[variable]


def read_slo(flag: str, text: str, metrics: Sequence[str] = _LIMITS) -> StageSLO:
    """`ttft=500,tpot=50` in milliseconds. Raises SpecError, naming `flag`, for anything else, and for other metrics."""
    limits_s: dict[str, float] = {}
    fix = f"Write e.g. {' or '.join(f'{name}={_EXAMPLES_MS[name]}' for name in metrics)}, in milliseconds."
    for pair in text.split(","):
        metric, _, value = pair.partition("=")
        metric = metric.strip().lower()
        if metric not in metrics or metric in limits_s:
            raise SpecError(flag, pair, f"{metric!r} is no metric or is given twice", fix)
        try:
            limits_s[metric] = float(value) / 1000
        except ValueError:
            raise SpecError(flag, pair, f"{value!r} is not a number", fix) from None
        if not 0 < limits_s[metric] < math.inf:
            raise SpecError(flag, pair, "not a positive number of milliseconds", fix)
    return StageSLO(limits_s.get("ttft"), limits_s.get("tpot"), limits_s.get("e2el"))


def read_load_tests(paths: Sequence[Path], slo: Sequence[str] | None) -> list[RunFigures]:
    """The runs in result files, held against `--slo` where it is given. Raises SpecError."""
    promise = read_slo("--slo", ",".join(slo)) if slo else NO_SLO
    return [held_against(run, promise) for path in paths for run in read_results(path, "PATH")]
