"""The knobs of a scheduling policy, tuned beside the engine's: `policy.busy` is the option `busy` of the policy.

They are no flags of the engine: `of_policy` takes them out of a config before it is one.
"""

from __future__ import annotations

from sloguard.space.knobs import Categorical, Float, Knob
from sloguard.trial import Config, Value

PREFIX = "policy."
_KNOBS: dict[str, tuple[Knob, ...]] = {
    "sloguard": (
        Float("policy.busy", 0.7, 1.0),
        Float("policy.full", 0.7, 1.3),
        Float("policy.patience", 0.1, 0.6),
    ),
    "slos-serve": (Categorical("policy.admission", ("auto", "dp", "greedy", "edf")),),
}


def policy_knobs(policy: str) -> tuple[Knob, ...]:
    """Empty for a policy without options worth tuning, and for a user's own: name its knobs in a --space file."""
    return _KNOBS.get(policy, ())


def of_policy(config: Config) -> tuple[Config, dict[str, Value]]:
    """The engine's part of a config, and the policy's options."""
    options = {name.removeprefix(PREFIX): value for name, value in config.items() if name.startswith(PREFIX)}
    return Config({name: value for name, value in config.items() if not name.startswith(PREFIX)}), options
