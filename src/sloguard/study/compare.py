"""Studies of one task side by side: SLO-Guard's measures of each label, and tests against a baseline.

    fast trials          a score of at least FAST of the best of all that is compared, limits kept
    consistency          of the trials after the first fast one, the share that is fast
    best                 the highest score that was measured with the limits kept
    held out             what the recommended config scored when it was measured again
    first feasible       number of the first trial that kept the limits
    first fast           number of the first fast trial

Each is a figure of one study, given as mean and sample standard deviation over the studies that have it. Tests are of
those figures, by Mann-Whitney; definitions are in docs/comparing.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from sloguard.errors import SpecError
from sloguard.study.caveats import caveats
from sloguard.study.runs import StudyRun, TrialRun
from sloguard.study.stats import (
    FAST,
    Alternative,
    Interval,
    cliffs_delta,
    consistency,
    difference_interval,
    fast_trials,
    holm,
    mann_whitney_p,
    sample_sd,
)

USUAL_BASELINE = "random"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of one study, `of(study, fast)`, where `fast` says which of its trials are; None where it has none.
    `alternative` is what is tested of it against the baseline, if anything is.
    """

    name: str
    of: Callable[[StudyRun, Sequence[bool]], float | None]
    alternative: Alternative | None = None


def _natural_best(study: StudyRun, fast: Sequence[bool]) -> float | None:
    return None if study.best is None else study.natural(study.best)


def _held_out(study: StudyRun, fast: Sequence[bool]) -> float | None:
    return None if study.held_out is None else study.natural(study.held_out)


def _first(flags: Sequence[bool]) -> float | None:
    return float(list(flags).index(True) + 1) if True in flags else None


FAST_TRIALS, CONSISTENCY, BEST, HELD_OUT = "fast trials", "consistency", "best", "held out"
FIRST_FEASIBLE, FIRST_FAST = "first feasible", "first fast"
MEASURES = (
    Measure(FAST_TRIALS, lambda study, fast: float(sum(fast)), "greater"),
    Measure(CONSISTENCY, lambda study, fast: consistency(fast), "greater"),
    Measure(BEST, _natural_best, "two-sided"),
    Measure(HELD_OUT, _held_out),
    Measure(FIRST_FEASIBLE, lambda study, fast: _first([trial.feasible for trial in study.trials])),
    Measure(FIRST_FAST, lambda study, fast: _first(fast)),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over the `n` studies that have a figure; None of none, or of one."""

    n: int
    mean: float | None
    sd: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(len(values), fmean(values) if values else None, sample_sd(values))


@dataclass(frozen=True, slots=True)
class Group:
    """The studies of one label. Counts are over all their trials; `crash_share` is of the time, None where that was not
    written down. `sd_ratio` is the standard deviation of the best over that of the baseline.
    """

    label: str
    seeds: tuple[int | None, ...]
    trials: int
    measures: Mapping[str, Spread]
    feasible: int
    dropped: int
    crashes: int
    crash_share: float | None
    sd_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Versus:
    """`label` against the baseline. `difference` is of the means, `interval` its 95 % bootstrap interval, of pairs with
    the same seed where `paired`; `delta` is Cliff's, above 0 where figures of `label` are the larger ones.
    """

    label: str
    measure: str
    alternative: Alternative
    difference: float
    interval: Interval
    paired: bool
    delta: float
    p: float
    p_holm: float = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The baseline comes first. `simulated` says that some studies are; `trials_each` is how many trials a study has,
    None where they differ. `fast_at` is the score from which a trial is fast, in its own unit. `caveats` say what makes
    the evidence weak, `notes` how the studies were read.
    """

    objective: str
    baseline: str
    simulated: bool
    trials_each: int | None
    fast_at: float | None
    groups: tuple[Group, ...]
    tests: tuple[Versus, ...]
    caveats: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """In natural units: requests/s, tokens/s, seconds."""
        return asdict(self)


def compare(studies: Sequence[StudyRun], baseline: str | None = None, notes: Sequence[str] = ()) -> Comparison:
    """Compares labels with the one named `baseline` (the first whose optimizer is random, else the first of all).

    Raises SpecError where no study has that label, or objectives differ.
    """
    by_label: dict[str, list[StudyRun]] = {}
    for study in studies:
        by_label.setdefault(study.label, []).append(study)
    base = _baseline(list(by_label), baseline)
    ordered = {base: by_label[base], **by_label}
    objectives = {study.objective for study in studies}
    if len(objectives) > 1:
        raise SpecError("objective", ", ".join(sorted(objectives)), "they don't compare", "Compare one at a time.")
    lengths = {len(study.trials) for study in studies}
    best = max((study.best for study in studies if study.best is not None), default=0.0)
    figures = {label: _figures(group, best) for label, group in ordered.items()}
    groups = [_group(label, group, figures[label]) for label, group in ordered.items()]
    base_sd = groups[0].measures[BEST].sd
    return Comparison(
        objective=objectives.pop(),
        baseline=base,
        simulated=any(study.simulated for study in studies),
        trials_each=lengths.pop() if len(lengths) == 1 else None,
        fast_at=None if not best else studies[0].natural(best * FAST if best > 0 else best / FAST),
        groups=tuple(replace(group, sd_ratio=_ratio(group.measures[BEST].sd, base_sd)) for group in groups),
        tests=_tests(figures, base),
        caveats=tuple(caveats(ordered, best)),
        notes=tuple(notes),
    )


def _baseline(labels: Sequence[str], asked: str | None) -> str:
    if asked is None:
        return next((label for label in labels if label.split(",")[0].split(" ")[0] == USUAL_BASELINE), labels[0])
    if asked not in labels:
        raise SpecError(
            "--baseline", asked, "no study has that label", f"Choose one of {', '.join(map(repr, labels))}."
        )
    return asked


Seeded = list[tuple[int | None, float]]  # seed and figure of each study that has one


def _figures(group: Sequence[StudyRun], best: float) -> dict[str, Seeded]:
    """By measure."""
    told: dict[str, Seeded] = {measure.name: [] for measure in MEASURES}
    for study in group:
        fast = fast_trials([trial.kept for trial in study.trials], best)
        for measure in MEASURES:
            if (figure := measure.of(study, fast)) is not None:
                told[measure.name].append((study.seed, figure))
    return told


def _group(label: str, group: Sequence[StudyRun], figures: Mapping[str, Seeded]) -> Group:
    trials = [trial for study in group for trial in study.trials]
    return Group(
        label=label,
        seeds=tuple(study.seed for study in group),
        trials=len(trials),
        measures={name: Spread.of([figure for _, figure in values]) for name, values in figures.items()},
        feasible=sum(trial.feasible for trial in trials),
        dropped=sum(trial.dropped for trial in trials),
        crashes=sum(trial.crashed for trial in trials),
        crash_share=_crash_share(trials),
    )


def _crash_share(trials: Sequence[TrialRun]) -> float | None:
    costs_s = [trial.cost_s for trial in trials if trial.cost_s is not None]
    if len(costs_s) < len(trials) or not sum(costs_s):
        return None
    return sum(trial.cost_s or 0.0 for trial in trials if trial.crashed) / sum(costs_s)


def _ratio(sd: float | None, base_sd: float | None) -> float | None:
    return sd / base_sd if sd is not None and base_sd else None


def _tests(figures: Mapping[str, Mapping[str, Seeded]], base: str) -> tuple[Versus, ...]:
    """Of all that both sides have two figures for, with Holm's correction over them together."""
    made: list[Versus] = []
    for label, measured in figures.items():
        for measure in MEASURES:
            ours, theirs = measured[measure.name], figures[base][measure.name]
            if label != base and measure.alternative and min(len(ours), len(theirs)) > 1:
                made.append(_versus(label, measure.name, measure.alternative, ours, theirs))
    corrected = holm({(one.label, one.measure): one.p for one in made})
    return tuple(replace(one, p_holm=corrected[one.label, one.measure]) for one in made)


def _versus(label: str, measure: str, alternative: Alternative, ours: Seeded, theirs: Seeded) -> Versus:
    seeds, their_seeds = {seed for seed, _ in ours}, {seed for seed, _ in theirs}
    paired = None not in seeds and seeds == their_seeds and len(seeds) == len(ours) == len(theirs)
    if paired:
        ours, theirs = sorted(ours), sorted(theirs)
    mine, others = [figure for _, figure in ours], [figure for _, figure in theirs]
    return Versus(
        label=label,
        measure=measure,
        alternative=alternative,
        difference=fmean(mine) - fmean(others),
        interval=difference_interval(np.array(mine), np.array(others), paired=paired),
        paired=paired,
        delta=cliffs_delta(mine, others),
        p=mann_whitney_p(mine, others, alternative),
    )
