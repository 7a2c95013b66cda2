"""What the capacity studies show: Markdown and pictures, from rows as `sloguard capacity` saves them, by name."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from capacity_rows import (
    ABLATIONS,
    BELIEFS,
    LEARNS,
    LENGTHS,
    MODELS,
    OURS,
    PAPERS_BASELINES,
    PAPERS_SCALING,
    POLICIES,
    RATIOS,
    REPLICA_POLICIES,
    REPLICAS,
    ROUTERS,
    SCALED,
    SCENARIOS,
    SENSITIVE,
    believing,
    bound_name,
    deployment,
    guessing,
    title,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sloguard.report.capacity import geometric_mean
from sloguard.report.capacity_figure import COLOURS, capacity_figure
from sloguard.study.sim_spec import SimSpec

Rows = Mapping[str, Mapping[str, Any]]
Bounds = Mapping[str, Sequence[float]]
Result = tuple[str, dict[str, bytes]]  # Markdown, and pictures by name of their file
DISTSERVE, BOUND = "distserve, best ratio", "bound"


def main_result(rows: Rows, bounds: Bounds) -> Result:
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for model in MODELS:
        most = [bounds[bound_name(model, scenario)][1] for scenario in SCENARIOS]
        found = _capacities(rows, model)
        parts.append(f"### {model}\n\n{_policies_table(found, most)}\n{_best_other(found, most)}")
        first = rows[deployment(SCENARIOS[0], POLICIES[0], model=model).name]
        panels = [f"{scenario} (bound {value:.3g})" for scenario, value in zip(SCENARIOS, most, strict=True)]
        shown = [
            first
            | {
                "policy": title(policy),
                "scenario": panel,
                "capacity_per_gpu": value,
                "bracket": [value, value],
                "engines": 1,
            }
            for policy, values in found.items()
            for panel, value in zip(panels, values, strict=True)
        ]
        figures[f"main-{model.split('/')[1].lower()}"] = capacity_figure(shown, ".png")
    return "\n".join(parts), figures


def _capacities(rows: Rows, model: str) -> dict[str, list[float]]:
    """By scenario, of each policy; DistServe at the ratio that serves most of a scenario."""
    found: dict[str, list[float]] = {}
    for policy in POLICIES:
        values = [_value(rows, deployment(scenario, policy, model=model)) for scenario in SCENARIOS]
        name = DISTSERVE if policy in RATIOS else policy
        found[name] = [max(pair) for pair in zip(values, found.get(name, values), strict=True)]
    return found


def _policies_table(found: Mapping[str, Sequence[float]], most: Sequence[float]) -> str:
    better = [max(values) for values in zip(*(found[name] for name in PAPERS_BASELINES), strict=True)]
    lines = [
        [
            title(policy),
            *map(_rate, values),
            *(_rate(_mean(values)), _times(_over(values, better)), _share(values, most)),
        ]
        for policy, values in found.items()
    ]
    lines.append([BOUND, *map(_rate, most), _rate(_mean(most)), _times(_over(most, better)), "100 %"])
    ratio = f"over the better of {' and '.join(PAPERS_BASELINES)}"
    return _markdown(["", *SCENARIOS, "geometric mean", ratio, "of the bound"], lines)


def _best_other(found: Mapping[str, Sequence[float]], most: Sequence[float]) -> str:
    """Ours beside whoever is best of the others in each scenario."""
    others = {policy: values for policy, values in found.items() if policy != OURS}
    best = [max(others, key=lambda name, at=at: others[name][at]) for at in range(len(SCENARIOS))]
    theirs = [others[name][at] for at, name in enumerate(best)]
    ratios = [_times(_ratio(*pair)) for pair in zip(found[OURS], theirs, strict=True)]
    shares = [_share([ours], [bound]) for ours, bound in zip(found[OURS], most, strict=True)]
    overall = max(others, key=lambda name: _mean(others[name]) or 0.0)
    lines = [
        ["best other", *map(title, best), title(overall)],
        [f"{OURS} over it", *ratios, _times(_over(found[OURS], others[overall]))],
        [f"{OURS}, of the bound", *shares, _share(found[OURS], most)],
    ]
    return _markdown(["", *SCENARIOS, "geometric mean"], lines)


def replicas_result(rows: Rows, bounds: Bounds) -> Result:
    lines: list[list[str]] = []
    panels: dict[str, dict[str, list[float]]] = {scenario: {} for scenario in SCALED}
    for policy in REPLICA_POLICIES:
        alone = [_value(rows, deployment(scenario, policy)) for scenario in SCALED]
        lines.append([policy, "one replica", *map(_rate, alone), *[""] * len(SCALED)])
        for scenario, value in zip(SCALED, alone, strict=True):
            panels[scenario][policy] = [value]
        for router in ROUTERS:
            many = [_value(rows, deployment(scenario, policy, router, replicas=REPLICAS)) for scenario in SCALED]
            scaling = [_ratio(REPLICAS * one, other) for one, other in zip(many, alone, strict=True)]
            lines.append([policy, router, *map(_rate, many), *map(_times, scaling)])
            for scenario, value in zip(SCALED, many, strict=True):
                panels[scenario][policy].append(value)
    lines.append(["SLOs-Serve, the paper", "", *["-"] * len(SCALED), *map(_times, PAPERS_SCALING.values())])
    head = ["policy", "router", *SCALED, *(f"{scenario}, {REPLICAS} replicas : 1" for scenario in SCALED)]
    picture = _grouped_bars(panels, ["one replica", *ROUTERS], "requests/s a GPU")
    return _markdown(head, lines), {"replicas": picture}


def ablations_result(rows: Rows, bounds: Bounds) -> Result:
    lines: list[list[str]] = []
    overall: dict[str, tuple[float, float | None]] = {}
    for ablation in ABLATIONS:
        pairs = [tuple(_value(rows, spec) for spec in ablation.specs(scenario)) for scenario in ablation.scenarios]
        factor = _over(*zip(*pairs, strict=True))
        of = dict(zip(ablation.scenarios, (_times(_ratio(on, off)) for on, off in pairs), strict=True))
        name = f"{ablation.on['policy']}: {ablation.feature}"
        cells = [of.get(scenario, "") for scenario in SCENARIOS]
        lines.append([name, *cells, _times(factor), _times(ablation.paper) if ablation.paper else ""])
        overall[name] = (factor or 0.0, ablation.paper)
    head = ["capacity with it over that without", *SCENARIOS, "geometric mean", "paper"]
    return _markdown(head, lines), {"ablations": _factors(overall)}


def sensitivity_result(rows: Rows, bounds: Bounds) -> Result:
    lines: list[list[str]] = []
    curves: dict[str, list[float]] = {}
    bars: dict[str, list[float]] = {}

    def compare(policy: str, what: str, make: Callable[[str], SimSpec], exact: Callable[[str], SimSpec]) -> float:
        """Adds a line; returns its mean."""
        shares = [_ratio(_value(rows, make(scenario)), _value(rows, exact(scenario))) for scenario in SCENARIOS]
        mean = _mean(shares)
        lines.append([policy, what, *map(_percent, shares), _percent(mean)])
        return mean or 0.0

    for policy in SENSITIVE:
        plain, knowing = partial(deployment, policy=policy), partial(guessing, policy=policy, lengths="oracle")
        for learns, how in LEARNS.items():
            for factor in BELIEFS:
                make = partial(believing, policy=policy, factor=factor, learns=learns)
                mean = compare(policy, f"batch time x {factor:g}, {how}", make, plain)
                curves.setdefault(f"{policy}, {how}", []).append(mean)
        for lengths in LENGTHS:
            make = partial(guessing, policy=policy, lengths=lengths)
            bars.setdefault(policy, []).append(compare(policy, f"lengths: {lengths}", make, knowing))
    head = ["policy", "capacity relative to exact", *SCENARIOS, "geometric mean"]
    return _markdown(head, lines), {"sensitivity": _sensitivity_figure(curves, bars)}


RESULTS: dict[str, Callable[[Rows, Bounds], Result]] = {
    "main": main_result,
    "replicas": replicas_result,
    "ablations": ablations_result,
    "sensitivity": sensitivity_result,
}


# Figures.


def _grouped_bars(panels: Mapping[str, Mapping[str, Sequence[float]]], groups: Sequence[str], unit: str) -> bytes:
    figure = Figure(figsize=(13, 3.0 * len(panels)), layout="constrained")
    for axes, (name, series) in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        _bars(axes, series, groups, "{:#.3g}")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel(unit, fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=8, frameon=False)
    return _png(figure)


def _bars(axes: Axes, series: Mapping[str, Sequence[float]], groups: Sequence[str], form: str) -> None:
    width = 0.84 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(at, values, width * 0.95, label=name, color=COLOURS[number])
        axes.bar_label(bars, [form.format(value).rstrip(".") for value in values], fontsize=7, padding=2)
    axes.set_xticks(range(len(groups)), groups, fontsize=9)
    axes.margins(y=0.15)
    _plain(axes)


def _factors(overall: Mapping[str, tuple[float, float | None]]) -> bytes:
    figure = Figure(figsize=(9, 0.42 * len(overall) + 1.0), layout="constrained")
    axes = figure.subplots()
    places = range(len(overall))
    bars = axes.barh(places, [factor - 1 for factor, _ in overall.values()], left=1, color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [_times(factor) for factor, _ in overall.values()], fontsize=8, padding=3)
    papers = [(paper, at) for at, (_, paper) in enumerate(overall.values()) if paper]
    axes.scatter(*zip(*papers, strict=True), marker="D", color=COLOURS[3], zorder=3, label="SLOs-Serve, the paper")
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_yticks(places, overall, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("capacity with it over that without, geometric mean", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _sensitivity_figure(curves: Mapping[str, Sequence[float]], bars: Mapping[str, Sequence[float]]) -> bytes:
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, values) in enumerate(curves.items()):
        colour, dash = COLOURS[number // len(LEARNS)], ("--", "-")[number % len(LEARNS)]
        left.plot(BELIEFS, values, dash, marker="o", color=colour, label=name)
    left.set_xlabel("batch time that the policy believes, over the true one", fontsize=9)
    left.set_ylabel("capacity relative to exact, geometric mean", fontsize=9)
    left.set_ylim(bottom=0)
    _plain(left)
    _bars(right, bars, LENGTHS, "{:.2f}")
    right.set_xlabel("how the policy guesses lengths of answers", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize=9)
    return _png(figure)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.grid(visible=True, color="#E5E5E5")
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    return picture.getvalue()


# Figures in words.


def _value(rows: Rows, spec: SimSpec) -> float:
    return float(rows[spec.name]["capacity_per_gpu"])


def _ratio(value: float, other: float) -> float | None:
    return value / other if other else None


def _over(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Geometric mean of the ratios."""
    return _mean([_ratio(*pair) for pair in zip(values, others, strict=True)])


def _mean(values: Sequence[float | None]) -> float | None:
    """The geometric one; None where it has none."""
    known = [value for value in values if value]
    return geometric_mean(known) if len(known) == len(values) else None


def _share(values: Sequence[float], most: Sequence[float]) -> str:
    return _percent(_over(values, most))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}".replace("%", " %")


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))
