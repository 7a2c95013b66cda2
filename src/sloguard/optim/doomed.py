"""What a crash says beyond its own config: whoever asks at least as much of what ran out will crash as well.

A row is a crash and, for each knob, which way makes it worse (+1: more of it). Read in vLLM 0.32: memory is checked
against gpu_memory_utilization before anything is loaded; activations grow with the tokens of a step and with its
sequences; CUDA graphs take memory beside the budget; what is left of the budget is the KV cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sloguard.optim.base import place
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Measured, Trial, Value

SHARE, TOKENS, SEQS = "gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs"
EAGER, GRAPHS, LENGTH = "enforce_eager", "max_cudagraph_capture_size", "max_model_len"


@dataclass(frozen=True, slots=True)
class _Row:
    cause: str
    line: re.Pattern[str]
    worse: Mapping[str, int]


_ROWS = (
    _Row("gpu_memory", re.compile("desired .*memory utilization", re.IGNORECASE), {SHARE: 1}),
    _Row("gpu_memory", re.compile(""), {SHARE: 1, TOKENS: 1, SEQS: 1, LENGTH: 1, EAGER: -1, GRAPHS: 1}),
    _Row("kv_cache_too_small", re.compile(""), {SHARE: -1, TOKENS: 1, SEQS: 1, LENGTH: 1, EAGER: -1, GRAPHS: 1}),
)


@dataclass(frozen=True, slots=True)
class Doom:
    """What a crashed config asked for, and which way is worse."""

    asked: Config
    worse: Mapping[str, int]

    def takes(self, config: Config) -> bool:
        """Whether `config` asks for as much or more. What one of them doesn't say can't be compared."""
        return all(_as_bad(self.asked.get(name), config.get(name), way) for name, way in self.worse.items())


def dooms(trials: Sequence[Trial], space: Space) -> list[Doom]:
    """One for each crash whose cause is understood and that a knob of `space` has a part in."""
    return [Doom(place(trial, space), worse) for trial in trials if (worse := _worse(trial, space))]


def places(trials: Sequence[Trial], space: Space) -> list[Config]:
    """Where each trial lies. A crash that is understood lies, but for the knobs that have a part in it, where the trial
    does that ran and is most like it: nothing else is to be blamed.
    """
    ran = [place(trial, space) for trial in trials if isinstance(trial.outcome, Measured)]

    def of(trial: Trial) -> Config:
        own, worse = place(trial, space), _worse(trial, space)
        if not worse or not ran:
            return own
        like = max(ran, key=lambda other: sum(other.get(name) == value for name, value in own.items()))
        return space.activate({**like, **{name: own[name] for name in worse if name in own}})

    return [of(trial) for trial in trials]


def _worse(trial: Trial, space: Space) -> Mapping[str, int]:
    """The knobs that have a part in why it crashed, and their ways; empty where that is not known."""
    crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    rows = [row for row in _ROWS if crash is not None and row.cause == crash.cause and row.line.search(crash.line)]
    return {name: way for name, way in rows[0].worse.items() if name in space.names} if rows else {}


def _as_bad(asked: Value, other: Value, way: int) -> bool:
    """A knob that is inactive in both, such as the size of graphs where there are none, is as bad."""
    if isinstance(asked, int | float) and isinstance(other, int | float):
        return (other - asked) * way >= 0
    return asked is None and other is None
