"""What never started here is not started again by a later study: failures outlive the study that met them.

A file a config, in a directory for each GPU, model, version and set of pinned arguments, under sloguard's state. Only
what no load and no luck has a part in is kept: crashes of the start, other than faults of the machine and timeouts.
A study takes down what was known when it began, so that it can be resumed as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sloguard.engine.processes import state_dir
from sloguard.errors import LogError
from sloguard.trial import Config, Crashed, Trial

Failures = Mapping[Config, str]
Guard = Callable[[Config], str | None]
ELSEWHERE = ("python", "memory_guard")  # facts of an engine on which a crash does not depend


def recalled(engine: Mapping[str, str]) -> dict[Config, str]:
    """Why each config failed that did on such an engine. Raises LogError for a file that is none of ours."""
    found: dict[Config, str] = {}
    for path in sorted(_directory(engine).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[Config(dict(record["config"]))] = str(record["reason"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LogError(f"{path}: is no record of a failure ({error!r}). Remove it.") from error
    return found


def remember(engine: Mapping[str, str], trial: Trial) -> None:
    """Keeps what came of `trial`, if it is a failure that will come again.

    Not kept: the default's, for every study begins with it, and what is recorded as its config was not asked of the
    engine; and that of a config measured again, which did start before.
    """
    crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    if crash is None or crash.environment or crash.phase != "startup" or crash.category == "timeout":
        return
    if not trial.proposed or trial.recheck is not None:
        return
    directory = _directory(engine)
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(trial.config)
    record = {"config": config, "reason": f"{crash.category}/{crash.cause}: {crash.line}", "engine": dict(engine)}
    path = directory / f"{_digest(config)}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def guarded(guard: Guard, failures: Failures) -> Guard:
    """The guard, which also turns down what is known to fail."""

    def refusal(config: Config) -> str | None:
        known = failures.get(config)
        return guard(config) if known is None else f"it did not start in an earlier study: {known}"

    return refusal if failures else guard


def to_json(failures: Failures) -> list[dict[str, Any]]:
    return [{"config": dict(config), "reason": reason} for config, reason in failures.items()]


def from_json(records: list[dict[str, Any]]) -> dict[Config, str]:
    return {Config(dict(record["config"])): str(record["reason"]) for record in records}


def _directory(engine: Mapping[str, str]) -> Path:
    return state_dir() / "failures" / _digest({k: v for k, v in engine.items() if k not in ELSEWHERE})


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
