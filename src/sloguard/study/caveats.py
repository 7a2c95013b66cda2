"""What makes the evidence of a comparison weak, a line each, found in the trials themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean, median

from sloguard.study.confirm import NOISE, RUN_TO_RUN_NOISE
from sloguard.study.runs import StudyRun
from sloguard.study.stats import FAST, fast_trials, smallest_p

FEW_SEEDS = 10  # bootstrap intervals of fewer cover clearly less than they say (docs/comparing.md)
FEW_REQUESTS = 100  # p99 of fewer lies beyond all but the largest
SAME = 0.5  # share of configs in common beyond which studies are hardly independent
Groups = Mapping[str, Sequence[StudyRun]]


def caveats(groups: Groups, best: float) -> Iterator[str]:
    """`groups` are studies by label, the baseline's first; `best` is the highest score of all, 0 without one."""
    for doubt in (
        _simulated,
        _few_seeds,
        _unpaired,
        _unequal,
        _no_crash,
        _all_feasible,
        _few_requests,
        _same_configs,
        _warned,
        _dropped,
    ):
        yield from doubt(groups)
    yield from _within_noise(groups)
    yield from _uneven_seeds(groups, best)
    yield from _never_fast(groups, best)


def _all(groups: Groups) -> list[StudyRun]:
    return [study for group in groups.values() for study in group]


def _base(groups: Groups) -> str:
    return next(iter(groups))


def _simulated(groups: Groups) -> Iterator[str]:
    count, total = sum(study.simulated for study in _all(groups)), len(_all(groups))
    if count:
        which = "all studies are" if count == total else f"{count} of {total} studies are"
        yield f"{which} simulated: figures are a model's, times are virtual"


def _few_seeds(groups: Groups) -> Iterator[str]:
    base = _base(groups)
    fewest = min(len(group) for group in groups.values())
    if fewest >= FEW_SEEDS:
        return
    n, m = len(groups[base]), min((len(group) for label, group in groups.items() if label != base), default=0)
    if min(n, m) < 2:
        labels = ", ".join(label for label, group in groups.items() if len(group) < 2)
        if labels:
            yield f"one study of {labels}: nothing can be tested, and no spread is known"
        return
    least, both = smallest_p(n, m, "greater"), smallest_p(n, m, "two-sided")
    yield (
        f"few seeds ({n} against {m}): p is at least {least:.2g} one-sided, {both:.2g} two-sided, before Holm; "
        "intervals are too narrow"
    )


def _unpaired(groups: Groups) -> Iterator[str]:
    seeds = {label: sorted(str(study.seed) for study in group) for label, group in groups.items()}
    unknown = [label for label, group in groups.items() if any(study.seed is None for study in group)]
    if unknown:
        yield f"seeds of {', '.join(unknown)} are not known: unpaired"
    others = [label for label in groups if seeds[label] != seeds[_base(groups)] and label not in unknown]
    if others and _base(groups) not in unknown:
        yield f"seeds of {', '.join(others)} are not those of {_base(groups)}: unpaired"


def _unequal(groups: Groups) -> Iterator[str]:
    lengths = sorted({len(study.trials) for study in _all(groups)})
    if len(lengths) > 1:
        yield (
            f"studies have from {lengths[0]} to {lengths[-1]} trials: counts of trials and the best of them depend on "
            "how many there are"
        )


def _no_crash(groups: Groups) -> Iterator[str]:
    if not any(trial.crashed for study in _all(groups) for trial in study.trials):
        yield "no trial crashed: how crashes are handled was not exercised"


def _all_feasible(groups: Groups) -> Iterator[str]:
    """A capacity is bounded by its limits, so there they bind even where every config has one."""
    if _all(groups)[0].objective == "capacity":
        return
    ran = [trial for study in _all(groups) for trial in study.trials if not trial.crashed]
    if ran and all(trial.feasible for trial in ran):
        yield f"all {len(ran)} configs that ran are feasible: the limits never bound"


def _few_requests(groups: Groups) -> Iterator[str]:
    counts = [trial.requests for study in _all(groups) for trial in study.trials if trial.requests is not None]
    if not counts or median(counts) >= FEW_REQUESTS:
        return
    alone = all(study.one_at_a_time for study in _all(groups))
    order = ", one after another: nothing was concurrent, and" if alone else ":"
    yield (f"a trial's load had {median(counts):g} requests (median){order} p99 is their maximum")


def _within_noise(groups: Groups) -> Iterator[str]:
    means = {label: fmean(known) for label, group in groups.items() if (known := _bests(group))}
    base = _base(groups)
    if base not in means or not means[base]:
        return
    gaps = {label: abs(mean / means[base] - 1) for label, mean in means.items() if label != base}
    near = {label: gap for label, gap in gaps.items() if gap < RUN_TO_RUN_NOISE}
    if near:
        told = ", ".join(f"{label} {gap:.1%}" for label, gap in near.items())
        known = f"spread {RUN_TO_RUN_NOISE:.1%}, sd {NOISE:.0%}"
        yield f"best scores differ from those of {base} by less than runs of one config do: {told} ({known})"


def _bests(group: Sequence[StudyRun]) -> list[float]:
    return [study.best for study in group if study.best is not None]


def _same_configs(groups: Groups) -> Iterator[str]:
    """Of studies that should be independent: one seed under two labels, one label under two seeds."""
    for ours, theirs in combinations(groups, 2):
        pairs = [(a, b) for a in groups[ours] for b in groups[theirs] if a.seed == b.seed is not None]
        same, total = _in_common(pairs)
        if same > SAME * total:
            yield (
                f"{same} of {total} configs are the same in {ours} and {theirs} for the same seeds: these are not "
                "independent replications"
            )
    for label, group in groups.items():
        same, total = _in_common(list(combinations(group, 2)))
        if same > SAME * total:
            yield f"{label}: {same / total:.0%} of configs are the same from seed to seed: the seeds hardly differ"


def _in_common(pairs: Sequence[tuple[StudyRun, StudyRun]]) -> tuple[int, int]:
    """Configs that two studies share, and how many they could, over all `pairs`."""
    same = total = 0
    for a, b in pairs:
        mine, theirs = (Counter(t.config for t in study.trials if t.config is not None) for study in (a, b))
        same += (mine & theirs).total()
        total += min(mine.total(), theirs.total())
    return same, total


def _warned(groups: Groups) -> Iterator[str]:
    count = sum(study.warned for study in _all(groups))
    if count:
        yield (
            f"{count} of {len(_all(groups))} studies began with the crashes of earlier ones known: they crash less, "
            "and are not independent (tune --retry-failures)"
        )


def _dropped(groups: Groups) -> Iterator[str]:
    trials = [trial for study in _all(groups) for trial in study.trials]
    if count := sum(trial.dropped for trial in trials):
        yield (
            f"{count} of {len(trials)} trials were dropped in races: they count as not fast, though some may keep "
            f"{FAST:.0%} of the best (tune --no-race measures all in full)"
        )


def _uneven_seeds(groups: Groups, best: float) -> Iterator[str]:
    """A seed has arrivals of its own, so that one may allow less than another."""
    tops: dict[int, float] = {}
    for study in _all(groups):
        if study.seed is not None and study.best is not None:
            tops[study.seed] = max(study.best, tops.get(study.seed, study.best))
    behind = [seed for seed, fast in zip(tops, fast_trials(list(tops.values()), best), strict=True) if not fast]
    if behind:
        yield (
            f"nothing under seed {', '.join(map(str, sorted(behind)))} is fast, under any label: seeds have arrivals "
            "of their own, and fast is by the best of all"
        )


def _never_fast(groups: Groups, best: float) -> Iterator[str]:
    for label, group in groups.items():
        without = sum(not any(fast_trials([t.kept for t in study.trials], best)) for study in group)
        if without:
            yield f"{without} of {len(group)} studies of {label} have no fast trial: consistency is of the others"
