"""What every engine does: start with one configuration, serve the loads of a plan, stop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from sloguard.perf.gpus import GpuFacts
from sloguard.perf.model_shape import ModelShape
from sloguard.request import Request, Timeline
from sloguard.slo import NO_SLO, StageSLO
from sloguard.space.space import Space
from sloguard.trial import Answers, Config, Value


@dataclass(frozen=True, slots=True)
class Load:
    """Requests for a started engine, offered at their arrival times. `seed` tells their prompts from those of other
    loads; `rate` is what they were built for [requests/s], None where nobody asked for one. `stop_when`, told of each
    request as it ends, ends the load early: what is unfinished then is CANCELLED.
    """

    requests: Sequence[Request]
    seed: int = 0
    rate: float | None = None
    stop_when: Callable[[Timeline], bool] | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """Prompts to complete greedily, one after the other, by up to `tokens` tokens each. No load is offered to an engine
    whose answers are not `passed_by`.
    """

    prompts: Sequence[str]
    tokens: int
    passed_by: Callable[[Answers], bool]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The loads of one start: `loads` yields what to offer next and is sent what became of it; between two loads the
    engine is idle. `seed` tells this start from others of the same config: on a simulated engine, by its noise.
    `questions` come before any load; an engine that can't answer (`Facts`) has none.
    """

    loads: Generator[Load, Sequence[Timeline], None]
    seed: int = 0
    questions: Questions | None = None


def once(requests: Sequence[Request], seed: int = 0) -> LoadPlan:
    """The plan of one load."""

    def loads() -> Generator[Load, Sequence[Timeline], None]:
        yield Load(requests, seed)

    return LoadPlan(loads(), seed)


@dataclass(frozen=True, slots=True)
class Served:
    """A load and what became of each of its requests, in their order."""

    load: Load
    timelines: Sequence[Timeline]


def follow(plan: LoadPlan, offer: Callable[[Load], Sequence[Timeline]]) -> tuple[Served, ...]:
    """Offers the loads of `plan`, one after another."""
    served: list[Served] = []
    load = next(plan.loads, None)
    while load is not None:
        served.append(Served(load, offer(load)))
        try:
            load = plan.loads.send(served[-1].timelines)
        except StopIteration:
            load = None
    return tuple(served)


@dataclass(frozen=True, slots=True)
class Run:
    """One engine start and its loads. `effective` holds the knobs that the engine says it runs with, where it says so;
    `notes` what a reader of the figures must know, such as output lengths that could not be forced.

    `cost_s` is start-up, loads and stop together: virtual seconds on a simulated engine, wall clock on a real one.
    """

    served: tuple[Served, ...]
    startup_s: float
    cost_s: float
    effective: dict[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    answers: Answers = ()

    @property
    def timelines(self) -> list[Timeline]:
        """Of all loads."""
        return [timeline for one in self.served for timeline in one.timelines]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds. The first start of a model compiles and loads weights, so it is given longer."""

    request_s: float = 60.0
    trial_s: float = 180.0
    server_start_s: float = 120.0
    first_start_s: float = 900.0
    preflight_s: float = 30.0


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """A scheduling policy of sloguard's inside the engine: a name of sched/policy.py or a path to a class, and options
    that every trial has beside those that a config tunes (space/policies.py). `promise` is that of requests without one
    of their own, once the engine serves.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)
    promise: StageSLO = NO_SLO

    def written(self, options: Mapping[str, Value]) -> str:
        """As the flag --policy takes it."""
        return ":".join([self.name, *(f"{key}={_toml(value)}" for key, value in {**self.options, **options}.items())])


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What any engine may be built from (`from_setup`); each takes what it needs and rejects what it can't honour.

    `fixed` are engine arguments that the user pinned (underscored names): they are part of every start and not tuned.
    An engine with `gpus` starts on all of them, however laid out; one without splits the model over `tensor_parallel`.
    """

    model: str
    gpu: str | None = None
    tensor_parallel: int = 1
    gpus: int | None = None
    seed: int = 0
    fixed: Mapping[str, Value] = field(default_factory=dict)
    python: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    timeouts: Timeouts = Timeouts()
    policy: EnginePolicy | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Where the engine runs: what the space and the memory guard need to know. None is unknown.

    `offered` are the flags that the installed vLLM's own command line has; `gpu` is None on a CPU build. An engine that
    is not `tunable` (a server that somebody else runs) has an empty space. `layouts` are the ways to use the GPUs that
    it was given, first that of its default; empty where it was given no number of them. One that `answers` can be held
    to what it answers. What did not start on one whose `crashes_last` is not started by a later study either, as far as
    `describe` says the same; not so where starts fail by chance, or cost nothing.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    tunable: bool = True
    version: tuple[int, int, int] | None = None
    offered: frozenset[str] | None = None
    gpu: GpuFacts | None = None
    model: ModelShape | None = None
    layouts: tuple[str, ...] = ()
    answers: bool = False
    crashes_last: bool = True


def _toml(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


OnPhase = Callable[[str], None]


def ignore_phase(phase: str) -> None:
    """The `on_phase` of a caller that doesn't watch."""


class Engine(Protocol):
    """A thing that can run a config. Raises `EngineCrash` when the engine fails, `SpecError` when the user's input is
    why; anything else is a bug.
    """

    def default_config(self) -> Config:
        """The values that the engine is known to run with when nothing is asked of it. They are recorded, not passed:
        the default is tried by running `Config()`, and `Run.effective` corrects what was known beforehand.
        """
        ...

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        """Starts the engine with `config`, offers the loads of `plan` (see `follow`), stops the engine.

        Logs and raw results go under `trial_dir`, which exists and is empty. `on_phase` is told "starting", "loading"
        (with figures, where there are any) and "stopping" as they begin.
        """
        ...

    def command_for(self, config: Config) -> list[str]:
        """What a person types to serve the model with `config`; empty where the server is not ours to start."""
        ...

    def facts(self) -> Facts:
        """Where it runs. May start short-lived processes to find out."""
        ...

    def check_space(self, space: Space) -> None:
        """Raises SpecError for a knob whose values the engine can't take. Passing is no promise that it starts."""
        ...

    def describe(self) -> dict[str, str]:
        """What a study's header records of the engine: kind, version, GPU, model."""
        ...
