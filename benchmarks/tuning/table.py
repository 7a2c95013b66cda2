"""What the studies on record show: Markdown tables and two figures.

    python benchmarks/tuning/table.py --out DIR [--ours guided+sim] [--tasks a,b|all] [--ways x,y] [--jobs 2]

share        true capacity of the incumbent (best by its measured score) over the task's optimum; 0 without one
deployed     the same of what a study ends with, once the best were measured again under other arrivals; a study that
             was not confirmed has none
regret       1 - share; its area is the mean over the 15 trials, or over the first hour of the clock
clock        seconds on the (simulated) machine: starts, loads, crashes
fast         the paper's measure, for a score to be maximised: trials that reach 80 % of the best score which any way
             measured on that task and seed. A trial that was dropped in a race counts as not fast
consistency  the paper's post-hit consistency: of the trials after the first fast one, the share that is fast
spread       the paper's cross-seed spread: standard deviation over seeds of the best measured score, over its mean

Only pairs of task and seed that every way has run are counted, so that ways are compared on the same; with --ways, of
those ways. Without --tasks: of the dozen that run.py runs by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from figures import curves_figure
from loop import BUDGET
from names import names_among, read_tasks
from numpy.typing import NDArray
from records import Run, Worth, read_runs, worth
from stats import at_times, mean_and_sd, paired_p
from tabular import TABULAR
from tasks import DOZEN, TASKS
from ways import WAYS

from sloguard.report.files import write_text_atomic
from sloguard.study.stats import consistency, fast_trials, holm, mean_interval

Array = NDArray[np.float64]
OURS = "guided+sim"
AFTER = (5, 10, 15)
MISLED, BEHIND_AT = {"guided+other", "guided+mirrored"}, (3, 5, 8, 10, 13)
FEASIBLE_BY = (1, 3, 5, 10, 15)
HOUR_S = 3600.0
CLOCK_S = np.linspace(0.0, HOUR_S, 121)
NEAR = (0.8, 0.9, 0.95)  # of the optimum
Pairs = Mapping[str, Sequence[Run]]  # by way, in the order of (task, seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ours", default=OURS)
    parser.add_argument("--tasks", type=read_tasks, default=[*DOZEN, *TABULAR])
    parser.add_argument("--ways", type=names_among(WAYS), default=list(WAYS), help="to compare")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    show(options.out, options.ours, options.jobs, options.tasks, options.ways)
    return 0


def show(out: Path, ours: str, jobs: int, tasks: Collection[str], ways: Collection[str] = tuple(WAYS)) -> None:
    """Prints the tables and writes them and the figures, of simulated and of measured tasks apart."""
    runs = [run for run in read_runs(out) if run.way in ways and run.task in tasks]
    for name, group in (
        ("simulated", [run for run in runs if run.task in TASKS]),
        ("measured", [run for run in runs if run.task not in TASKS]),
    ):
        pairs = paired(group)
        if next(iter(pairs.values()), ()):
            show_group(out, name, pairs, ours, jobs)
        elif group:
            print(f"{name} tasks: no pair of task and seed has been run in every way yet", file=sys.stderr)


def show_group(out: Path, name: str, pairs: Pairs, ours: str, jobs: int) -> None:
    known = worth(out, [run for group in pairs.values() for run in group], jobs)
    parts = [overview(pairs, known), costs(pairs, known), paper(pairs)]
    parts += [
        by_task(pairs, known, "share at 15", lambda run: float(known.shares(run)[-1])),
        by_task(pairs, known, "trials that crashed", lambda run: run.crashes / len(run.trials)),
    ]
    mine = ours if ours in pairs else "guided"
    if mine in pairs:
        parts.insert(1, against(pairs, known, mine))
    if MISLED & set(pairs) and "guided" in pairs:
        parts.append(behind(pairs, known))
    text = "\n".join(parts)
    text = f"## {name.capitalize()} tasks\n\n{text}"
    write_text_atomic(out / f"{name}.md", text)
    trials = {way: (np.arange(1.0, BUDGET + 1), _mean_regret(group, known)) for way, group in pairs.items()}
    clock = {way: (CLOCK_S / 60, 1 - _clock_shares(group, known).mean(axis=0)) for way, group in pairs.items()}
    (out / f"{name}-trials.png").write_bytes(curves_figure(trials, "Regret after each trial", "trials"))
    if name == "simulated":
        picture = curves_figure(clock, "Regret by the clock", "minutes, starts and crashes included")
        (out / f"{name}-clock.png").write_bytes(picture)
    print(text)


def paired(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each way on the pairs that all have, in the order of `WAYS`."""
    by_way: dict[str, dict[tuple[str, int], Run]] = {}
    for run in runs:
        by_way.setdefault(run.way, {})[run.task, run.seed] = run
    common = sorted(set.intersection(*(set(found) for found in by_way.values()))) if by_way else []
    return {way: [by_way[way][pair] for pair in common] for way in WAYS if way in by_way}


def overview(pairs: Pairs, known: Worth) -> str:
    lines: list[list[str]] = []
    for way, group in pairs.items():
        shares = np.array([known.shares(run) for run in group])
        scores = [_with_interval(shares[:, k - 1]) for k in AFTER]
        deployed = np.array([known.share(run, run.deployed) for run in group])
        scores.append(_with_interval(deployed) if WAYS[way].confirmed else "-")
        clock = 1 - _clock_shares(group, known).mean()
        lines.append([way, *scores, f"{1 - shares.mean():.3f}", f"{clock:.3f}", _worst(group, shares[:, -1])])
    first = next(iter(pairs.values()))
    tasks, seeds = len({run.task for run in first}), len({run.seed for run in first})
    scores = [*(f"share at {k}" for k in AFTER), "deployed"]
    head = ["way", *scores, "area, trials", "area, first hour", "worst task at 15"]
    return f"{tasks} tasks, {seeds} seeds, {len(first)} pairs\n\n{_markdown(head, lines)}"


def against(pairs: Pairs, known: Worth, ours: str) -> str:
    """Differences of the area under the share curve and of the share at the end, tested pair by pair."""
    mine = np.array([known.shares(run) for run in pairs[ours]])
    others = {way: np.array([known.shares(run) for run in group]) for way, group in pairs.items() if way != ours}
    p_end = holm({way: paired_p(mine[:, -1], shares[:, -1]) for way, shares in others.items()})
    p_area = holm({way: paired_p(mine.mean(axis=1), shares.mean(axis=1)) for way, shares in others.items()})
    lines = [
        [
            way,
            _with_interval(mine[:, -1] - shares[:, -1], signed=True),
            _p(p_end[way]),
            _with_interval(mine.mean(axis=1) - shares.mean(axis=1), signed=True),
            _p(p_area[way]),
        ]
        for way, shares in others.items()
    ]
    head = [f"{ours} less", "share at 15", "p (Wilcoxon, Holm)", "mean share over trials", "p (Wilcoxon, Holm)"]
    return _markdown(head, lines)


def costs(pairs: Pairs, known: Worth) -> str:
    lines: list[list[str]] = []
    for way, group in pairs.items():
        feasible = [np.mean([run.incumbents[k - 1] is not None for run in group]) for k in FEASIBLE_BY]
        proposals = [trial["proposal_cpu_s"] for run in group for trial in run.trials]
        lines.append(
            [
                way,
                *(f"{chance:.0%}" for chance in feasible),
                f"{np.mean([run.crashes for run in group]):.1f}",
                f"{np.mean([run.wasted for run in group]):.0%}",
                f"{np.mean([run.ends_s[-1] for run in group]) / 60:.0f}",
                *(_minutes(float(np.median([_clock_to(run, known, near) for run in group]))) for near in NEAR),
                f"{np.mean([_clock_to(run, known, NEAR[-1]) < np.inf for run in group]):.0%}",
                f"{np.mean([known.starting(run) for run in group]):.0%}",
                f"{np.mean(proposals):.2f}",
            ]
        )
    head = [
        "way",
        *(f"feasible by {k}" for k in FEASIBLE_BY),
        "crashes",
        "clock in crashes",
        "min a study",
        *(f"half at {near:.0%} after, min" for near in NEAR),
        f"ever at {NEAR[-1]:.0%}",
        "winner starts",
        "CPU s a proposal",
    ]
    return _markdown(head, lines)


def behind(pairs: Pairs, known: Worth) -> str:
    """How many trials later a way that was misled has the mean share that `guided` has without a prior."""
    alone = np.mean([known.shares(run) for run in pairs["guided"]], axis=0)
    lines: list[list[str]] = []
    for way in sorted(MISLED & set(pairs)):
        misled = np.mean([known.shares(run) for run in pairs[way]], axis=0)
        lags = [_lag(misled, k, float(alone[k - 1])) for k in BEHIND_AT]
        lines.append([way, *("never" if lag is None else f"{lag:+d}" for lag in lags)])
    return _markdown(["trials behind guided's share at", *map(str, BEHIND_AT)], lines)


def _lag(shares: Array, k: int, share: float) -> int | None:
    there = np.flatnonzero(shares >= share)
    return int(there[0]) + 1 - k if len(there) else None


def paper(pairs: Pairs) -> str:
    best: dict[tuple[str, int], float] = {}
    for run in (run for group in pairs.values() for run in group):
        best[run.task, run.seed] = max(best.get((run.task, run.seed), 0.0), *(_scores(run)))
    lines: list[list[str]] = []
    for way, group in pairs.items():
        fast = [fast_trials(_scores(run), best[run.task, run.seed]) for run in group]
        steady = [value for flags in fast if (value := consistency(flags)) is not None]
        counts = [sum(flags) for flags in fast]
        spreads = [np.std(tops, ddof=1) / np.mean(tops) for tops in _tops(group) if len(tops) > 1 and np.mean(tops) > 0]
        lines.append(
            [
                way,
                mean_and_sd(counts),
                f"{np.mean(steady):.3f}" if steady else "-",
                f"{np.mean(spreads):.1%}" if spreads else "-",
            ]
        )
    return _markdown(["way (the paper's measures)", "fast trials of 15", "consistency", "spread of the best"], lines)


def by_task(pairs: Pairs, known: Worth, what: str, of: Callable[[Run], float]) -> str:
    """Means of `of` over seeds."""
    tasks = sorted({run.task for group in pairs.values() for run in group})
    lines = [
        [
            f"{task} ({known.optima[task]:.2f})",
            *(f"{np.mean([of(run) for run in group if run.task == task]):.2f}" for group in pairs.values()),
        ]
        for task in tasks
    ]
    return _markdown([f"{what}, by task (its optimum)", *pairs], lines)


def _scores(run: Run) -> list[float]:
    return [trial["score"] if trial["feasible"] else 0.0 for trial in run.trials]


def _tops(group: Sequence[Run]) -> list[list[float]]:
    """Best measured scores over seeds, by task."""
    tasks = sorted({run.task for run in group})
    return [[max(_scores(run)) for run in group if run.task == task] for task in tasks]


def _mean_regret(group: Sequence[Run], known: Worth) -> Array:
    return 1 - np.mean([known.shares(run) for run in group], axis=0)


def _clock_shares(group: Sequence[Run], known: Worth) -> Array:
    return np.array([at_times(run.ends_s, known.shares(run), CLOCK_S) for run in group])


def _clock_to(run: Run, known: Worth, near: float) -> float:
    """When the incumbent is first so near the optimum; inf where it never is."""
    reached = np.flatnonzero(known.shares(run) >= near)
    return float(run.ends_s[reached[0]]) if len(reached) else np.inf


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}" if seconds < np.inf else "-"


def _worst(group: Sequence[Run], shares: Array) -> str:
    by_task: dict[str, list[float]] = {}
    for run, share in zip(group, shares.tolist(), strict=True):
        by_task.setdefault(run.task, []).append(share)
    task = min(by_task, key=lambda name: float(np.mean(by_task[name])))
    return f"{task} {np.mean(by_task[task]):.2f}"


def _with_interval(values: Array, *, signed: bool = False) -> str:
    low, high = mean_interval(values)
    form: Callable[[float], str] = (lambda x: f"{x:+.3f}") if signed else (lambda x: f"{x:.3f}")
    return f"{form(float(values.mean()))} ({form(low)} to {form(high)})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
