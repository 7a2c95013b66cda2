"""Tables a person can read in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sloguard.contract import Check
from sloguard.optim.base import Goal
from sloguard.slo import Judgement
from sloguard.study.results import Results, binding_check
from sloguard.trial import Config, Crashed, Measured, Refused, Trial

RUN_TO_RUN_NOISE = 0.069  # spread reported over six identical vLLM runs (arXiv 2604.17627)

INF = float("inf")
STYLES = {Judgement.MET: "green", Judgement.MISSED: "yellow", Judgement.UNKNOWN: "magenta"}


def trial_line(trial: Trial, goal: Goal) -> Text:
    """One line on what came of a trial."""
    head = f"{trial.number:>4}  "
    tail = f"  {trial.cost_s:7.1f} s"
    match trial.outcome:
        case Measured(summary=summary, verdict=verdict):
            status = "feasible" if trial.feasible else str(verdict.judgement)
            remarks = [check_text(check) for check in verdict.checks]
            if summary.completed < summary.offered:
                remarks.append(f"{summary.offered - summary.completed} of {summary.offered} requests lost")
            if summary.client_limited:
                remarks.append("CLIENT-LIMITED")
            what = f"{score_text(goal.score(trial), goal)}  {', '.join(remarks)}"
            style = STYLES[verdict.judgement]
        case Crashed(crash=crash):
            status, what, style = "crashed", f"{crash.category}/{crash.cause}: {crash.line}", "red"
        case Refused(reason=reason):
            status, what, style = "refused", reason, "cyan"
    return Text.assemble(head, (f"{status:<9}", style), tail, "  ", what)


def score_text(score: float | None, goal: Goal) -> str:
    if score is None:
        return "not measured"
    return f"{score:.1f} tok/s" if goal.objective == "goodput" else f"{-score * 1000:.1f} ms"


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


def study_report(results: Results, simulated: bool) -> RenderableType:
    """The end of a study: verdict, best beside default, crashes by cause, what to be wary of."""
    parts: list[RenderableType] = [Text(""), _verdict(results)]
    if simulated:
        parts.append(
            Text("Simulated engine: figures are a model's, times are virtual. Confirm on the real one.", "dim")
        )
    if results.best or results.closest:
        parts.append(_comparison(results))
    if results.crashes or results.avoided:
        parts.append(_crashes(results))
    parts += [Text(line, "yellow") for line in _warnings(results)]
    return Group(*parts)


def _verdict(results: Results) -> Text:
    best, default = results.best, results.default
    if best is None:
        return _infeasible(results)
    score = score_text(results.goal.score(best), results.goal)
    if default is None:
        return Text(f"Deploy trial {best.number}: {score} within the SLOs.", "bold green")
    if len(results.trials) == 1:
        return Text(f"Measured one config: {score} within the SLOs.", "bold green")
    if default is best:
        return Text(f"Keep the default: no config tried beats it ({score}).", "bold green")
    if results.gain is None:
        check = binding_check(default)
        why = f"misses them ({check_text(check)})" if check else "does not start"
        return Text(f"Deploy trial {best.number}: {score} within the SLOs; the default {why}.", "bold green")
    gain = f"{score} within the SLOs, {results.gain:+.1%} over the default"
    if results.gain < RUN_TO_RUN_NOISE:
        chance = "no more than runs differ by chance, so the default is as good a choice."
        return Text(f"Best: trial {best.number}, {gain}: {chance}", "bold green")
    return Text(f"Deploy trial {best.number}: {gain}.", "bold green")


def _infeasible(results: Results) -> Text:
    """Names the closest config, the promise that binds and what would be kept."""
    closest, check = results.closest, binding_check(results.closest)
    if closest is None or check is None:
        return Text(f"No config served: all {len(results.trials)} trials failed.", "bold red")
    checks = closest.outcome.verdict.checks if isinstance(closest.outcome, Measured) else ()
    missed = [c for c in checks if c.excess > 0]
    kept = [f"{c.limit.metric.upper()} {c.measured_s * 1000:.0f} ms" for c in missed if c.measured_s not in (None, INF)]
    would = f" It would keep {' and '.join(kept)}." if len(kept) == len(missed) else " It loses requests."
    text = f"No config keeps the promise. Closest: trial {closest.number}; binding: {check_text(check)}.{would}"
    return Text(text, "bold yellow")


def _comparison(results: Results) -> Table:
    label, chosen = ("best", results.best) if results.best else ("closest", results.closest)
    columns = [(f"{label} (trial {chosen.number})", chosen)] if chosen else []
    if results.default and results.default is not chosen:
        columns.append(("default (trial 1)", results.default))
    table = Table(title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    for row, cells in zip(ROWS, zip(*(_figures(t, results.goal) for _, t in columns), strict=True), strict=True):
        table.add_row(row, *cells)
    names = sorted({name for _, trial in columns for name in trial.config})
    table.add_section()
    for name in names:
        values = [_value(trial.config, name) for _, trial in columns]
        table.add_row(name, *values, style="bold" if len(set(values)) > 1 else "dim")
    return table


ROWS = ("objective", "promises kept", "TTFT p50 / p99", "TPOT p50 / p99", "ITL p99", "output throughput", "requests")


def _figures(trial: Trial, goal: Goal) -> tuple[str, ...]:
    if not isinstance(trial.outcome, Measured):
        reason = trial.outcome.crash.cause if isinstance(trial.outcome, Crashed) else "refused"
        return (reason, *["-"] * (len(ROWS) - 1))
    s = trial.outcome.summary
    return (
        score_text(goal.score(trial), goal),
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
    table.title = f"{table.title}, {results.wasted_s:.0f} s wasted; {results.avoided} more avoided by the guard"
    table.add_column("what")
    table.add_column("trials", justify="right")
    table.add_column("decisive line, or reason", overflow="fold")
    for what, count in results.crashes.items():
        table.add_row(what, str(count), Text(_first_line(results, what)))
    for reason, count in _reasons(results).items():
        table.add_row("avoided", str(count), Text(reason))
    return table


def _warnings(results: Results) -> Iterator[str]:
    trials = len(results.trials)
    if results.client_limited:
        yield f"CLIENT-LIMITED: the client lagged in {results.client_limited} of {trials} trials (docs/measuring.md)"
    for name, count in results.not_applied.items():
        yield f"{name}: the engine ran another value than asked in {count} of {trials} trials"
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
