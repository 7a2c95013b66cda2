"""A comparison of studies as tables."""

from __future__ import annotations

from sloguard.optim.objective import OBJECTIVES
from sloguard.report.grids import Grid, Row, Sheet
from sloguard.study.compare import (
    BEST,
    CONSISTENCY,
    FAST_TRIALS,
    FIRST_FAST,
    FIRST_FEASIBLE,
    HELD_OUT,
    Comparison,
    Group,
    Spread,
    Versus,
)
from sloguard.study.stats import FAST

DIGITS = {FAST_TRIALS: 2, CONSISTENCY: 3, FIRST_FEASIBLE: 2, FIRST_FAST: 2}


def _measures(comparison: Comparison) -> Grid:
    groups = comparison.groups
    seeds = sorted({str(seed) for group in groups for seed in group.seeds if seed is not None}, key=int)
    of = "" if comparison.trials_each is None else f" of {comparison.trials_each}"
    unit = OBJECTIVES[comparison.objective].read_in

    def row(name: str, measure: str) -> Row:
        return (name, *(_spread_text(group, measure, comparison.objective) for group in groups))

    rows = [
        ("studies", *(str(len(group.seeds)) for group in groups)),
        row(f"fast trials{of}", FAST_TRIALS),
        row("post-hit consistency", CONSISTENCY),
        row(f"best, {unit}", BEST),
        row(f"best, measured again, {unit}", HELD_OUT),
        ("sd of the best, ratio", *(_plain(group.sd_ratio, 2) for group in groups)),
        row("first feasible trial", FIRST_FEASIBLE),
        row("first fast trial", FIRST_FAST),
        ("feasible trials", *(f"{group.feasible}/{group.trials}" for group in groups)),
        ("dropped in races", *(str(group.dropped) for group in groups)),
        ("crashes", *(_crash_text(group) for group in groups)),
    ]
    absent = [name for name, there in _optional(comparison).items() if not there]
    kept = tuple(row for row in rows if not any(row[0].startswith(name) for name in absent))
    of_seeds = f"; seeds {', '.join(seeds)}" if seeds else ""
    kind = "Simulated studies" if comparison.simulated else "Studies"
    title = f"{kind} by {comparison.objective}: mean +- sample sd over studies{of_seeds}"
    return Grid(title, ("", *(group.label for group in groups)), kept)


def _optional(comparison: Comparison) -> dict[str, bool]:
    """Rows that only some comparisons have, and whether this one has."""
    return {
        "best, measured again": any(group.measures[HELD_OUT].n for group in comparison.groups),
        "sd of the best": any(group.sd_ratio is not None for group in comparison.groups),
        "dropped": any(group.dropped for group in comparison.groups),
    }


def _tests(comparison: Comparison) -> Grid:
    rows = tuple(_test_row(versus, comparison.objective) for versus in comparison.tests)
    title = f"Against {comparison.baseline}: {len(rows)} tests"
    head = ("", "alternative", "difference of means (95 % interval)", "Cliff's delta", "p", "p (Holm)")
    return Grid(title, head, rows)


def _test_row(versus: Versus, objective: str) -> Row:
    unit = f" {OBJECTIVES[objective].read_in}" if versus.measure == BEST else ""
    gap, low, high = (
        _figure(value, versus.measure, objective, signed=True) for value in (versus.difference, *versus.interval)
    )
    return (
        f"{versus.label}: {versus.measure}",
        versus.alternative,
        f"{gap} ({low} to {high}){unit}",
        f"{versus.delta:+.2f}",
        p_text(versus.p),
        p_text(versus.p_holm),
    )


def _figure(value: float, measure: str, objective: str, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if measure in DIGITS:
        return f"{value:{sign}.{DIGITS[measure]}f}"
    return OBJECTIVES[objective].number(value, sign)


def _spread_text(group: Group, measure: str, objective: str) -> str:
    """`7.40 +- 2.51`; how many studies it is of, where not of all; `-` of none."""
    spread: Spread = group.measures[measure]
    if spread.mean is None:
        return "-"
    text = _figure(spread.mean, measure, objective)
    if spread.sd is not None:
        text += f" +- {_figure(spread.sd, measure, objective)}"
    return text if spread.n == len(group.seeds) else f"{text} ({spread.n} of {len(group.seeds)})"


def _plain(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _crash_text(group: Group) -> str:
    if not group.crashes or group.crash_share is None:
        return str(group.crashes)
    return f"{group.crashes} ({group.crash_share:.1%} of the time)"


def p_text(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _how_read(comparison: Comparison) -> list[str]:
    """What the tables are made by, a line each."""
    scale = OBJECTIVES[comparison.objective]
    lines: list[str] = []
    if comparison.fast_at is not None:
        bar = f"{scale.number(comparison.fast_at)} {scale.read_in}"
        lines.append(f"Fast: within limits and at {FAST:g} of the best of all ({bar}) or better.")
    if comparison.tests:
        paired = {versus.paired for versus in comparison.tests}
        pairs = {frozenset({True}): "paired by seed", frozenset({False}): "unpaired"}.get(
            frozenset(paired), "paired where both have the same seeds"
        )
        lines.append(f"p: Mann-Whitney U, Holm over all {len(comparison.tests)} tests; intervals: bootstrap, {pairs}.")
    return lines


def comparison_sheet(comparison: Comparison) -> Sheet:
    """The measures by label, and the tests where there are any."""
    tables = (_measures(comparison), *([_tests(comparison)] if comparison.tests else []))
    return Sheet(tables, tuple(_how_read(comparison)), comparison.caveats, comparison.notes)
