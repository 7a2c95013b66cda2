"""The pages of simulations: what each policy keeps of a load, and the most that each serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sloguard.page.canvas import plain
from sloguard.page.figures import legs
from sloguard.page.page import Cell, Column, Figure, Figures, Page, Section, Table, Tile, Verdict
from sloguard.page.simulated_figures import Length, lengths
from sloguard.report.capacity import MEAN, at_least, bracket_text, capacity_title, geometric_mean, seeds_text, series_of
from sloguard.report.simulate import by_stage
from sloguard.report.tables import SIMULATED
from sloguard.study.sim_results import LATENCIES

Row = Mapping[str, Any]
Rows = Sequence[Row]
SETTINGS = ("model", "gpu", "engines", "tensor_parallel", "tpot_rule", "stale_s", "seeds", "requests", "step_times")


def simulated_page(rows: Rows) -> Page:
    """Of the rows of `sloguard capacity --json`, or of `sloguard simulate --json`; at least one."""
    return capacity_page(rows) if "capacity_per_gpu" in rows[0] else policies_page(rows)


def capacity_page(rows: Rows) -> Page:
    series = series_of(rows)
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    sections = (
        *(_capacities(scenario, series) for scenario in scenarios),
        *(_feasible(scenario, series) for scenario in scenarios),
        _made(rows),
    )
    return Page("Capacity", f"{capacity_title(rows)}.", _most(series, scenarios), sections)


def _most(series: Mapping[str, Mapping[str, Row]], scenarios: Sequence[str]) -> Verdict:
    rates = {name: [one[scenario]["capacity_per_gpu"] for scenario in scenarios] for name, one in series.items()}
    means = {name: geometric_mean(values) or 0.0 for name, values in rates.items()}
    best = max(means, key=lambda name: means[name])
    if not means[best]:
        return Verdict(
            "bad", "Nothing serves enough", "Some scenario is served at no rate that was tried.", (), (SIMULATED,)
        )
    over = f", by the {MEAN} over {len(scenarios)} scenarios" if len(scenarios) > 1 else f" under {scenarios[0]}"
    others = [f"{means[best] / mean:.2f}x {name}" for name, mean in means.items() if name != best and mean]
    text = f"{means[best]:.2f} requests/s a GPU{over}{': ' if others else ''}{', '.join(others)}."
    tiles = tuple(
        Tile(name, f"{at_least(list(series[name].values()))}{mean:.2f}" if mean else "-", "requests/s a GPU")
        for name, mean in means.items()
    )
    return Verdict("good", f"{best} serves the most", text, tiles, (SIMULATED,))


def _capacities(scenario: str, series: Mapping[str, Mapping[str, Row]]) -> Section:
    rows = {name: one[scenario] for name, one in series.items()}
    drawn = [Length(name, row["capacity_per_gpu"], bracket_text(row)) for name, row in rows.items()]
    told = "; ".join(f"{name} {row['capacity_per_gpu']:.2f}" for name, row in rows.items())
    figure = Figure(
        f"capacity-{scenario}",
        "Requests/s a GPU",
        f"Largest rate that is served well: {told} requests/s a GPU.",
        lengths(drawn, "requests/s a GPU"),
        (480, 90 + 34 * len(drawn)),
        caption="Beside each bar the rates between which the search ended.",
    )
    head = (
        Column("policy"),
        Column("req/s a GPU", number=True),
        Column("bracket", number=True),
        Column("kept", number=True),
    )
    table = Table(
        "Capacity",
        head,
        tuple(
            (
                Cell(name),
                Cell(f"{row['capacity_per_gpu']:.2f}", row["capacity_per_gpu"]),
                Cell(bracket_text(row)),
                _share(row["attainment"]),
            )
            for name, row in rows.items()
        ),
        sortable=True,
    )
    return Section(f"scenario-{scenario}", f"Scenario {scenario}", "", (Figures((figure,)), table))


def _feasible(scenario: str, series: Mapping[str, Mapping[str, Row]]) -> Section:
    """Which rates are served well, by policy."""
    figures = tuple(
        _rates(f"feasible-{scenario}-{number}", name, one[scenario])
        for number, (name, one) in enumerate(series.items())
    )
    target = next(iter(series.values()))[scenario]["target"]
    lead = (
        "Every rate that was tried, with the share of requests that kept all their promises. Feasible is what reaches "
        f"{target:.0%} and leaves no backlog; a run that had failed was ended early, and its share is an upper bound."
    )
    return Section(f"rates-{scenario}", f"Feasible rates: {scenario}", lead, (Figures(figures, small=True),))


def _rates(slug: str, name: str, row: Row) -> Figure:
    tried = sorted(row["probes"], key=lambda probe: probe["rate_per_gpu"])
    points = [
        (
            probe["rate_per_gpu"],
            probe["attainment"],
            (probe["attainment"], probe["attainment"]),
            probe["drained"] is True and probe["attainment"] >= row["target"],
            f"{probe['rate_per_gpu']:.3g} req/s: {_at_most(probe)}{probe['attainment']:.1%}{_backlog(probe)}",
        )
        for probe in tried
    ]
    most = f"{row['capacity_per_gpu']:.2f} requests/s a GPU is the largest served well"
    label = f"{name}: {len(tried)} rates were tried, {most}."
    return Figure(slug, plain(name, 28), label, legs(points, row["target"]), (320, 230))


def _at_most(probe: Row) -> str:
    return "at most " if probe["ended_early"] else ""


def _backlog(probe: Row) -> str:
    return ", backlog" if probe["drained"] is False else ""


def policies_page(rows: Rows) -> Page:
    """What policies keep of one load."""
    names = _names(rows)
    most = max(row["attainment"] for row in rows)
    best = [name for name, row in zip(names, rows, strict=True) if row["attainment"] == most]
    keep = "keeps" if len(best) == 1 else "keep"
    headline = f"{' and '.join(best)} {keep} {most:.1%} of the promises"
    tiles = tuple(
        Tile(name, f"{row['attainment']:.1%}", "of requests as promised") for name, row in zip(names, rows, strict=True)
    )
    loads = list(dict.fromkeys(f"{row['scenario']} at {row['rate_offered'] or 0:.3g} requests/s" for row in rows))
    verdict = Verdict("good", headline, f"Of {'; '.join(loads)}.", tiles, (SIMULATED,))
    sections = (_kept(names, rows), _latencies(names, rows), _engines(names, rows), _made(rows))
    return Page("Policies on one load", f"{rows[0]['model']} on {rows[0]['gpu']}", verdict, sections)


def _names(rows: Rows) -> list[str]:
    """By what tells rows apart."""
    keys = [key for key in ("scenario", "policy", "router") if len({row[key] for row in rows}) > 1] or ["policy"]
    return [" / ".join(str(row[key]) for key in keys) for row in rows]


def _kept(names: Sequence[str], rows: Rows) -> Section:
    drawn = [
        Length(name, row["attainment"], f"{row['attainment']:.1%}", row["attainment_by_seed"])
        for name, row in zip(names, rows, strict=True)
    ]
    told = "; ".join(f"{name} {row['attainment']:.1%}" for name, row in zip(names, rows, strict=True))
    figure = Figure(
        "kept",
        "Requests as promised",
        f"Share of requests that kept every promise: {told}.",
        lengths(drawn, "requests as promised", percent=True),
        (480, 90 + 34 * len(drawn)),
        caption="Dots: each seed.",
    )
    head = ("policy", "class/stage", "offered", "kept", "TTFT p50, ms", "TTFT p99, ms", "TPOT p50, ms", "TPOT p99, ms")
    told_by = [(name, key, one) for name, row in zip(names, rows, strict=True) for key, one in by_stage(row)]
    table = Table(
        "By class, and by stage of each",
        tuple(Column(name, number=at > 1) for at, name in enumerate(head)),
        tuple(
            (
                Cell(name),
                Cell(key.strip()),
                Cell(str(one["offered"]), one["offered"]),
                _share(one["attainment"]),
                *(_number(one[f"{metric}_{level}_ms"]) for metric in ("ttft", "tpot") for level in ("p50", "p99")),
            )
            for name, key, one in told_by
        ),
        sortable=True,
    )
    lead = "A request counts where every stage of it kept its own promise."
    return Section("kept", "Promises", lead, (Figures((figure,)), table))


def _latencies(names: Sequence[str], rows: Rows) -> Section:
    levels = ("p50", "p95", "p99")
    columns = [f"{metric}_{level}_ms" for metric in LATENCIES for level in levels]
    head = ("policy", *(f"{metric.upper()} {level}, ms" for metric in LATENCIES for level in levels))
    table = _table("Latency of whole requests", head, names, rows, columns)
    return Section("latency", "Latency", "Percentiles over the requests of all seeds.", (table,))


def _engines(names: Sequence[str], rows: Rows) -> Section:
    columns = (
        "goodput_rps",
        "goodput_tps",
        "throughput_tps",
        "mean_batch_tokens",
        "evictions",
        "promised",
        "best_effort",
        "hops",
    )
    head = (
        "policy",
        "goodput, req/s",
        "goodput, tok/s",
        "tok/s",
        "tokens a step",
        "evictions",
        "promised",
        "best effort",
        "hops",
    )
    return Section("engines", "Engines", "", (_table("Engines", head, names, rows, columns),))


def _table(caption: str, head: Sequence[str], names: Sequence[str], rows: Rows, columns: Sequence[str]) -> Table:
    cells = tuple((Cell(name), *(_number(row[key]) for key in columns)) for name, row in zip(names, rows, strict=True))
    return Table(caption, tuple(Column(name, number=at > 0) for at, name in enumerate(head)), cells, sortable=True)


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(
        str(value) if isinstance(value, int) else f"{value:.2f}" if value < 10 else f"{value:.1f}", float(value)
    )


def _share(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:.1%}", value)


def _made(rows: Rows) -> Section:
    """Settings that all rows share; those that differ stand in the names."""
    shared = {
        key: rows[0][key] for key in SETTINGS if key in rows[0] and len({repr(row.get(key)) for row in rows}) == 1
    }
    table = Table(
        "Settings",
        (Column("what"), Column("value", wide=True)),
        tuple((Cell(k), Cell(str(v))) for k, v in shared.items()),
    )
    same = "The same command gives the same figures anywhere, but for the planner's time."
    lead = f"Simulated, in virtual time; {seeds_text(rows)}. {same}"
    return Section("made", "How it was made", lead, (table,))
