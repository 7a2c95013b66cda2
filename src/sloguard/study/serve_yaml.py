"""A config as the file that `vllm serve --config` reads."""

from __future__ import annotations

from sloguard.engine.lend import policy_arguments
from sloguard.space.flags import to_yaml
from sloguard.space.layout import LAYOUT, Layout
from sloguard.space.policies import of_policy
from sloguard.study.build import asked_policy
from sloguard.study.header import Header
from sloguard.trial import Trial


def serve_yaml(header: Header, trial: Trial) -> str:
    """The file for `vllm serve --config` with the config of a trial; the engine's default has no more than what every
    start had.
    """
    spec = header.spec
    config, options = of_policy(trial.overrides)
    split = {LAYOUT: trial.config[LAYOUT]} if LAYOUT in trial.config else Layout(spec.tensor_parallel).sizes
    policy = asked_policy(spec)
    scheduling = {} if policy is None else policy_arguments(policy, options)
    fixed = {"model": header.model, **split, **spec.engine_args, **scheduling}
    return to_yaml(config, fixed)
