"""How well the promises are kept: headroom, latencies, the rates of the best trial, and what was measured again."""

from __future__ import annotations

from math import inf

from sloguard.contract import Attained
from sloguard.metrics import Dist
from sloguard.optim.base import Goal
from sloguard.page.canvas import Size
from sloguard.page.figures import Bar, headroom, legs, quantiles, rounds
from sloguard.page.page import Beside, Cell, Column, Figure, Figures, Section, Table
from sloguard.page.tune_words import METRICS, axis, ms_text, name_of, number_text
from sloguard.report.tables import score_text
from sloguard.slo import Judgement
from sloguard.study.confirm import Confirmed
from sloguard.study.record import Record
from sloguard.study.spec import StudySpec
from sloguard.trial import Leg, Measured, Trial

BROKEN = "broken promises"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
DEFINED = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Gap between tokens",
    "e2el": "End-to-end latency",
}


def compared(record: Record) -> dict[str, tuple[Trial, Measured]]:
    """The trials that are shown side by side, by what they are called: best, or else closest, and default."""
    results = record.results
    label, chosen = ("best", results.best) if results.best else ("closest", results.closest)
    pairs = [("default", chosen)] if chosen is results.default else [(label, chosen), ("default", results.default)]
    return {name: (t, t.outcome) for name, t in pairs if t is not None and isinstance(t.outcome, Measured)}


def headroom_section(record: Record) -> Section | None:
    bars = [bar for name, (_, outcome) in compared(record).items() for bar in _bars(record.spec, name, outcome)]
    if not bars:
        return None
    told = "; ".join(f"{bar.series}, {bar.promise}: {bar.text}" for bar in bars)
    capacity = record.spec.objective == "capacity"
    at = [f"{name} at {_rate_text(trial)}" for name, (trial, _) in compared(record).items()] if capacity else []
    where = "the rate that it keeps" if record.results.best else "the smallest rate that was tried"
    own = f" Each is shown at {where}: {', '.join(at)}." if at else ""
    cut = " Longer bars end at twice the limit." if any(bar.share > 2 for bar in bars) else ""
    rows = tuple((Cell(b.promise), Cell(b.series), Cell(b.text), Cell(_share_text(b.share), b.share)) for b in bars)
    head = (Column("promise"), Column("config"), Column("measured"), Column("of the limit", number=True))
    height = 70 + 46 * len({bar.promise for bar in bars}) * max(1, len(compared(record)) * 0.75)
    figure = Figure(
        "headroom",
        "Measured, as a share of the limit",
        f"Bars of each promise. {told}.",
        headroom(bars),
        (480, round(height)),
        "What ends before the line is kept." + cut,
    )
    lead = f"How much of each promise is used up.{own}"
    return Section("headroom", "Headroom", lead, (Beside((Figures((figure,)), Table("Promises", head, rows))),))


def binding(record: Record) -> Bar | None:
    """The limit that the closest config is furthest from keeping."""
    closest = record.results.closest
    if closest is None or not isinstance(closest.outcome, Measured):
        return None
    limits = [bar for bar in _bars(record.spec, "closest", closest.outcome) if bar.promise != BROKEN]
    return max(limits, key=lambda bar: bar.share, default=None)


def _rate_text(trial: Trial) -> str:
    found = trial.capacity
    if found is None:
        return "its rate"
    rate = found.low or found.high
    return f"{rate:.2f} req/s" if rate >= 1 else f"{rate:.3g} req/s"


def _bars(spec: StudySpec, name: str, outcome: Measured) -> list[Bar]:
    found: list[Bar] = []
    attained = outcome.verdict.attained
    if attained is not None:
        found.append(_attained_bar(name, attained))
        for metric, limit_s in spec.slo_s.items():
            level = next((level for level, share in QUANTILES.items() if share >= spec.attainment), "p99")
            dist: Dist = getattr(outcome.summary, f"{metric}_s")
            lost = outcome.summary.completed < outcome.summary.offered
            measured_s: float | None = getattr(dist, level)
            note = " of those served" if lost else ""
            if measured_s is not None:
                text = f"{ms_text(measured_s)} of {limit_s * 1000:g} ms{note}"
                found.append(Bar(f"{level} {METRICS[metric]}", name, measured_s / limit_s, text))
    for check in outcome.verdict.checks:
        if check.measured_s is not None:
            share = check.measured_s / check.limit.limit_s
            text = (
                "requests lost" if share == inf else f"{ms_text(check.measured_s)} of {check.limit.limit_s * 1000:g} ms"
            )
            found.append(Bar(f"p{check.limit.quantile:g} {METRICS[check.limit.metric]}", name, share, text))
    return found


def _attained_bar(name: str, attained: Attained) -> Bar:
    allowed = 1 - attained.target
    missed = 1 - attained.share
    return Bar(BROKEN, name, missed / allowed, f"{missed * 100:.1f} of {allowed * 100:.3g} %")


def _share_text(share: float) -> str:
    return "-" if share == inf else f"{share:.0%}"


def latency_section(record: Record) -> Section | None:
    spec, sides = record.spec, compared(record)
    figures: list[Figure] = []
    rows: list[tuple[Cell, ...]] = []
    for metric, title in DEFINED.items():
        dists: dict[str, Dist] = {name: getattr(outcome.summary, f"{metric}_s") for name, (_, outcome) in sides.items()}
        known = {name: [getattr(dist, level) * 1000 for level in QUANTILES] for name, dist in dists.items() if dist.n}
        if not known:
            continue
        limit_s = spec.slo_s.get(metric, spec.slo_p99_s.get(metric))
        limit_ms = None if limit_s is None else limit_s * 1000
        ends = "; ".join(f"{name} p50 {ms[0]:.0f}, p99 {ms[-1]:.0f} ms" for name, ms in known.items())
        draw = quantiles(known, list(QUANTILES), limit_ms, f"{metric.upper()}, ms")
        figures.append(
            Figure(f"latency-{metric}", f"{title} ({metric.upper()})", f"{title}: {ends}.", draw, (420, 250))
        )
        rows += [
            (Cell(metric.upper()), Cell(name), *(Cell(f"{ms:.1f}", ms) for ms in values))
            for name, values in known.items()
        ]
    if not figures:
        return None
    head = (Column("metric"), Column("config"), *(Column(f"{level}, ms", number=True) for level in QUANTILES))
    at = ", ".join(f"{name} at {_rate_text(trial)}" for name, (trial, _) in sides.items())
    differ = ": the rates differ, so a higher line may serve more" if len(sides) > 1 else ""
    where = f"Of {at}{differ}. " if spec.objective == "capacity" else ""
    lead = f"{where}Percentiles over the requests that completed, counted from when each was due."
    return Section("latency", "Latency", lead, (Figures(tuple(figures)), Table("Percentiles", head, tuple(rows))))


def rates_section(record: Record) -> Section | None:
    results = record.results
    trial = results.best or results.closest
    found = trial.capacity if trial is not None else None
    if trial is None or found is None:
        return None
    target = record.spec.attainment if record.spec.slo_s else None
    told = [_leg(number, leg, target) for number, leg in enumerate(found.legs, start=1)]
    rates = [
        (
            leg.rate,
            leg.met / max(leg.offered, 1),
            Attained(leg.met, leg.offered, target or 0.0).interval,
            leg.passed,
            tip,
        )
        for leg, (_, tip) in zip(found.legs, told, strict=True)
    ]
    head = tuple(Column(n, number=n != "passed") for n in LEG_COLUMNS)
    low, high = found.low, found.high
    lies = f"lies between {low:.2f} and {high:.2f} requests/s"
    if not low or high == inf:
        lies = f"is {low:.2f} requests/s or more" if low else f"is below {high:.3g} requests/s"
    label = f"Share of requests as promised at each rate offered to {name_of(trial)}; its capacity {lies}."
    figure = Figure("rates", "Requests as promised, by rate", label, legs(rates, target), caption=LEG_CAPTION)
    lead = f"Within one start of {name_of(trial)}, {len(found.legs)} rates were offered; its capacity {lies}."
    return Section(
        "rates",
        "The rates it was offered",
        lead,
        (Beside((Figures((figure,)), Table("Rates, in order", head, tuple(row for row, _ in told)))),),
    )


LEG_COLUMNS = ("order", "requests/s", "passed", "as promised", "share (95 % interval)")
LEG_CAPTION = "Filled: passed. Bars: 95 % interval (Wilson). A rate that fails is ended as soon as that is certain."


def _leg(number: int, leg: Leg, target: float | None) -> tuple[tuple[Cell, ...], str]:
    share = leg.met / max(leg.offered, 1)
    low, high = Attained(leg.met, leg.offered, target or 0.0).interval
    enough = target is None or Attained(leg.met, leg.offered, target).judgement is Judgement.MET
    passed = "yes" if leg.passed else "no, a backlog was left" if enough and not leg.drained else "no"
    row = (
        Cell(str(number), number),
        Cell(f"{leg.rate:.2f}", leg.rate),
        Cell(passed),
        Cell(f"{leg.met} of {leg.offered}"),
        Cell(f"{share:.1%} ({low:.1%} to {high:.1%})", share),
    )
    return row, f"{leg.rate:.2f} req/s: {leg.met} of {leg.offered} as promised"


def confirmation_section(record: Record) -> Section | None:
    results, goal = record.results, record.results.goal
    if not results.confirmed:
        return None
    shown_rows: list[tuple[str, list[tuple[float | None, str]], float | None, float | None]] = []
    rows: list[tuple[Cell, ...]] = []
    for one in results.confirmed:
        name, found = name_of(one.trial), goal.score(one.trial)
        tips = [_round_text(one, at, record) for at in range(len(one.scores))]
        marks = [(None if s is None else goal.told.shown(s), tip) for s, tip in zip(one.scores, tips, strict=True)]
        mean = None if one.mean is None else goal.told.shown(one.mean)
        shown_rows.append(
            (name.replace(" (trial 1)", ""), marks, mean, None if found is None else goal.told.shown(found))
        )
        rows.append(
            (
                Cell(name),
                _score(found, goal),
                *(_score(s, goal) for s in one.scores),
                _score(one.mean, goal),
            )
        )
    starts = len(results.confirmed[0].scores)
    head = (
        Column("config"),
        Column("as found", number=True),
        *(Column(f"start {n + 1}", number=True) for n in range(starts)),
        Column("mean", number=True),
    )
    label = "Scores of each fresh start: " + "; ".join(_row_text(one, record) for one in results.confirmed) + "."
    size: Size = (480, 80 + 52 * len(rows))
    figure = Figure(
        "confirmation", "Scores of fresh starts", label, rounds(shown_rows, axis(goal)), size, ROUNDS_CAPTION
    )
    strong = frozenset(i for i, one in enumerate(results.confirmed) if one.trial is results.best)
    lead = (
        "The best of many noisy measurements is too good to be true, so the candidates were measured again: "
        f"{starts} fresh {'start' if starts == 1 else 'starts'} each, under arrivals that the search had not seen."
    )
    table = Table(f"Measured again: {axis(goal)}", head, tuple(rows), strong=strong)
    return Section("confirmation", "Confirmation", lead, (Beside((Figures((figure,)), table)),))


def _score(score: float | None, goal: Goal) -> Cell:
    """A round that lost the contract or the engine has none."""
    if score is None:
        return Cell("failed")
    return Cell(number_text(score, goal), goal.told.shown(score))


ROUNDS_CAPTION = "Dots: fresh starts. Bar: their mean. Hollow: as the search had found it."


def _round_text(one: Confirmed, at: int, record: Record) -> str:
    return f"{name_of(one.trial)}, start {at + 1}: {score_text(one.scores[at], record.results.goal)}"


def _row_text(one: Confirmed, record: Record) -> str:
    scores = ["failed" if s is None else score_text(s, record.results.goal) for s in one.scores]
    return f"{name_of(one.trial)} {', '.join(scores)}"
