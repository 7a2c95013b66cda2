"""Tables a person can read in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sloguard.contract import Attained, Check
from sloguard.optim.base import Goal
from sloguard.slo import Judgement
from sloguard.study.confirm import RUN_TO_RUN_NOISE
from sloguard.study.header import Header
from sloguard.study.results import Results, binding_check
from sloguard.trial import Config, Crashed, Measured, Refused, Trial

SIMULATED = "Simulated engine: figures are a model's, times are virtual. Confirm on the real one."

INF = float("inf")
STYLES = {Judgement.MET: "green", Judgement.MISSED: "yellow", Judgement.UNKNOWN: "magenta"}


def trial_line(trial: Trial, goal: Goal) -> Text:
    """One line on what came of a trial."""
    head = f"{trial.number:>4}  "
    tail = f"  {trial.cost_s:7.1f} s"
    match trial.outcome:
        case Measured(summary=summary, verdict=verdict):
            remarks = [*_search_text(trial), *(check_text(check) for check in verdict.checks)]
            if verdict.attained:
                remarks.append(f"{verdict.attained.share:.1%} of requests as promised")
            if trial.recheck is not None:
                remarks.append(f"trial {trial.recheck} measured again")
            if summary.completed < summary.offered:
                remarks.append(f"{summary.offered - summary.completed} of {summary.offered} requests lost")
            if summary.client_limited:
                remarks.append("CLIENT-LIMITED")
            what = f"{score_text(goal.score(trial), goal)}  {', '.join(remarks)}"
            style = STYLES[verdict.judgement]
        case Crashed(crash=crash):
            what, style = f"{crash.category}/{crash.cause}: {crash.line}", "red"
        case Refused(reason=reason):
            what, style = reason, "cyan"
    return Text.assemble(head, (f"{status_of(trial):<9}", style), tail, "  ", what)


def status_of(trial: Trial) -> str:
    """feasible, dropped, missed, unknown, crashed or refused."""
    match trial.outcome:
        case Measured(verdict=verdict):
            dropped = trial.capacity is not None and trial.capacity.dropped
            return "feasible" if trial.feasible else "dropped" if dropped else str(verdict.judgement)
        case Crashed():
            return "crashed"
        case Refused():
            return "refused"


def score_text(score: float | None, goal: Goal) -> str:
    return "not measured" if score is None else goal.told.text(score)


def _search_text(trial: Trial) -> Iterator[str]:
    """What a reader has to know of how its capacity was found."""
    found = trial.capacity
    if found is None:
        return
    if found.dropped:
        yield f"fails at {found.high:.2f} req/s"
    elif not found.low:
        yield f"nothing passes down to {found.high:.3g} req/s"
    elif not found.resolved:
        yield "unresolved: no rate that was tried fails" if found.high == INF else f"unresolved: up to {found.high:.3g}"


def attained_text(attained: Attained) -> str:
    """E.g. `97.5 % of requests as promised (95 % asked, 95 % interval 94.1 to 99.0 %)`."""
    low, high = attained.interval
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    return f"{attained.share:.1%} of requests as promised ({attained.target:.0%} asked, {interval})"


def check_text(check: Check) -> str:
    """A promise and what was measured, e.g. `p99 TTFT 431 of 500 ms`; lost requests are infinitely late."""
    limit = check.limit
    if check.measured_s is None:
        measured = "not measured"
    elif check.measured_s == INF:
        measured = "∞"
    else:
        measured = f"{check.measured_s * 1000:.0f}"
    return f"p{limit.quantile:g} {limit.metric.upper()} {measured} of {limit.limit_s * 1000:g} ms"


def study_report(header: Header, results: Results) -> RenderableType:
    """The end of a study: verdict, best beside default, crashes by cause, what to be wary of."""
    parts: list[RenderableType] = [Text(""), verdict(results), Text(f"Load: {load_text(header, results)}", "dim")]
    if header.simulated:
        parts.append(Text(simulated_text(header), "dim"))
    if results.best or results.closest:
        parts.append(_comparison(results))
    if results.crashes or results.avoided:
        parts.append(_crashes(results))
    parts += [Text(line, "yellow") for line in warnings_on(results)]
    return Group(*parts)


def simulated_text(header: Header) -> str:
    """What a reader of a simulation's figures must know first, and where its step times come from."""
    source = header.engine.get("step_times")
    return SIMULATED + (f" Step times: {source}." if source else "")


def load_text(header: Header, results: Results) -> str:
    """What was asked of the engine, e.g. `interactive, on average 615 tokens in and 370 out`."""
    name = PurePath(header.spec.workload).name
    summaries = (t.outcome.summary for t in results.trials if isinstance(t.outcome, Measured))
    summary = next((one for one in summaries if one.completed), None)
    if summary is None:
        return name
    means = (tokens / summary.completed for tokens in (summary.prompt_tokens, summary.output_tokens))
    return "{}, on average {:.0f} tokens in and {:.0f} out".format(name, *means)


def verdict(results: Results) -> Text:
    """What to deploy and how sure that is, in one or two sentences."""
    best, default = results.best, results.default
    if best is None:
        return _infeasible(results)
    score = f"{score_text(results.score(best), results.goal)} within the SLOs{_again(results, best)}"
    if default is None:
        return Text(f"Deploy trial {best.number}: {score}.", "bold green")
    if len(results.explored) == 1:
        return Text(f"Measured one config: {score}.", "bold green")
    if default is best:
        why = "no config tried beats it beyond noise" if results.confirmed else "no config tried beats it"
        return Text(f"Keep the default: {why}. It serves {score}.{_rival_text(results)}", "bold green")
    if results.gain is None:
        check = binding_check(default)
        why = f"misses them ({check_text(check)})" if check else _why_not(default)
        return Text(f"Deploy trial {best.number}: {score}; the default {why}.", "bold green")
    gain = f"{score}, {results.gain:+.1%} over the default{_interval_text(results, best)}"
    if results.gain_interval is None and results.gain < RUN_TO_RUN_NOISE:
        chance = "no more than runs differ by chance, so the default is as good a choice."
        return Text(f"Best: trial {best.number}, {gain}: {chance}", "bold green")
    return Text(f"Deploy trial {best.number}: {gain}.", "bold green")


def _interval_text(results: Results, trial: Trial) -> str:
    interval = results.interval_of(trial)
    return "" if interval is None else f" (95 % interval {interval[0]:+.1%} to {interval[1]:+.1%})"


def _rival_text(results: Results) -> str:
    """How near the best other comes to a default that is kept."""
    rival = results.rival
    gain = results.gain_of(rival)
    if rival is None or gain is None:
        return ""
    return f" The best other, trial {rival.number}, differs by {gain:+.1%}{_interval_text(results, rival)}."


def _again(results: Results, trial: Trial) -> str:
    """How often it was measured again, and the worst of it."""
    found = next((one for one in results.confirmed if one.trial.number == trial.number), None)
    if found is None or found.worst is None:
        return ""
    worst = score_text(found.worst, results.goal)
    starts = f"{len(found.scores)} fresh start{'s' if len(found.scores) > 1 else ''} under other arrivals"
    return f" (measured again: {starts}, {worst} at worst)"


def _why_not(default: Trial) -> str:
    if not isinstance(default.outcome, Measured):
        return "does not start"
    attained = default.outcome.verdict.attained
    return f"misses them ({attained_text(attained)})" if attained else "misses them"


def _infeasible(results: Results) -> Text:
    """Names the closest config, the promise that binds and what would be kept."""
    closest, check = results.closest, binding_check(results.closest)
    outcome = closest.outcome if closest else None
    if closest is None or not isinstance(outcome, Measured):
        return Text(f"No config served: all {len(results.trials)} trials failed.", "bold red")
    least = f", at {closest.capacity.high:.3g} req/s" if closest.capacity else ""
    head = f"No config keeps the promise. Closest: trial {closest.number}{least}"
    if check is None:
        attained = f"; {attained_text(outcome.verdict.attained)}" if outcome.verdict.attained else ""
        s = outcome.summary
        would = f"It would keep p95 TTFT {_ms(s.ttft_s.p95)} ms, p95 TPOT {_ms(s.tpot_s.p95)} ms"
        return Text(f"{head}{attained}. {would}, p95 latency {_ms(s.e2el_s.p95)} ms.", "bold yellow")
    missed = [c for c in outcome.verdict.checks if c.excess > 0]
    kept = [f"{c.limit.metric.upper()} {c.measured_s * 1000:.0f} ms" for c in missed if c.measured_s not in (None, INF)]
    would = f" It would keep {' and '.join(kept)}." if len(kept) == len(missed) else " It loses requests."
    return Text(f"{head}; binding: {check_text(check)}.{would}", "bold yellow")


def _comparison(results: Results) -> Table:
    label, chosen = ("best", results.best) if results.best else ("closest", results.closest)
    columns = [(f"{label} (trial {chosen.number})", chosen)] if chosen else []
    if results.default and results.default is not chosen:
        columns.append(("default (trial 1)", results.default))
    table = Table(title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    if results.confirmed:
        table.caption = "The objective is as measured again; what is below it as the search found it."
    for row, cells in zip(ROWS, zip(*(_figures(t, results) for _, t in columns), strict=True), strict=True):
        table.add_row(row, *cells)
    names = sorted({name for _, trial in columns for name in trial.config})
    table.add_section()
    for name in names:
        values = [_value(trial.config, name) for _, trial in columns]
        table.add_row(name, *values, style="bold" if len(set(values)) > 1 else "dim")
    return table


ROWS = ("objective", "promises kept", "TTFT p50 / p99", "TPOT p50 / p99", "ITL p99", "output throughput", "requests")


def _figures(trial: Trial, results: Results) -> tuple[str, ...]:
    if not isinstance(trial.outcome, Measured):
        reason = trial.outcome.crash.cause if isinstance(trial.outcome, Crashed) else "refused"
        return (reason, *["-"] * (len(ROWS) - 1))
    s = trial.outcome.summary
    return (
        score_text(results.score(trial), results.goal),
        "yes" if trial.feasible else "no",
        f"{_ms(s.ttft_s.p50)} / {_ms(s.ttft_s.p99)} ms",
        f"{_ms(s.tpot_s.p50)} / {_ms(s.tpot_s.p99)} ms",
        f"{_ms(s.itl_s.p99)} ms",
        f"{s.output_throughput:.1f} tok/s",
        f"{s.completed} of {s.offered} completed",
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _value(config: Config, name: str) -> str:
    return str(config[name]) if name in config else "-"


def _crashes(results: Results) -> Table:
    table = Table(
        title_justify="left", title=f"Crashes: {sum(results.crashes.values())} of {len(results.trials)} trials"
    )
    table.title = f"{table.title}, {results.wasted_s:.0f} s wasted; {results.avoided} more refused"
    table.add_column("what")
    table.add_column("trials", justify="right")
    table.add_column("decisive line, or reason", overflow="fold")
    for what, count in results.crashes.items():
        table.add_row(what, str(count), Text(_first_line(results, what)))
    for reason, count in _reasons(results).items():
        table.add_row("refused", str(count), Text(reason))
    return table


def warnings_on(results: Results) -> Iterator[str]:
    """What a reader of the figures must know."""
    trials = len(results.trials)
    if results.client_limited:
        yield f"CLIENT-LIMITED: the client lagged in {results.client_limited} of {trials} trials (docs/measuring.md)"
    for name, count in results.not_applied.items():
        first = results.ran_instead(name)
        example = f" (first {first[1]} for {first[0]})" if first else ""
        yield f"{name}: the engine ran another value than asked in {count} of {trials} trials{example}"
    for note, count in results.notes.items():
        yield f"{note} ({count} of {trials} trials)"


def _first_line(results: Results, what: str) -> str:
    crashes = (t.outcome.crash for t in results.trials if isinstance(t.outcome, Crashed))
    return next(crash.line for crash in crashes if f"{crash.category}/{crash.cause}" == what)


def _reasons(results: Results) -> dict[str, int]:
    """Up to three of the guard's reasons with their counts; the log holds them all."""
    reasons = [a.reason for t in results.trials for a in t.avoided]
    reasons += [t.outcome.reason for t in results.trials if isinstance(t.outcome, Refused)]
    return {reason: reasons.count(reason) for reason in list(dict.fromkeys(reasons))[:3]}
