"""What the trials say of each knob."""

from __future__ import annotations

from math import expm1

from sloguard.optim.base import Goal, place, taught
from sloguard.optim.effects import Effect, Effects, Pair, effects
from sloguard.page.canvas import Size, plain
from sloguard.page.figures import effect, heat, value_text
from sloguard.page.page import Beside, Block, Cell, Column, Figure, Figures, More, Section, Table
from sloguard.page.tune_words import axis, counted, dot_of, number_text
from sloguard.report.tables import score_text
from sloguard.study.record import Record
from sloguard.trial import Trial

SHOWN = 6  # panels before the fold
PANEL: Size = (340, 240)
MAP: Size = (480, 380)
NAME = "knobs"
TITLE = "What the knobs do"


def knobs_section(record: Record) -> Section:
    results = record.results
    found = effects(results.explored, results.goal)
    if found is None:
        return Section(NAME, TITLE, "Too few trials have a score to tell what the knobs do.", ())
    trials = taught(results.explored)
    limits = _limits(found, trials, results.goal)
    panels = [_panel(one, found, trials, results.goal, limits) for one in found.knobs]
    blocks: list[Block] = [Figures(tuple(panels[:SHOWN]), small=True)]
    if panels[SHOWN:]:
        rest = Figures(tuple(panels[SHOWN:]), small=True)
        blocks.append(More(f"{counted(len(rest.figures), 'more knob')}", (rest,)))
    table = _table(found, results.goal)
    if found.pair is None:
        blocks.append(table)
    else:
        blocks.append(Beside((Figures((_map(found.pair, found, trials, results.goal),)), table)))
    return Section(NAME, TITLE, _lead(found), tuple(blocks))


def _lead(found: Effects) -> str:
    clear = [one.knob.name for one in found.knobs if one.clear]
    told = f"Beyond noise: {', '.join(clear)}." if clear else "None is beyond noise."
    return (
        f"Indications from {found.lessons} trials, not measured effects; the strongest first. {told} The line is the "
        "score that a Gaussian process expects over the configs tried, were the knob at that value in all of them; the "
        "band is its 95 % interval. Marks are trials as they were measured; a dropped one (triangle) lies somewhere "
        "below its mark. A knob reaches as far as it was tried."
    )


def _limits(found: Effects, trials: list[Trial], goal: Goal) -> tuple[float, float]:
    """One range for all panels, so that a strong knob looks strong, around means and trials; an interval may be cut."""
    ends = [goal.told.shown(y) for one in found.knobs for y in (*one.low, *one.high)]
    marks = [dot.y for trial in trials if (dot := dot_of(trial, goal, 0.0)).y is not None]
    seen = [*(goal.told.shown(y) for one in found.knobs for y in one.mean), *marks]
    low, high = min(seen), max(seen)
    room = 0.5 * (high - low or abs(high) or 1.0)
    return max(min(ends), low - room, 0.0) - 0.2 * room, max(min(max(ends), high + room), high) + 0.1 * room


def _panel(one: Effect, found: Effects, trials: list[Trial], goal: Goal, limits: tuple[float, float]) -> Figure:
    name = one.knob.name
    at = [(place(trial, found.space), trial) for trial in trials]
    marks = [(config[name], dot_of(trial, goal, 0.0)) for config, trial in at if name in config]
    ends = [sorted((goal.told.shown(a), goal.told.shown(b))) for a, b in zip(one.low, one.high, strict=True)]
    band = [low for low, _ in ends], [high for _, high in ends]  # of a latency the least score is the largest figure
    return Figure(
        f"knob-{_slug(name)}",
        plain(name),
        f"Expected score over {plain(name)}: best at {plain(value_text(one.best))}, {_beyond(one)}.",
        effect(one.knob, one.values, [goal.told.shown(y) for y in one.mean], band, marks, limits, axis(goal)),
        PANEL,
    )


def _beyond(one: Effect) -> str:
    return "beyond noise" if one.clear else "not beyond noise"


def _slug(name: str) -> str:
    """For ids and the names of files: what a TOML file may call a knob may be no such name."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def _map(pair: Pair, found: Effects, trials: list[Trial], goal: Goal) -> Figure:
    first, second = (plain(knob.name) for knob in pair.knobs)
    at = [(place(trial, found.space), trial) for trial in trials]
    marks = [
        (config[pair.knobs[0].name], config[pair.knobs[1].name], dot_of(trial, goal, 0.0))
        for config, trial in at
        if all(knob.name in config for knob in pair.knobs)
    ]
    mean = [[goal.told.shown(y) for y in row] for row in pair.mean]
    flat = [y for row in pair.mean for y in row]
    return Figure(
        "knob-pair",
        f"{first} and {second} together",
        f"Map of the expected score over {first} and {second}: from {score_text(min(flat), goal)} to "
        f"{score_text(max(flat), goal)}. Trials and crashes are marked.",
        heat(pair.knobs, pair.values, mean, marks, least_is_best=goal.told.minimised),
        MAP,
        f"The stronger the colour, the better: {score_text(min(flat), goal)} to {score_text(max(flat), goal)}. Filled: "
        "kept the promises; hollow: did not; cross: crashed. As far as so few trials can tell, the two together move "
        f"the score by {expm1(pair.interaction):.1%} beyond what each does alone.",
    )


def _table(found: Effects, goal: Goal) -> Table:
    head = (
        Column("knob"),
        Column("best at"),
        Column("there", number=True),
        Column("worst", number=True),
        Column("beyond noise"),
    )
    rows = tuple(
        (
            Cell(one.knob.name),
            Cell(value_text(one.best)),
            Cell(number_text(max(one.mean), goal), goal.told.shown(max(one.mean))),
            Cell(number_text(min(one.mean), goal), goal.told.shown(min(one.mean))),
            Cell("yes" if one.clear else "no"),
        )
        for one in found.knobs
    )
    return Table(f"Expected {axis(goal)}", head, rows)
