"""Lends sloguard to the Python that has vLLM, whose engine loads sloguard's scheduler by name.

A directory that holds nothing but a link to this package goes in front of that Python's path. The directory of the
package itself would not do: every other library of this environment stands beside it, in versions that vLLM may not
work with. What the scheduler imports beyond sloguard (numpy, pydantic), vLLM brings along.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from sloguard import __version__
from sloguard.engine.base import EnginePolicy
from sloguard.engine.vllm_install import FIELD, VllmInstall
from sloguard.errors import SpecError
from sloguard.plugins.options import Promise
from sloguard.space.flags import spelled, to_flags
from sloguard.space.policies import of_policy
from sloguard.trial import Config, Value

PACKAGE = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
OLDEST_VLLM = (0, 28, 0)
CONNECTORS = ("kv_transfer_config", "kv_offloading_size", "ec_transfer_config")
OURS = ("scheduler_cls", "additional_config", "middleware", "api_server_count")
SCHEDULER = "sloguard.plugins.vllm_scheduler.SloScheduler"


def lend_package(state_dir: Path) -> Path:
    """A directory for PYTHONPATH with this sloguard and nothing else. Raises SpecError where it can't be made."""
    digest = hashlib.sha256(os.fsencode(PACKAGE)).hexdigest()[:12]
    lent = state_dir / "lent" / f"{__version__}-{digest}"
    link = lent / PACKAGE.name
    try:
        lent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != PACKAGE:
            fresh = lent / f".{uuid.uuid4().hex}"  # made aside and moved: another sloguard may be doing the same
            fresh.symlink_to(PACKAGE, target_is_directory=True)
            fresh.replace(link)
    except OSError as error:
        fix = "Set SLOGUARD_STATE_DIR to a directory you can write."
        raise SpecError("SLOGUARD_STATE_DIR", str(lent), f"can't be written ({error.strerror})", fix) from error
    return lent


def lent_environment(install: VllmInstall, state_dir: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a server of `install` needs in its environment to find sloguard. Raises SpecError for a Python too old."""
    version = tuple(int(part) for part in install.python_version.split(".")[:2])
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        fix = f"Use a Python {oldest} or newer that has vLLM."
        problem = f"is Python {install.python_version}, and sloguard's scheduler needs {oldest}"
        raise SpecError(FIELD, install.python, problem, fix)
    paths = [str(lend_package(state_dir)), *filter(None, [env.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def refuse_ours(arguments: Mapping[str, Value]) -> None:
    """Raises SpecError for an engine argument of the user's by which the scheduler and the door are put in, and for one
    that they can't work beside (plugins/vllm_check.py looks at what came of all arguments).
    """
    for name in OURS:
        if name in arguments:
            raise SpecError("--engine-arg", name, "is set by sloguard itself", "Drop it.")
    for name in CONNECTORS:
        if arguments.get(name):
            problem = "holds requests back by rules of its own, beside which sloguard's scheduler can't work"
            raise SpecError("--engine-arg", name, problem, "Drop it.")
    order = arguments.get("scheduling_policy", "fcfs")
    if order != "fcfs":
        fix = "Drop it; --policy vllm-priority does the same."
        raise SpecError(
            "--engine-arg", f"scheduling_policy={order}", "sloguard's scheduler orders requests itself", fix
        )


def check_hooks(install: VllmInstall) -> None:
    """Raises SpecError for a vLLM without what the scheduler hooks into."""
    if install.release < OLDEST_VLLM:
        oldest = ".".join(map(str, OLDEST_VLLM[:2]))
        problem = f"has vLLM {install.version}, in which sloguard's scheduler can't work"
        raise SpecError(FIELD, install.python, problem, f"Install vLLM {oldest} or newer there.")


def serve_command(
    argv: Sequence[str], model: str, fixed: Mapping[str, Value], config: Config, policy: EnginePolicy | None
) -> list[str]:
    """What a person types to serve `model` with `config`; `argv` is vLLM's own command, for where no policy is ours."""
    arguments, options = of_policy(config)
    if policy is None:
        return [*argv, *to_flags({**fixed, **arguments})]
    command = ["sloguard", "serve", "--model", model, "--policy", policy.written(options)]
    limits_s = {"ttft": policy.promise.ttft_s, "tpot": policy.promise.tpot_s}
    if promised := [f"{name}={limit_s * 1000:g}" for name, limit_s in limits_s.items() if limit_s is not None]:
        command += ["--default-slo", ",".join(promised)]
    for name, value in spelled({**fixed, **arguments}).items():
        if value is not None:
            command += ["--engine-arg", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return command


def scheduler_arguments(options: Mapping[str, object]) -> dict[str, Value]:
    """Engine arguments that make vLLM schedule with sloguard; `options` are those of plugins/options.py."""
    return {"scheduler_cls": SCHEDULER, "additional_config": json.dumps({"sloguard": dict(options)})}


def policy_arguments(policy: EnginePolicy, options: Mapping[str, Value]) -> dict[str, Value]:
    """Those for a vLLM beside which sloguard is installed: `options` go before the policy's own, and every request that
    names no class is promised what `policy` promises.
    """
    return scheduler_arguments(
        {
            "policy": policy.name,
            "policy_options": {**policy.options, **options},
            "slo_classes": {"default": Promise.of(policy.promise).model_dump(exclude_none=True)},
            "default_class": "default",
        }
    )
