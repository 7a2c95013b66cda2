"""The page of a tuning study: what to deploy first, then how far to trust it."""

from __future__ import annotations

import shlex

from sloguard.page.figures import value_text
from sloguard.page.page import Block, Cell, Code, Column, Page, Table, Text, Tile, Verdict
from sloguard.page.tune_kept import binding, confirmation_section, headroom_section, latency_section, rates_section
from sloguard.page.tune_knobs import knobs_section
from sloguard.page.tune_made import made_section
from sloguard.page.tune_search import crash_section, search_section, trials_section
from sloguard.page.tune_words import counted, name_of, promises, time_text
from sloguard.report.tables import load_text, score_text, simulated_text, verdict, warnings_on
from sloguard.space.flags import to_flags
from sloguard.space.policies import of_policy
from sloguard.study.confirm import RUN_TO_RUN_NOISE
from sloguard.study.record import BEST_NAME, Record
from sloguard.study.results import Results
from sloguard.trial import Config


def tune_page(record: Record, *, live: bool = False) -> Page:
    """Of a study that is over, or is still made: then it is no fault that it has fewer trials than were asked for."""
    sections = (
        search_section(record),
        crash_section(record),
        knobs_section(record),
        headroom_section(record),
        latency_section(record),
        rates_section(record),
        confirmation_section(record),
        trials_section(record),
        made_section(record),
    )
    where = record.header.engine.get("gpu") or record.header.engine.get("device")
    title = f"Tuning {record.spec.model}" + (f" on {where}" if where else "")
    asked = f"Promised: {'; '.join(promises(record.spec))}. Load: {load_text(record.header, record.results)}."
    return Page(title, asked, verdict_of(record, live=live), tuple(one for one in sections if one is not None))


def verdict_of(record: Record, *, live: bool = False) -> Verdict:
    results = record.results
    tone = "good" if results.best else "bad"
    notices = [simulated_text(record.header)] if record.simulated else []
    if len(results.explored) < record.spec.budget and not live:
        tried = f"{len(results.explored)} of {record.spec.budget} configs were tried"
        notices.append(f"{tried}: the study was interrupted, its time was spent, or nothing was left to try.")
    notices += list(warnings_on(results))
    head, told = headline(results), verdict(results).plain
    text = told.removeprefix(f"{head}: ").removeprefix("No config keeps the promise. ")
    return Verdict(
        tone, head, text[:1].upper() + text[1:], tuple(_tiles(record)), tuple(notices), tuple(_apply(record))
    )


def headline(results: Results) -> str:
    best, default = results.best, results.default
    if best is None:
        return "No config keeps the promises" if results.closest else "No config served"
    if default is not None and len(results.explored) == 1:
        return "One config was measured"
    if default is best:
        return "Keep the default"
    if results.gain is not None and results.gain_interval is None and results.gain < RUN_TO_RUN_NOISE:
        return f"Trial {best.number} is best, by no more than chance"
    return f"Deploy trial {best.number}"


def _tiles(record: Record) -> list[Tile]:
    results, goal = record.results, record.results.goal
    tiles: list[Tile] = []
    if results.best is not None:
        tiles.append(Tile(f"Best: {name_of(results.best)}", score_text(results.score(results.best), goal)))
    elif (bar := binding(record)) is not None and results.closest is not None:
        tiles.append(Tile("Binding", bar.promise, f"{bar.text}, {name_of(results.closest)}"))
    if results.default is not None and results.best not in (None, results.default):
        kept = "keeps the promises" if results.default.feasible else "does not keep the promises"
        tiles.append(Tile("Default", score_text(results.score(results.default), goal), kept))
    if results.gain is not None and results.default is not results.best:
        interval = results.gain_interval
        detail = f"95 % interval {interval[0]:+.1%} to {interval[1]:+.1%}" if interval else "one measurement each"
        tiles.append(Tile("Gain over the default", f"{results.gain:+.1%}", detail))
    crashes = sum(results.crashes.values())
    lost = f"{crashes} crashed, {time_text(results.wasted_s)} lost"
    spent = lost if crashes else "none crashed"
    tiles.append(Tile("Tried", counted(len(results.explored), "config"), spent))
    return tiles


def _apply(record: Record) -> list[Block]:
    """How the best is served: the command, its file, and what of it the default does not have."""
    best = record.results.best
    if best is None or record.best_yaml is None:
        return []
    where = shlex.quote(str(record.directory))
    command = f"vllm serve --config {shlex.quote(str(record.directory / BEST_NAME))}"
    if not record.saved:  # a study that goes on, or was interrupted, has an older file or none
        command = f"sloguard export {where} -o {BEST_NAME}\nvllm serve --config {BEST_NAME}"
    blocks: list[Block] = [Code("Apply it", command)]
    if not best.overrides:
        blocks.append(Text("The engine's own defaults are best: nothing is set beside what the study fixed."))
    elif changed := changes(record.results):
        blocks.append(_changes_table(record.results, changed))
    return [*blocks, Code(BEST_NAME, record.best_yaml.rstrip("\n"))]


def _changes_table(results: Results, changed: Config) -> Table:
    head = (Column("knob"), Column("default"), Column("best"), Column("flags"))
    base = results.default.config if results.default is not None else Config()
    rows = tuple(
        (
            Cell(name),
            Cell(value_text(base[name]) if name in base else "-"),
            Cell(value_text(value)),
            Cell(shlex.join(to_flags(of_policy(Config({name: value}))[0])), code=True),
        )
        for name, value in changed.items()
    )
    return Table("What differs from the default", head, rows)


def changes(results: Results) -> Config:
    """The overrides of the best whose values are not the default's own."""
    if results.best is None:
        return Config()
    base = results.default.config if results.default is not None else Config()
    values = results.best.overrides
    return Config({name: value for name, value in values.items() if name not in base or base[name] != value})
