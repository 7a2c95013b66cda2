"""A config as the file that `vllm serve --config` reads."""

from __future__ import annotations

from pathlib import Path

from sloguard.engine.lend import policy_arguments
from sloguard.space.flags import to_yaml
from sloguard.space.layout import LAYOUT, Layout
from sloguard.space.policies import of_policy
from sloguard.study.build import engine_policy
from sloguard.study.spec import StudySpec
from sloguard.trial import Trial


def serve_yaml(spec: StudySpec, trial: Trial) -> str:
    """The file for `vllm serve --config` with the config of a trial; the engine's default has no more than what every
    start had.
    """
    config, options = of_policy(trial.overrides)
    split = {LAYOUT: trial.config[LAYOUT]} if LAYOUT in trial.config else Layout(spec.tensor_parallel).sizes
    policy = engine_policy(spec)
    scheduling = {} if policy is None else policy_arguments(policy, options)
    fixed = {"model": _anywhere(spec.model), **split, **spec.engine_args, **scheduling}
    return to_yaml(config, fixed)


def _anywhere(model: str) -> str:
    """A model's path as it holds from any directory; a hub name as it stands."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model
