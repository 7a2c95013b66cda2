"""The tuning loop: propose, repair, guard, attempt, append. Only this file catches `EngineCrash`.

    history = what the log holds
    until the budget is spent or the space is:
        propose   the engine's default first, then the optimizer, which sees the log and nothing else
        repair    into something that can run; the trial keeps both
        guard     what can't start is not tried: it is recorded with the trial that follows and taught at no cost
        attempt   the engine runs it under the study's requests, the contract judges it; a crash is classified
        append    one durable line

Every step is a function of the log, so a study that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sloguard.contract import Contract
from sloguard.crash import Crash, diagnose
from sloguard.engine.base import Engine, OnPhase, ignore_phase
from sloguard.errors import EngineCrash, SloguardError
from sloguard.metrics import summarise
from sloguard.optim.base import Exhausted, Optimizer
from sloguard.request import Request
from sloguard.rng import stream
from sloguard.space.repair import Repaired
from sloguard.space.space import Space
from sloguard.study.log import StudyLog
from sloguard.trial import Avoided, Config, Crashed, Measured, Outcome, Refused, Trial, Value

REFUSALS_PER_TRIAL = 20  # proposals the guard may turn down before the trial itself is recorded as refused
ENVIRONMENT_ATTEMPTS = 3  # a port or a network hiccup is tried again; what persists is the user's to mend


class EnvironmentFault(SloguardError):  # noqa: N818 - it is the machine that is at fault
    """The machine, not a config, keeps the engine from running. The study stops and can be resumed."""

    def __init__(self, crash: Crash) -> None:
        self.crash = crash
        super().__init__(f"the engine can't run here ({crash.cause}): {crash.line} {crash.hint}".strip())


@dataclass(frozen=True, slots=True)
class Study:
    """The parts of one study. `guard` gives the reason a config can't start, or None."""

    engine: Engine
    optimizer: Optimizer
    space: Space
    repair: Callable[[Config], Repaired]
    guard: Callable[[Config], str | None]
    requests: Sequence[Request]
    contract: Contract
    seed: int
    try_default: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    proposed: Config
    config: Config
    repairs: tuple[str, ...] = ()
    avoided: tuple[Avoided, ...] = ()
    refused: str | None = None


def run_study(
    study: Study,
    log: StudyLog,
    budget: int,
    on_trial: Callable[[int, Proposal], None] = lambda number, proposal: None,
    on_phase: OnPhase = ignore_phase,
) -> Iterator[Trial]:
    """Yields every new trial after its line is on disk. Needs `log.writer()` to be held.

    Ends after `budget` trials in all, or when no untried config is left. Raises EnvironmentFault.
    """
    history = log.trials()
    while len(history) < budget:
        number = len(history) + 1
        try:
            proposal = propose(study, history, number)
        except Exhausted:
            return
        on_trial(number, proposal)
        trial = _attempt(study, proposal, number, log.directory / "trials" / f"{number:03d}", on_phase)
        _stop_if_nothing_can_run(trial, history)
        log.append(trial)
        history.append(trial)
        yield trial


def propose(study: Study, history: Sequence[Trial], number: int) -> Proposal:
    """The next config to try. Raises Exhausted when there is none."""
    if number == 1 and study.try_default:
        known = study.engine.default_config()
        return Proposal(Config(), Config({name: known[name] for name in study.space.names if name in known}))
    seen = list(with_avoided(history))
    avoided: list[Avoided] = []
    while True:
        proposed = study.optimizer.propose(seen, stream(study.seed, "propose", number, len(avoided)))
        repaired = study.repair(proposed)
        reason = study.guard(repaired.config)
        if reason is None or len(avoided) == REFUSALS_PER_TRIAL:
            return Proposal(proposed, repaired.config, repaired.notes, tuple(avoided), reason)
        avoided.append(Avoided(proposed, repaired.config, reason))
        seen.append(_as_refused(avoided[-1], number))


def with_avoided(history: Sequence[Trial]) -> Iterator[Trial]:
    """The log as optimizers see it: each refusal stands, as a refused trial, before the trial it belongs to."""
    for trial in history:
        yield from (_as_refused(a, trial.number) for a in trial.avoided)
        yield trial


def _as_refused(avoided: Avoided, number: int) -> Trial:
    return Trial(number, avoided.proposed, avoided.config, Refused(avoided.reason), 0.0)


def _attempt(study: Study, proposal: Proposal, number: int, trial_dir: Path, on_phase: OnPhase) -> Trial:
    def trial(outcome: Outcome, cost_s: float, config: Config = proposal.config) -> Trial:
        return Trial(number, proposal.proposed, config, outcome, cost_s, proposal.repairs, proposal.avoided)

    if proposal.refused is not None:
        _emptied(trial_dir)
        return trial(Refused(proposal.refused), 0.0)
    cost_s = 0.0
    for attempt in range(1, ENVIRONMENT_ATTEMPTS + 1):
        try:
            run = study.engine.run(proposal.config, study.requests, _emptied(trial_dir), on_phase)
        except EngineCrash as error:
            cost_s += error.cost_s
            crash = diagnose(error.evidence)
            if crash.environment and attempt < ENVIRONMENT_ATTEMPTS:
                continue
            return trial(Crashed(crash), cost_s)
        verdict = study.contract.judge(run.timelines)
        measured = Measured(summarise(run.timelines), verdict, run.startup_s, run.effective, run.notes)
        return trial(measured, cost_s + run.cost_s, _resolved(proposal.config, run.effective, study.space))
    raise AssertionError("unreachable: the last attempt returns")


def _resolved(config: Config, effective: Mapping[str, Value], space: Space) -> Config:
    """The config as it ran. An engine that was started without overrides says itself which values it chose."""
    return config or Config({name: effective[name] for name in space.names if name in effective})


def _stop_if_nothing_can_run(trial: Trial, history: Sequence[Trial]) -> None:
    """A fault of the machine ends the study if nothing ever ran, or if it is the second in a row."""
    fault = _environment_fault(trial)
    measured = any(isinstance(t.outcome, Measured) for t in history)
    if fault is not None and (not measured or _environment_fault(history[-1]) is not None):
        raise EnvironmentFault(fault)


def _environment_fault(trial: Trial) -> Crash | None:
    crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    return crash if crash is not None and crash.environment else None


def _emptied(path: Path) -> Path:
    """A fresh directory for an attempt's logs; what a killed attempt left there is not part of the record."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path
