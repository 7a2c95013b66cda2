"""How a study went: the best so far, what crashed and why, and every trial."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from sloguard.optim.base import Goal, standing
from sloguard.optim.effects import tried_space
from sloguard.page.figures import progress, value_text
from sloguard.page.page import Block, Case, Cell, Column, Figure, Figures, Section, Table
from sloguard.page.tune_words import MINUTE_S, axis, counted, dot_of, number_text, time_text, tip
from sloguard.report.tables import status_of
from sloguard.study.confirm import explored
from sloguard.study.record import Record
from sloguard.study.results import Results
from sloguard.trial import Crashed, Refused, Trial

NAME, TITLE = "search", "Best so far"
DASH = "-"


def search_section(record: Record) -> Section:
    results, goal = record.results, record.results.goal
    tried = results.explored
    ends_s = list(accumulate(trial.cost_s for trial in results.trials))
    lost = [
        ((end_s - trial.cost_s) / MINUTE_S, end_s / MINUTE_S, tip(trial, goal))
        for trial, end_s in zip(results.trials, ends_s, strict=True)
        if isinstance(trial.outcome, Crashed)
    ]
    at_s = [end_s for trial, end_s in zip(results.trials, ends_s, strict=True) if trial.recheck is None]
    by_trial = [dot_of(trial, goal, at) for at, trial in enumerate(tried, start=1)]
    in_order = all(trial.number == at for at, trial in enumerate(tried, start=1))
    by_time = [dot_of(t, goal, end_s / MINUTE_S) for t, end_s in zip(tried, at_s, strict=True)]
    bests = [_best_score(tried[: n + 1], goal) for n in range(len(tried))]
    climbed = [(n, at, b) for n, (at, b) in enumerate(zip(at_s, bests, strict=True), start=1) if b is not None]
    told = _told(results, climbed[-1][2] if climbed else None)
    clock = "virtual minutes" if record.simulated else "minutes"
    lead = (
        f"{counted(len(tried), 'trial')} took {time_text(sum(t.cost_s for t in tried))}, "
        f"{time_text(sum(t.cost_s for t in tried if isinstance(t.outcome, Crashed)))} of it in crashes. {told}"
    )
    if all(one.y is None for one in by_trial):
        return Section(NAME, TITLE, lead, ())
    trial_steps = [(float(number), goal.told.shown(best)) for number, _, best in climbed]
    time_steps = [(at / MINUTE_S, goal.told.shown(best)) for _, at, best in climbed]
    doubted = any(after < before for (*_, before), (*_, after) in pairwise(climbed))
    panels = (
        Figure(
            "best-by-trial",
            "By trial",
            f"Best score so far by trial. {told} Each trial is in the table of all trials.",
            progress(by_trial, trial_steps, "trial" if in_order else "trials, as they ended", axis(goal)),
            caption=_legend(tried, goal, doubted=doubted),
        ),
        Figure(
            "best-by-time",
            "By time",
            f"Best score so far over engine time. {counted(len(lost), 'span')} of it went into crashes.",
            progress(by_time, time_steps, f"{clock} of trials", axis(goal), lost),
            caption="Shaded: time that went into trials that crashed." if lost else "No time was lost to crashes.",
        ),
    )
    return Section(NAME, TITLE, lead, (Figures(panels),))


def _best_score(trials: Sequence[Trial], goal: Goal) -> float | None:
    ranked = standing(explored(trials), goal)
    return ranked[0][0] if ranked else None


def _told(results: Results, best: float | None) -> str:
    if best is None:
        return "No trial kept the promises."
    again = ", before it was measured again" if results.confirmed else ""
    return f"The best of the search was {results.goal.told.text(best)}{again}."


def _legend(tried: Sequence[Trial], goal: Goal, *, doubted: bool) -> str:
    seen = {status_of(trial) for trial in tried if dot_of(trial, goal, 0).y is None or status_of(trial) == "dropped"}
    if doubted:
        seen.add("doubted")
    parts = {
        "dropped": "A dropped config stands at a rate that it failed at: what it would keep is not known.",
        "missed": "A config that missed without a figure stands at the bottom.",
        "crashed": "Crashes stand at the bottom.",
        "doubted": "The line falls where a best was measured a second time.",
    }
    return " ".join(text for status, text in parts.items() if status in seen)


def crash_section(record: Record) -> Section:
    results = record.results
    crashed = [(t, t.outcome.crash) for t in results.trials if isinstance(t.outcome, Crashed)]
    blocks: list[Block] = []
    for category, cause in dict.fromkeys((crash.category, crash.cause) for _, crash in crashed):
        same = [(t, crash) for t, crash in crashed if (crash.category, crash.cause) == (category, cause)]
        which = ", ".join(str(t.number) for t, _ in same)
        times = f"{counted(len(same), 'trial')} ({which}), {time_text(sum(t.cost_s for t, _ in same))} lost"
        blocks.append(Case(f"{category}/{cause}", times, same[0][1].line, same[0][1].hint))
    if refused := _refused(results):
        head = (Column("reason"), Column("configs", number=True))
        blocks.append(Table("Configs that were refused", head, refused))
    share = f"{len(crashed)} of {counted(len(results.trials), 'trial')} crashed and took {time_text(results.wasted_s)}"
    lead = f"{share}." if crashed else "No trial crashed."
    if results.avoided:
        lead += f" {counted(results.avoided, 'more config' if crashed else 'config')} would not have run: refused."
    return Section("crashes", "What crashed, and why", lead, tuple(blocks))


def _refused(results: Results) -> tuple[tuple[Cell, ...], ...]:
    reasons = [a.reason for t in results.trials for a in t.avoided]
    reasons += [t.outcome.reason for t in results.trials if isinstance(t.outcome, Refused)]
    return tuple(
        (Cell(reason, code=True), Cell(str(reasons.count(reason)), reasons.count(reason)))
        for reason in dict.fromkeys(reasons)
    )


def trials_section(record: Record) -> Section:
    results = record.results
    knobs = tried_space([trial.config for trial in results.trials]).names
    head = (
        Column("trial", number=True),
        Column("status"),
        Column(axis(results.goal), number=True),
        Column("time, s", number=True),
        *(Column(name) for name in knobs),
        Column("what it came to"),
    )
    rows = tuple(_row(trial, results, knobs) for trial in results.trials)
    best = results.best
    strong = frozenset(i for i, t in enumerate(results.trials) if best is not None and t.number == best.number)
    lead = "Knobs that never changed are left out. What measured another trial again did so under other arrivals."
    return Section(
        "trials",
        "All trials",
        lead,
        (Table("Trials", head, rows, sortable=True, filter="status", strong=strong),),
    )


def _row(trial: Trial, results: Results, knobs: Sequence[str]) -> tuple[Cell, ...]:
    score = results.goal.score(trial)
    return (
        Cell(str(trial.number), trial.number),
        Cell(status_of(trial), mark=status_of(trial)),
        Cell(DASH) if score is None else Cell(number_text(score, results.goal), results.goal.told.shown(score)),
        Cell(f"{trial.cost_s:.0f}", trial.cost_s),
        *(_knob(trial, name) for name in knobs),
        Cell(_outcome(trial)),
    )


def _knob(trial: Trial, name: str) -> Cell:
    if name not in trial.config:
        return Cell(DASH)
    value = trial.config[name]
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(value_text(value), number)


def _outcome(trial: Trial) -> str:
    match trial.outcome:
        case Crashed(crash):
            return f"{crash.category}/{crash.cause}"
        case Refused(reason):
            return reason
        case _:
            found = trial.capacity
            again = [] if trial.recheck is None else [f"trial {trial.recheck} again"]
            failed = [f"fails at {found.high:.2f} req/s"] if found is not None and found.dropped else []
            return ", ".join([*again, *failed]) or DASH
