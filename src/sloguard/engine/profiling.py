"""Profiles an engine: starts it with sloguard's scheduler, which logs its steps, and offers probes until time is up."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sloguard.crash import diagnose
from sloguard.engine.base import OnPhase, Timeouts
from sloguard.engine.lend import check_hooks, lent_environment, refuse_ours, scheduler_arguments
from sloguard.engine.probes import PAUSE_S, SLACK, Asked, EngineLimits, Probe, probe_plan, warm_up
from sloguard.engine.processes import state_dir
from sloguard.engine.step_log import read_step_log
from sloguard.engine.vllm import LOG, VllmEngine
from sloguard.engine.vllm_install import find_vllm
from sloguard.engine.vllm_server import Died, VllmServer
from sloguard.errors import LogError, SloguardError
from sloguard.load.drive import Progress, offer
from sloguard.load.target import Target
from sloguard.perf.fit import Sample, stratum
from sloguard.perf.learning import LearningTime
from sloguard.request import End, Request, Stage
from sloguard.space.flags import parse_effective
from sloguard.trial import Config, Value

STEP_LOG = "steps.jsonl"
CRASH_LOG = "profile-engine.log"
POLICY = "sloguard.sched.probing:Probing"
ROUND_S = 5.0  # of probes that are offered together; between rounds the log is read
LARGEST_PROBE = 1 / 30  # of the time there is
PATIENT = Timeouts(server_start_s=600.0, preflight_s=60.0)  # nothing is tuned here: a slow start is no result


@dataclass(frozen=True, slots=True)
class Profiling:
    """How far it is. `off` is the mean relative error of what was predicted of the last round's steps beforehand."""

    elapsed_s: float
    steps: Mapping[str, int]
    off: float | None


OnProfiling = Callable[[Profiling], None]


@dataclass(frozen=True, slots=True)
class Profiled:
    """The steps after the warm-up, what the engine said it runs with, and wall-clock seconds of start and probes."""

    samples: tuple[Sample, ...]
    warmup_steps: int
    probes: Mapping[str, int]
    unanswered: int
    effective: Mapping[str, Value]
    startup_s: float
    probing_s: float


def profiling_engine(
    model: str, python: str | None, fixed: Mapping[str, Value], gpu: str | None, step_log: Path
) -> VllmEngine:
    """It serves with sloguard's scheduler and logs its steps. Raises SpecError for what can't be started."""
    refuse_ours(fixed)
    ours = scheduler_arguments({"policy": POLICY, "step_log": str(step_log)})
    install = find_vllm(python)
    check_hooks(install)
    env = lent_environment(install, state_dir())
    return VllmEngine(model, python=python, fixed={**fixed, **ours}, gpu=gpu, timeouts=PATIENT, env=env)


def profile_engine(
    model: str,
    *,
    python: str | None,
    fixed: Mapping[str, Value],
    gpu: str | None,
    seconds: float,
    seed: int,
    on_phase: OnPhase,
    on_profiling: OnProfiling,
) -> Profiled:
    """Starts it, probes it for about `seconds` and stops it, whatever happens.

    Raises SpecError for what can't be started and SloguardError for an engine that failed; its log is then kept in the
    state directory.
    """
    with tempfile.TemporaryDirectory(prefix="sloguard-profile-") as name:
        directory = Path(name)
        step_log = directory / STEP_LOG
        engine = profiling_engine(model, python, fixed, gpu, step_log)
        defaults = engine.default_config()
        engine.facts()
        record: dict[str, Any] = {}
        began_s = time.monotonic()
        try:
            with engine.serving(Config(), directory, on_phase, record) as (server, served):
                startup_s = time.monotonic() - began_s
                effective = parse_effective((directory / LOG).read_text(encoding="utf-8", errors="replace"))
                limits = EngineLimits.read(effective, {**defaults, **fixed})
                on_phase("probing")
                probing = _Probing(server, served, step_log, limits, seed, engine.timeouts, on_profiling)
                probing.run(seconds)
            samples = read_step_log(step_log)[probing.warmup_steps :]
        except Died as died:
            kept = state_dir() / CRASH_LOG
            shutil.copyfile(directory / LOG, kept)
            crash = diagnose(died.evidence)
            problem = f"the engine failed ({crash.category}, {crash.phase}): {crash.line} - {crash.hint}"
            raise SloguardError(f"{problem} Its log: {kept}") from None
    return Profiled(
        tuple(samples),
        probing.warmup_steps,
        probing.probes,
        probing.unanswered,
        effective,
        startup_s,
        probing.elapsed_s,
    )


class _Probing:
    """One run of probes against a server that is up."""

    def __init__(
        self,
        server: VllmServer,
        served: str,
        step_log: Path,
        limits: EngineLimits,
        seed: int,
        timeouts: Timeouts,
        on_profiling: OnProfiling,
    ) -> None:
        self._server, self._served, self._step_log, self._limits = server, served, step_log, limits
        self._seed, self._timeouts, self._on_profiling = seed, timeouts, on_profiling
        self._ids = count()
        self._began_s = time.monotonic()
        self._steps = Counter[str]()
        self._off: float | None = None
        self._seen = 0
        self.warmup_steps = self.unanswered = 0
        self.elapsed_s = 0.0
        self.probes = Counter[str]()

    def run(self, seconds: float) -> None:
        learning = LearningTime()
        self._offer(warm_up(self._limits))
        self._learn(learning)
        if not self._seen:
            raise LogError(f"{self._step_log}: the engine has logged no step. Does it schedule with sloguard?")
        self.warmup_steps = self._seen
        self._steps.clear()
        plan = probe_plan(self._limits, learning, LARGEST_PROBE * seconds)
        while (left_s := seconds - self._tell()) > 0:
            self._offer(self._round(plan, min(ROUND_S, left_s)))
            self._learn(learning)

    def _round(self, plan: Iterator[Probe], room_s: float) -> list[Asked]:
        """Probes one after another, as many as `room_s` holds by what is known."""
        asked: list[Asked] = []
        at_s = 0.0
        while at_s < room_s:
            probe = next(plan)
            asked += [Asked(at_s + one.due_s, one.prompt_tokens, one.output_tokens) for one in probe.requests]
            at_s += SLACK * probe.cost_s + PAUSE_S
            self.probes[probe.kind] += 1
        return asked

    def _learn(self, learning: LearningTime) -> None:
        """From the steps that were logged since the last time."""
        fresh = read_step_log(self._step_log)[self._seen :]
        self._seen += len(fresh)
        off = 0.0
        for sample in fresh:
            self._steps[stratum(sample.batch)] += 1
            off += abs(learning.seconds(sample.batch) / sample.seconds - 1)
            learning.observe(sample.batch, sample.seconds)
        self._off = off / len(fresh) if fresh else None

    def _offer(self, asked: Sequence[Asked]) -> None:
        """Raises Died where the engine did not survive it."""
        requests = [
            Request(f"probe-{next(self._ids)}", one.due_s, (Stage(one.prompt_tokens, one.output_tokens),))
            for one in asked
        ]
        timelines = offer(
            Target(self._server.base_url, self._served),
            requests,
            seed=self._seed,
            request_timeout_s=self._timeouts.request_s,
            on_progress=self._progress,
            abort_when=self._server.has_exited,
        ).timelines
        self._server.check_after_load(self._served, timelines)
        self.unanswered += sum(t.end is not End.COMPLETED for t in timelines)

    def _progress(self, _progress: Progress) -> None:
        self._tell()

    def _tell(self) -> float:
        self.elapsed_s = time.monotonic() - self._began_s
        self._on_profiling(Profiling(self.elapsed_s, self._steps, self._off))
        return self.elapsed_s
