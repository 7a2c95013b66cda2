"""The tuning loop: propose, repair, guard, attempt, append. Only this file catches `EngineCrash`.

    history = what the log holds
    until the budget is spent or the space is, and then for each trial that is to be confirmed:
        propose   the engine's default first, then the optimizer, which sees the log and nothing else; or the best
                  once more (confirm.py)
        repair    into something that can run; the trial keeps both
        guard     what can't start is not tried: it is recorded with the trial that follows and taught at no cost
        attempt   the engine runs it, asked the study's question (asking.py); a crash is classified
        append    one durable line

Every step is a function of the log, so a study that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sloguard.crash import Crash, diagnose
from sloguard.engine.base import Engine, OnPhase, ignore_phase
from sloguard.errors import EngineCrash, SloguardError, SpecError
from sloguard.optim.base import Exhausted, Goal, Optimizer, best, measurements
from sloguard.rng import stream
from sloguard.space.repair import Repaired
from sloguard.space.space import Space
from sloguard.space.vllm import lossy
from sloguard.study.asking import Question
from sloguard.study.confirm import doubted, explored, next_recheck
from sloguard.study.log import StudyLog
from sloguard.study.quality import agreement, questions
from sloguard.trial import Answers, Ask, Avoided, Config, Crashed, Measured, Outcome, Proposal, Refused, Trial, Value

REFUSALS_PER_TRIAL = 20  # proposals the guard may turn down before the trial itself is recorded as refused
HANDICAP = 0.9  # the best of several noisy capacities is too high: who fails at it need not be worse
ENVIRONMENT_ATTEMPTS = 3  # a port or a network hiccup is tried again; what persists is the user's to mend


class EnvironmentFault(SloguardError):  # noqa: N818 - it is the machine that is at fault
    """The machine, not a config, keeps the engine from running. The study stops and can be resumed."""

    def __init__(self, crash: Crash, trial_dir: Path) -> None:
        self.crash = crash
        what = f"the engine can't run here ({crash.cause}): {crash.line} {crash.hint}".strip()
        super().__init__(f"{what} Its log is in {trial_dir}; then go on with --resume.")


@dataclass(frozen=True, slots=True)
class Study:
    """The parts of one study. `guard` gives the reason a config can't start, or None. With `race` a config is dropped
    that can't beat the best so far. `rechecks` is how often each candidate for the best is measured again at the end.
    `budget_s` ends the search for candidates after so many seconds of trials. With `quality`, configs that may change
    answers have to agree so far with what they would be (quality.py). `recheck_note` is what a reader of what was
    measured again must know.
    """

    engine: Engine
    optimizer: Optimizer
    space: Space
    repair: Callable[[Config], Repaired]
    guard: Callable[[Config], str | None]
    question: Question
    goal: Goal
    seed: int
    try_default: bool
    race: bool = True
    rechecks: int = 0
    budget_s: float | None = None
    quality: float | None = None
    recheck_note: str | None = None
    retry_wait_s: float = 5.0  # between attempts that the machine, not the config, made fail


def run_study(
    study: Study,
    log: StudyLog,
    budget: int,
    on_trial: Callable[[int, Proposal], None] = lambda number, proposal: None,
    on_phase: OnPhase = ignore_phase,
) -> Iterator[Trial]:
    """Yields every new trial after its line is on disk. Needs `log.writer()` to be held.

    Ends once `budget` configs were tried, or none is left untried, and the best were measured again. Raises
    EnvironmentFault.
    """
    history = log.trials()
    while (proposal := next_proposal(study, history, (), budget)) is not None:
        number = len(history) + 1
        on_trial(number, proposal)
        trial_dir = log.directory / "trials" / f"{number:03d}"
        trial = attempt(study, proposal, number, trial_dir, on_phase)
        stop_if_it_is_no_use(trial, history, trial_dir)
        log.append(trial)
        history.append(trial)
        yield trial


Pending = Sequence[tuple[int, Proposal]]


def next_proposal(study: Study, history: Sequence[Trial], pending: Pending, budget: int) -> Proposal | None:
    """What to run next beside the trials that are `pending`; None where there is nothing, or not yet."""
    exploring = [(number, made) for number, made in pending if made.recheck is None]
    answers = next((t.outcome.answers for t in history if isinstance(t.outcome, Measured) and t.outcome.answers), ())
    if study.quality is not None and not answers and exploring:
        return None  # what it answers is what the next is held to
    made = _next(study, history, pending, exploring, budget)
    return made if made is None or study.quality is None else _asked(made, answers)


def _asked(made: Proposal, answers: Answers) -> Proposal:
    """A config that may change answers is held to those known; one that doesn't gives them, where none are."""
    if not lossy(made.run):
        return made if answers else replace(made, ask=replace(made.ask, reference=()))
    if not answers:
        return replace(made, refused="it may change answers, and there are none to hold it to")
    return replace(made, ask=replace(made.ask, reference=answers))


def _next(study: Study, history: Sequence[Trial], pending: Pending, exploring: Pending, budget: int) -> Proposal | None:
    tried = explored(history)
    left = budget - len(tried) - len(exploring)
    if left > 1 and _time_left(study, tried) and (again := doubted(tried, [made for _, made in pending], study.goal)):
        return again
    if left > 0 and _time_left(study, tried):
        with suppress(Exhausted):
            return propose(study, with_guesses(tried, exploring, study.goal), len(history) + len(pending) + 1)
    if exploring:
        return None  # one of them may yet be the best
    return next_recheck(history, [made for _, made in pending], study.goal, study.rechecks)


def _time_left(study: Study, tried: Sequence[Trial]) -> bool:
    return study.budget_s is None or sum(trial.cost_s for trial in tried) < study.budget_s


PENDING = "is being tried"


def with_guesses(history: Sequence[Trial], pending: Pending, goal: Goal) -> list[Trial]:
    """`history` and, for each pending trial, one that ended as the worst of those that kept the promises did, or of
    those that were measured, or, while none was, as if it had been refused (the "constant liar" of Ginsbourger et al.
    2010).
    """
    measured = [trial for trial in history if isinstance(trial.outcome, Measured)]
    worst = min(measured, key=lambda trial: (not trial.feasible, goal.score(trial) or 0.0), default=None)
    known = worst.outcome if worst is not None else None
    outcome = replace(known, effective={}) if isinstance(known, Measured) else Refused(PENDING)
    guesses = [
        Trial(number, made.proposed, made.config, outcome, 0.0, made.repairs, made.avoided) for number, made in pending
    ]
    return [*history, *guesses]


def propose(study: Study, history: Sequence[Trial], number: int) -> Proposal:
    """The next config to try, given every other that was or is. Raises Exhausted when there is none."""
    if number == 1 and study.try_default:
        known = {n: value for n, value in study.engine.default_config().items() if value is not None}
        return Proposal(Config(), Config({n: known[n] for n in study.space.names if n in known}))
    seen = list(with_avoided(history))
    ask = Ask(to_beat=_to_beat(study, history))
    avoided: list[Avoided] = []
    while True:
        proposed = study.optimizer.propose(seen, stream(study.seed, "propose", number, len(avoided)))
        repaired = study.repair(proposed)
        reason = study.guard(repaired.config)
        if reason is None or len(avoided) == REFUSALS_PER_TRIAL:
            return Proposal(proposed, repaired.config, repaired.notes, tuple(avoided), reason, ask)
        avoided.append(Avoided(proposed, repaired.config, reason))
        seen.append(_as_refused(avoided[-1], number))


def _to_beat(study: Study, history: Sequence[Trial]) -> float | None:
    """Where configs are raced: a little below the rate that the best so far keeps."""
    incumbent = best(history, study.goal)
    if not study.race or incumbent is None:
        return None
    rates = [t.capacity.low for t in measurements(incumbent, history) if t.capacity is not None]
    return HANDICAP * Goal.mean(rates) if rates else None


def with_avoided(history: Sequence[Trial]) -> Iterator[Trial]:
    """The log as optimizers see it: each refusal stands, as a refused trial, before the trial it belongs to."""
    for trial in history:
        yield from (_as_refused(a, trial.number) for a in trial.avoided)
        yield trial


def _as_refused(avoided: Avoided, number: int) -> Trial:
    return Trial(number, avoided.proposed, avoided.config, Refused(avoided.reason), 0.0)


def attempt(study: Study, proposal: Proposal, number: int, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Trial:
    """Runs it, and judges what came of it."""

    def trial(outcome: Outcome, cost_s: float, config: Config = proposal.config) -> Trial:
        made = proposal
        return Trial(number, made.proposed, config, outcome, cost_s, made.repairs, made.avoided, made.recheck)

    if proposal.refused is not None:
        _emptied(trial_dir)
        return trial(Refused(proposal.refused), 0.0)
    cost_s, reference, least = 0.0, proposal.ask.reference, study.quality or 0.0
    for attempt in range(1, ENVIRONMENT_ATTEMPTS + 1):
        try:
            plan = study.question.plan(proposal.ask)
            if reference is not None:
                plan = replace(plan, questions=questions(reference, least))
            run = study.engine.run(proposal.run, plan, _emptied(trial_dir), on_phase)
        except EngineCrash as error:
            cost_s += error.cost_s
            crash = diagnose(error.evidence)
            if crash.environment and attempt < ENVIRONMENT_ATTEMPTS:
                time.sleep(study.retry_wait_s)
                continue
            return trial(Crashed(crash), cost_s)
        notes = run.notes
        if proposal.recheck is not None and study.recheck_note is not None:
            notes = (*notes, study.recheck_note)
        if reference:
            share = agreement(run.answers, reference)
            told = f"{', '.join(lossy(proposal.run))}: answers agree to {share:.1%} with those of the default"
            if share < least:
                return trial(Refused(f"{told}, and {least:.0%} is asked"), cost_s + run.cost_s)
            notes = (*notes, told)
        summary, verdict, capacity = study.question.measured(proposal.ask, run)
        kept = run.answers if reference == () else ()
        measured = Measured(summary, verdict, run.startup_s, run.effective, notes, capacity, kept)
        config = proposal.config if proposal.proposed else _as_it_ran(proposal.config, run.effective, study.space)
        return trial(measured, cost_s + run.cost_s, config)
    raise AssertionError("unreachable: the last attempt returns")


def _as_it_ran(known: Config, effective: Mapping[str, Value], space: Space) -> Config:
    """The default as the engine says it ran, and as it is known to be where the engine doesn't say."""
    told = {n: effective[n] for n in space.names if n in effective and space.knob(n).accepts(effective[n])}
    return known.replace(**told)


def stop_if_it_is_no_use(trial: Trial, history: Sequence[Trial], trial_dir: Path) -> None:
    """Raises EnvironmentFault or SpecError where what kept this trial from running keeps every other."""
    _stop_if_nothing_can_run(trial, history, trial_dir)
    _stop_if_the_default_is_invalid(trial)


def _stop_if_nothing_can_run(trial: Trial, history: Sequence[Trial], trial_dir: Path) -> None:
    """A fault of the machine ends the study if nothing ever ran, or if it is the second in a row."""
    fault = _environment_fault(trial)
    measured = any(isinstance(t.outcome, Measured) for t in history)
    if fault is not None and (not measured or _environment_fault(history[-1]) is not None):
        raise EnvironmentFault(fault, trial_dir)


def _stop_if_the_default_is_invalid(trial: Trial) -> None:
    """What is wrong with a start without tuned knobs is wrong with the arguments that every start has."""
    if not trial.proposed and isinstance(trial.outcome, Crashed) and trial.outcome.crash.cause == "config_invalid":
        crash = trial.outcome.crash
        raise SpecError("--engine-arg", crash.line, "the engine rejects what every trial starts with", crash.hint)


def _environment_fault(trial: Trial) -> Crash | None:
    crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
    return crash if crash is not None and crash.environment else None


def _emptied(path: Path) -> Path:
    """A fresh directory for an attempt's logs; what a killed attempt left there is not part of the record."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path
