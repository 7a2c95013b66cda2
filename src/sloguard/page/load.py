"""The page of load tests, by whichever tool: were the promises kept, how long did requests take, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np

from sloguard.load.run_figures import CLIENT_LIMITED, EMULATES, Requests, RunFigures, judgements
from sloguard.metrics import Dist
from sloguard.page.canvas import plain
from sloguard.page.figures import quantiles
from sloguard.page.load_figures import FARTHEST, SERIES, Floats, Life, distributions, region, timeline
from sloguard.page.page import Beside, Cell, Column, Figure, Figures, Page, Section, Table, Text, Tile, Verdict
from sloguard.report.runs import runs_notes, runs_sheet
from sloguard.request import End
from sloguard.slo import NO_SLO, Judgement, StageSLO, TpotRule

METRICS = {"ttft_s": "Time to first token (TTFT)", "tpot_s": "Time per output token (TPOT)"}
METRICS |= {"itl_s": "Gap between chunks (ITL)", "e2el_s": "End-to-end latency (E2EL)"}
LEVELS = ("p50", "p90", "p95", "p99")
NAME_LENGTH = 20  # of a run in legends
ENOUGH = 0.9  # of the promises: what a capacity is told at (docs/measuring.md)
MOST_LINES, MOST_POINTS = 300, 600  # requests of a drawing: more can't be told apart


Runs = Mapping[str, RunFigures]  # by a name of its own


def load_page(runs: Sequence[RunFigures]) -> Page:
    """At least one run, held against a promise or not (`run_figures.held_against`)."""
    named = _named(runs)
    alone = len(runs) == 1
    promises = [_promises(n, "" if alone else name, run) for n, (name, run) in enumerate(named.items(), start=1)]
    times = [_time(n, "" if alone else name, run) for n, (name, run) in enumerate(named.items(), start=1)]
    sections = (_latency(named), *promises, *times, _all_figures(runs))
    models = list(dict.fromkeys(run.model for run in runs if run.model))
    title = f"Load test of {models[0]}" if len(models) == 1 else "Load tests"
    asked = "; ".join(dict.fromkeys(run.label for run in runs if run.label))
    return Page(title, asked, _verdict(named), tuple(one for one in sections if one is not None))


def _named(runs: Sequence[RunFigures]) -> dict[str, RunFigures]:
    """By tool, or by file where a tool made several; with a number where a file holds several or two have one name."""
    tools = len({run.tool for run in runs}) == len(runs)
    names = [run.tool if tools else plain(PurePath(run.file).name, NAME_LENGTH) for run in runs]
    seen: Counter[str] = Counter()
    named: dict[str, RunFigures] = {}
    for name, run in zip(names, runs, strict=True):
        seen[name] += 1
        named[name if names.count(name) == 1 else f"{name} ({seen[name]})"] = run
    return named


def _verdict(runs: Runs) -> Verdict:
    served = any(run.completed and (run.attainment is None or run.attainment >= ENOUGH) for run in runs.values())
    tone = "good" if served else "bad"
    loud = (note for run in runs.values() for note in run.notes if note.startswith((CLIENT_LIMITED, EMULATES)))
    notices = tuple(dict.fromkeys(loud))
    if len(runs) > 1:
        tiles = tuple(_main_tile(name, run) for name, run in runs.items())
        return Verdict(tone, f"{len(runs)} load tests", "Side by side below.", tiles, notices)
    (run,) = runs.values()
    return Verdict(tone, _headline(run), f"{_how_ended(run)}.", tuple(_tiles(run)) if run.completed else (), notices)


def _how_ended(run: RunFigures) -> str:
    if run.failed is None:
        return f"{run.completed} requests completed; how many failed is not in the file"
    lost = f"{run.failed} of {run.offered} requests failed" if run.failed else ""
    cut = f"{run.unfinished} of {run.offered} were cut off by the end of the run" if run.unfinished else ""
    return "; ".join(part for part in (lost, cut) if part) or "Every request completed"


def _headline(run: RunFigures) -> str:
    if not run.completed:
        return "No request completed"
    if run.attainment is not None:
        return f"{run.attainment:.1%} of requests as promised"
    p99_s = None if run.ttft_s is None else run.ttft_s.p99
    return f"{run.completed} requests" if p99_s is None else f"First tokens within {p99_s * 1000:.0f} ms (p99)"


def _main_tile(name: str, run: RunFigures) -> Tile:
    if run.attainment is not None:
        return Tile(name, f"{run.attainment:.1%}", "of requests as promised")
    return Tile(name, f"{run.completed}", "requests completed")


def _tiles(run: RunFigures) -> Iterator[Tile]:
    if run.slo is not None:
        yield Tile("Promised", run.slo.text)
    if run.request_throughput is not None:
        yield Tile("Completed", f"{run.request_throughput:.2f} req/s", f"{run.completed} requests")
    if run.request_goodput is not None:
        yield Tile("Goodput", f"{run.request_goodput:.2f} req/s", "requests that got all they were promised")
    for name in ("ttft_s", "tpot_s"):
        dist: Dist | None = getattr(run, name)
        if dist is not None and dist.p50 is not None and dist.p99 is not None:
            yield Tile(f"{_short(name)} p50", f"{dist.p50 * 1000:.0f} ms", f"p99 {dist.p99 * 1000:.0f} ms")


def _short(name: str) -> str:
    return name.removesuffix("_s").upper()


def _latency(runs: Runs) -> Section | None:
    figures = [figure for name, title in METRICS.items() if (figure := _distribution(runs, name, title)) is not None]
    rows = tuple(
        (Cell(_short(name)), Cell(file), *(_ms(getattr(dist, level)) for level in LEVELS))
        for name in METRICS
        for file, run in runs.items()
        if (dist := getattr(run, name)) is not None and dist.p50 is not None
    )
    if not rows:
        return None
    head = (Column("metric"), Column("run"), *(Column(f"{level}, ms", number=True) for level in LEVELS))
    counts = {run.counts_from for run in runs.values()}
    lead = f"Of completed requests, counted from when each was {' or '.join(sorted(counts))}."
    return Section("latency", "Latency", lead, (Figures(tuple(figures)), Table("Percentiles", head, rows)))


def _ms(seconds: float | None) -> Cell:
    return Cell("-") if seconds is None else Cell(f"{seconds * 1000:.1f}", seconds)


def _distribution(runs: Runs, name: str, title: str) -> Figure | None:
    """All values of as many runs as can be told apart; percentiles, of one run, where no file has values."""
    values = {
        file: found * 1000
        for file, run in runs.items()
        if run.requests is not None and len(found := _values(run.requests, name))
    }
    dists: dict[str, Dist] = {file: dist for file, run in runs.items() if (dist := getattr(run, name)) is not None}
    known = {
        file: [getattr(dist, level) * 1000 for level in LEVELS]
        for file, dist in dists.items()
        if None not in [getattr(dist, level) for level in LEVELS]
    }
    drawn = list(values)[: len(SERIES)] if values else list(known)[:1]
    if not drawn:
        return None
    limits = {getattr(run.slo, name, None) for file, run in runs.items() if file in drawn and run.slo is not None}
    limit_s = limits.pop() if len(limits) == 1 else None
    limit_ms = None if limit_s is None else limit_s * 1000
    draw = (
        distributions({file: values[file] for file in drawn}, limit_ms, f"{_short(name)}, ms")
        if values
        else quantiles({file: known[file] for file in drawn}, LEVELS, limit_ms, f"{_short(name)}, ms")
    )
    told = (f"{file} p50 {p50 * 1000:.0f} ms" for file in drawn if (p50 := dists[file].p50) is not None)
    left = len(dists) - len(drawn)
    caption = f"Drawn: {', '.join(drawn)}. The table has {left} more." if left > 0 else ""
    return Figure(f"latency-{_short(name).lower()}", title, f"{title}: {'; '.join(told)}.", draw, (420, 250), caption)


def _values(requests: Requests, name: str) -> Floats:
    done = requests.ended(End.COMPLETED)
    if name == "itl_s":
        gaps = [gap for gap, ok in zip(requests.itl_s or (), done, strict=False) if ok]
        return np.concatenate([*gaps, np.empty(0)])
    values: Floats = getattr(requests, name)[done]
    return values[~np.isnan(values)]


def _promises(number: int, name: str, run: RunFigures) -> Section | None:
    """Which requests kept both limits, where both were promised."""
    slo, requests = _judged_by(run), run.requests
    if slo is None or slo.ttft_s is None or slo.tpot_s is None or requests is None:
        return None
    points = list(_points(requests, slo.ttft_s, slo.tpot_s))
    if not points:
        return None
    step = -(-len(points) // MOST_POINTS)
    kept = sum(point[2] for point in points)
    late = sum(across > 1 for across, *_ in points), sum(up > 1 for _, up, *_ in points)
    rows = (
        (Cell("kept both"), Cell(str(kept), kept)),
        (Cell("first token too late"), Cell(str(late[0]), late[0])),
        (Cell("pace too slow"), Cell(str(late[1]), late[1])),
    )
    label = f"{kept} of {len(points)} completed requests kept both limits."
    beyond = any(max(across, up) > FARTHEST for across, up, *_ in points)
    edge = f" What lies beyond {FARTHEST:.0%} stands at the edge." if beyond else ""
    figure = Figure(
        f"promises-{number}",
        "Where requests lie within their limits",
        label,
        region(points[::step], "TTFT, of its limit", "TPOT, of its limit"),
        (420, 320),
        caption=f"Shaded: both limits kept.{edge}{_every(step)}",
    )
    lead = f"{slo.text}. {label} Requests that failed are not drawn."
    table = Table("Completed requests", (Column(""), Column("requests", number=True)), rows)
    return Section(f"promised-{number}", _title("Promises", name), lead, (Beside((Figures((figure,)), table)),))


def _judged_by(run: RunFigures) -> StageSLO | None:
    """What each request was promised, where that can be told of it as the run's figures do."""
    return run.slo if run.tpot_rule == TpotRule.MEAN else None


def _points(requests: Requests, ttft_s: float, tpot_s: float) -> Iterator[tuple[float, float, bool, str]]:
    done = requests.ended(End.COMPLETED)
    pace_s = np.where(requests.output_tokens <= 1, 0.0, requests.tpot_s)
    for at in np.flatnonzero(done & ~np.isnan(requests.ttft_s) & ~np.isnan(pace_s)).tolist():
        across, up = float(requests.ttft_s[at] / ttft_s), float(pace_s[at] / tpot_s)
        tip = f"request {at}: TTFT {requests.ttft_s[at] * 1000:.0f} ms, TPOT {pace_s[at] * 1000:.1f} ms"
        yield across, up, across <= 1 and up <= 1, tip


def _time(number: int, name: str, run: RunFigures) -> Section | None:
    requests = run.requests
    if requests is None:
        return None
    slo = _judged_by(run)
    lives = sorted(_lives(requests, slo), key=lambda one: one.due_s)
    if not lives:
        return None
    step = -(-len(lives) // MOST_LINES)
    broken = sum(not one.kept for one in lives)
    span_s = max(one.due_s for one in lives)
    how = "failed" if slo is None else "broke their promise or failed"
    label = f"{len(lives)} requests over {span_s:.0f} seconds; {broken} {how}."
    figure = Figure(f"timeline-{number}", "Requests over time", label, timeline(lives[::step]), (480, 340))
    lead = f"When each request was {run.counts_from}, got its first token, and its last.{_every(step)}"
    return Section(f"time-{number}", _title("Request timeline", name), lead, (Figures((figure,)), Text(label)))


def _lives(requests: Requests, slo: StageSLO | None) -> Iterator[Life]:
    begun_s = requests.begun_s
    origin_s = float(np.nanmin(begun_s)) if len(begun_s) else 0.0
    told = judgements(requests, slo or NO_SLO)
    for at, (end, judged) in enumerate(zip(requests.ends, told, strict=True)):
        due_s = float(begun_s[at] - origin_s)
        ttft_s, e2el_s = float(requests.ttft_s[at]), float(requests.e2el_s[at])
        pace_s = 0.0 if requests.output_tokens[at] <= 1 else float(requests.tpot_s[at])
        tip = f"request {at}: {end.value}, TTFT {ttft_s * 1000:.0f} ms, TPOT {pace_s * 1000:.1f} ms"
        yield Life(due_s, due_s + ttft_s, due_s + e2el_s, judged is not Judgement.MISSED, tip)


def _every(step: int) -> str:
    return f" One request in {step} is drawn." if step > 1 else ""


def _all_figures(runs: Sequence[RunFigures]) -> Section:
    (grid,) = runs_sheet(runs).grids
    head = tuple(Column(name or " ", number=index > 0) for index, name in enumerate(grid.head))
    rows = tuple(tuple(Cell(text) for text in row) for row in grid.rows)
    notes = tuple(Text(f"{note}.") for note in runs_notes(runs))
    lead = "Definitions: docs/measuring.md; where those of other tools differ is said below."
    return Section("runs", "All figures", lead, (Table("Load tests", head, rows), *notes))


def _title(what: str, name: str) -> str:
    return f"{what}: {name}" if name else what
