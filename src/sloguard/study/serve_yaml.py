"""A config as the file that `vllm serve --config` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sloguard.engine.lend import scheduler_arguments
from sloguard.plugins.options import Promise
from sloguard.space.flags import to_yaml
from sloguard.space.layout import LAYOUT, Layout
from sloguard.space.policies import of_policy
from sloguard.study.build import engine_policy
from sloguard.study.spec import StudySpec
from sloguard.trial import Trial, Value


def serve_yaml(spec: StudySpec, trial: Trial) -> str:
    """The file for `vllm serve --config` with the config of a trial; the engine's default has no more than what every
    start had.
    """
    config, options = of_policy(trial.overrides)
    split = {LAYOUT: trial.config[LAYOUT]} if LAYOUT in trial.config else Layout(spec.tensor_parallel).sizes
    fixed = {"model": _anywhere(spec.model), **split, **spec.engine_args, **_scheduling(spec, options)}
    return to_yaml(config, fixed)


def _scheduling(spec: StudySpec, options: Mapping[str, Value]) -> dict[str, Value]:
    """Arguments for a vLLM beside which sloguard is installed: the policy, and the study's promise to every request."""
    policy = engine_policy(spec)
    if policy is None:
        return {}
    return scheduler_arguments(
        {
            "policy": policy.name,
            "policy_options": {**policy.options, **options},
            "slo_classes": {"default": Promise.of(policy.promise).model_dump(exclude_none=True)},
            "default_class": "default",
        }
    )


def _anywhere(model: str) -> str:
    """A model's path as it holds from any directory; a hub name as it stands."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model
