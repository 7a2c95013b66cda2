"""What benchmarks/serve_pairs.py shows: Markdown and a picture."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from serve_stats import INTERVAL, SCOPES, TARGET, Curves, Runs, Series, all_series, curves

from sloguard.contract import percentile
from sloguard.report.capacity_figure import COLOURS
from sloguard.slo import TpotRule


def tables(runs: Runs, settings: Mapping[str, Any], rule: TpotRule) -> str:
    parts = [_heading(runs, settings, rule)]
    if runs.rates("screen"):
        parts.append(f"Screening, share of promises kept:\n\n{_screening(runs, rule)}")
    series = all_series(runs)
    if series and series[0].runs:
        by_scope = {scope: curves(series, rule, promised) for scope, promised in SCOPES.items()}
        parts += [f"Attainment, {scope}:\n\n{_attainment(series, of)}" for scope, of in by_scope.items()]
        parts.append(f"Capacity at {TARGET:.0%}, requests/s:\n\n{_capacities(series, by_scope)}")
        parts.append(f"Output tokens/s:\n\n{_throughput(series)}")
        parts += [f"{name}, p50 / p99:\n\n{_waits(series, name)}" for name in _classes(runs)]
        parts.append(f"Steps:\n\n{_steps(series)}")
    return "\n".join(parts)


def _heading(runs: Runs, settings: Mapping[str, Any], rule: TpotRule) -> str:
    limited = sum(run["client_limited"] for run in runs.all())
    ends = Counter(row["end"] for run in runs.all() for row in run["requests"])
    notes = sorted({note for run in runs.all() for note in run["notes"]})
    classes = "; ".join(_class_text(*kind) for kind in settings["classes"])
    lines = [
        f"{settings['model']}, vLLM {settings['vllm']}; {len(runs.all())} runs of {settings['seconds']:g} s and at "
        f"most {settings['drain_s']:g} s more; TPOT rule: {rule.value}.",
        f"Classes: {classes}; answers of {' to '.join(map(str, settings['output_tokens']))} tokens.",
        f"Requests: {', '.join(f'{n} {end}' for end, n in sorted(ends.items()))}; client-limited: {limited} runs.",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def _class_text(name: str, share: float, prompt_tokens: int, ttft_s: float | None, tpot_s: float | None) -> str:
    limits = (("TTFT", ttft_s), ("TPOT", tpot_s))
    promise = ", ".join(f"{what} {limit_s * 1000:g} ms" for what, limit_s in limits if limit_s)
    return f"{share:.0%} {name} (prompt {prompt_tokens}, {promise or 'no promise'})"


def _screening(runs: Runs, rule: TpotRule) -> str:
    rates = runs.rates("screen")
    arms = sorted({arm for rate in rates for arm in runs.arms("screen", rate)}, key=lambda arm: int(arm.split()[1]))
    lines = [
        [f"{rate:g}"]
        + [_percent(runs.attainment("screen", rate, a, rule)) if a in runs.arms("screen", rate) else "" for a in arms]
        for rate in rates
    ]
    return _markdown(["req/s", *arms], lines)


def _attainment(series: Sequence[Series], of: Curves) -> str:
    low, high = of.interval()
    lines = []
    for at, rate in enumerate(of.rates.tolist()):
        cells = [
            f"{_percent(of.found[at, i])} [{_percent(low[at, i])}, {_percent(high[at, i])}]"
            + ("" if one.arms[rate] == one.name else f" ({one.arms[rate].split()[1]})")
            for i, one in enumerate(series)
        ]
        lines.append([f"{rate:g}", str(len(series[0].runs[rate])), *cells])
    return _markdown(["req/s", "pairs", *(one.name for one in series)], lines)


def _capacities(series: Sequence[Series], by_scope: Mapping[str, Curves]) -> str:
    lines = []
    for scope, of in by_scope.items():
        found, drawn = of.capacities()
        low, high = float(of.rates[0]), float(of.rates[-1])
        for i, one in enumerate(series):
            bounds = [_rate(value, low, high) for value in _quantiles(drawn[:, i])]
            over = "" if i == 0 else _ratio(found[0], found[i], drawn[:, 0], drawn[:, i], low, high)
            lines.append([scope, one.name, f"{_rate(found[i], low, high)} [{', '.join(bounds)}]", over])
    return _markdown(["", "arm", "capacity", f"{series[0].name} over it"], lines)


def _ratio(
    ours: float,
    theirs: float,
    ours_drawn: NDArray[np.float64],
    theirs_drawn: NDArray[np.float64],
    low: float,
    high: float,
) -> str:
    """Where a capacity is beyond the rates tried, only what is certain: that the ratio is at least so much."""
    if ours < low or theirs > high:
        return "outside the rates tried"
    beyond = ours > high or theirs < low
    ratio = min(ours, high) / max(theirs, low)
    drawn = np.clip(ours_drawn, low, high) / np.clip(theirs_drawn, low, high)
    bounds = ", ".join(f"{value:.2f}" for value in np.percentile(drawn, INTERVAL))
    return f"{'at least ' if beyond else ''}{ratio:.2f}x [{bounds}]"


def _quantiles(values: NDArray[np.float64]) -> list[float]:
    return [percentile(np.sort(values), q) for q in INTERVAL]


def _rate(value: float, low: float, high: float) -> str:
    return f"< {low:g}" if value < low else f"> {high:g}" if value > high else f"{value:.2f}"


def _throughput(series: Sequence[Series]) -> str:
    lines = [
        [
            f"{rate:g}",
            *(f"{np.mean([run['output_throughput'] for run in one.runs[rate].values()]):.1f}" for one in series),
        ]
        for rate in series[0].runs
    ]
    return _markdown(["req/s", *(one.name for one in series)], lines)


def _waits(series: Sequence[Series], name: str) -> str:
    """What never came counts as infinitely late."""
    lines = []
    for rate in series[0].runs:
        for one in series:
            rows = [row for run in one.runs[rate].values() for row in run["requests"] if row["class"] == name]
            done = sum(row["end"] == "completed" for row in rows)
            seconds = [_pair([row[what] for row in rows]) for what in ("ttft_s", "e2el_s")]
            pace = _pair([row["tpot_s"] for row in rows], 1000)
            lines.append([f"{rate:g}", one.arms[rate], f"{done} of {len(rows)}", seconds[0], pace, seconds[1]])
    return _markdown(["req/s", "arm", "completed", "TTFT, s", "TPOT, ms", "E2EL, s"], lines)


def _pair(values: Sequence[float | None], unit: float = 1.0) -> str:
    known = np.sort(np.array([inf if value is None else value * unit for value in values]))
    if not len(known):
        return "-"
    shown = [percentile(known, q) for q in (50, 99)]
    return " / ".join("never" if value == inf else f"{value:.3g}" for value in shown)


def _steps(series: Sequence[Series]) -> str:
    lines = []
    for rate in series[0].runs:
        for one in series:
            counts: Counter[str] = Counter()
            for run in one.runs[rate].values():
                counts.update(run["counts"])
            p50, p99 = (planner_s(counts, q) for q in (0.5, 0.99))
            planner = "-" if p50 is None or p99 is None else f"{p50 * 1e3:.2g} / {p99 * 1e3:.2g}"
            orders = {label(name, "order"): n for name, n in counts.items() if name.startswith("sloguard_steps_total")}
            steps = ", ".join(f"{n:.0f} {order}" for order, n in sorted(orders.items())) or "-"
            preempted = sum(n for name, n in counts.items() if name.startswith("vllm:num_preemptions"))
            lines.append([f"{rate:g}", one.arms[rate], planner, steps, f"{preempted:.0f}"])
    return _markdown(["req/s", "arm", "planner p50 / p99, ms", "steps by whose order", "preemptions"], lines)


def planner_s(counts: Mapping[str, float], q: float) -> float | None:
    """The quantile of a Prometheus histogram, by a straight line within its bucket; None where there is none."""
    prefix = "sloguard_planner_seconds_bucket"
    found = sorted((float(label(name, "le")), n) for name, n in counts.items() if name.startswith(prefix))
    if not found or not found[-1][1]:
        return None
    edges, below = zip(*found, strict=True)
    at = q * below[-1]
    last = max((i for i, edge in enumerate(edges) if edge < inf), default=0)
    if at >= below[last]:
        return edges[last]  # or more: the histogram can't say
    return float(np.interp(at, (0.0, *below[: last + 1]), (0.0, *edges[: last + 1])))


def label(sample: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', sample)
    return found[1] if found else ""


def _classes(runs: Runs) -> list[str]:
    return list(dict.fromkeys(row["class"] for run in runs.all() for row in run["requests"]))


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


# The figure.


def figure(runs: Runs, settings: Mapping[str, Any], rule: TpotRule) -> bytes:
    """Attainment over the rate, with intervals, as PNG."""
    picture = Figure(figsize=(11, 4.2), layout="constrained")
    series = all_series(runs)
    panels = picture.subplots(1, len(SCOPES), sharey=True)
    for axes, (scope, promised) in zip(panels, SCOPES.items(), strict=True):
        axes.axhline(TARGET, color="#999999", linewidth=0.8, linestyle=":")
        if series and series[0].runs:
            of = curves(series, rule, promised)
            low, high = of.interval()
            for i, one in enumerate(series):
                reach = np.maximum(0, [of.found[:, i] - low[:, i], high[:, i] - of.found[:, i]])
                axes.errorbar(
                    of.rates,
                    of.found[:, i],
                    reach,
                    color=COLOURS[i],
                    marker="o",
                    capsize=3,
                    linewidth=1.5,
                    label=one.name,
                )
        axes.set_title(scope, loc="left", fontsize=10)
        axes.set_xlabel("requests/s", fontsize=9)
        axes.set_ylim(-0.02, 1.04)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.grid(visible=True, color="#E5E5E5")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("attainment", fontsize=9)
    picture.suptitle(
        f"Promises kept by vLLM {settings['vllm']} serving {settings['model']} (TPOT rule: {rule.value})",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower left", ncols=len(labels) or 1, frameon=False, fontsize=9)
    saved = io.BytesIO()
    picture.savefig(saved, format="png", dpi=160, metadata={"Software": None})
    return saved.getvalue()
