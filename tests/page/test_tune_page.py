"""Each part of a study's page says what the log holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sloguard.page.page import Beside, Block, Case, Code, Figure, Page, Section, Table, Tile, render
from sloguard.page.tune import headline, tune_page, verdict_of
from sloguard.page.tune_kept import confirmation_section, headroom_section, latency_section, rates_section
from sloguard.page.tune_knobs import knobs_section
from sloguard.page.tune_search import crash_section, search_section, trials_section
from sloguard.trial import Config, Crashed
from studies import at_a_rate, kept, nothing_kept, record, trial, whole

SECTIONS = ["search", "crashes", "knobs", "headroom", "latency", "rates", "confirmation", "trials", "made"]


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    blocks = [inner for b in section.blocks for inner in (b.blocks if isinstance(b, Beside) else [b])]
    return [block for block in blocks if isinstance(block, Table)]


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def named(page: Page, name: str) -> Figure:
    return next(figure for figure in page.figures if figure.name == name)


def codes(blocks: tuple[Block, ...]) -> dict[str, str]:
    return {block.label: block.text for block in blocks if isinstance(block, Code)}


def test_the_parts_stand_in_their_order_and_each_figure_has_a_name_of_its_own() -> None:
    page = tune_page(record(whole()))
    assert [section.name for section in page.sections] == SECTIONS
    names = [figure.name for figure in page.figures]
    assert len(set(names)) == len(names)
    assert all(figure.label for figure in page.figures)
    promised = "Promised: TTFT ≤ 400 ms and TPOT ≤ 25 ms for 95 % of requests."
    assert page.subtitle == f"{promised} Load: interactive, on average 100 tokens in and 10 out."


def test_the_verdict_says_what_to_deploy_its_gain_and_how() -> None:
    shown = verdict_of(record(whole()))
    assert (shown.tone, shown.headline) == ("good", "Deploy trial 5")
    tiles = {tile.name: (tile.value, tile.detail) for tile in shown.tiles}
    assert tiles["Best: trial 5"][0] == "5.00 req/s"
    assert tiles["Default"] == ("4.00 req/s", "keeps the promises")
    assert tiles["Gain over the default"][0] == "+25.0%"
    assert tiles["Gain over the default"][1].startswith("95 % interval +")
    assert tiles["Tried"] == ("7 configs", "2 crashed, 45 s lost")
    assert codes(shown.blocks)["Apply it"] == "vllm serve --config study/best.yaml"
    assert codes(shown.blocks)["best.yaml"] == "model: M\nmax-num-seqs: 64"
    (changed,) = [block for block in shown.blocks if isinstance(block, Table)]
    assert texts(changed) == [["mem", "0.92", "0.91", "--mem 0.91"], ["seqs", "256", "64", "--seqs 64"]]
    assert shown.notices[0].startswith("Simulated engine")


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([trial(1, kept(4.0), seqs=1)], "One config was measured"),
        ([trial(1, kept(4.0), seqs=1), trial(2, kept(3.0), seqs=2)], "Keep the default"),
        ([trial(1, kept(4.0), seqs=1), trial(2, kept(4.1), seqs=2)], "Trial 2 is best, by no more than chance"),
        ([trial(1, kept(4.0), seqs=1), trial(2, kept(6.0), seqs=2)], "Deploy trial 2"),
        ([trial(1, nothing_kept(), seqs=1), trial(2, kept(4.1), seqs=2)], "Deploy trial 2"),
        ([trial(1, nothing_kept(), seqs=1), trial(2, nothing_kept(), seqs=2)], "No config keeps the promises"),
        ([t for t in whole() if isinstance(t.outcome, Crashed)], "No config served"),
    ],
)
def test_headlines(trials: list, expected: str) -> None:
    made = record(trials)
    assert headline(made.results) == expected
    assert tune_page(made).verdict.headline == expected


def test_a_default_that_is_kept_is_told_beside_the_best_other() -> None:
    tried = [trial(1, kept(4.0), seqs=1), trial(2, kept(4.1), seqs=2), trial(3, kept(3.0), seqs=3)]
    again = [(tried[0], 4.1), (tried[1], 4.0), (tried[0], 3.9), (tried[1], 4.0)]
    page = tune_page(record([*tried, *(trial(4 + n, kept(r), recheck=t.number) for n, (t, r) in enumerate(again))]))
    assert page.verdict.headline == "Keep the default"
    assert "The best other, trial 2, differs by +0.0% (95 % interval" in page.verdict.text


def test_where_nothing_is_feasible_the_binding_promise_is_named_and_nothing_is_to_be_applied() -> None:
    shown = verdict_of(record([trial(1, nothing_kept(), seqs=1), trial(2, nothing_kept(), seqs=2)]))
    assert shown.tone == "bad"
    assert shown.tiles[0] == Tile("Binding", "p95 TTFT", "900 of 400 ms, default (trial 1)")
    assert not shown.blocks


def test_a_study_that_ended_early_says_so() -> None:
    made = record(whole()[:3])
    assert any("3 of 7 configs were tried" in notice for notice in verdict_of(made).notices)
    assert not any("were tried" in notice for notice in verdict_of(record(whole())).notices)


def test_what_the_terminal_warns_of_the_page_warns_of() -> None:
    noted = replace(kept(4.0), notes=("lengths not forced",), effective={"seqs": 3})
    notices = verdict_of(record([trial(1, kept(4.0), seqs=1), trial(2, noted, seqs=2)])).notices
    assert "lengths not forced (1 of 2 trials)" in notices
    assert any(notice.startswith("seqs: the engine ran another value") for notice in notices)


def test_crashes_are_told_by_cause_with_line_and_remedy() -> None:
    section = crash_section(record(whole()))
    (case,) = [block for block in section.blocks if isinstance(block, Case)]
    assert (case.title, case.detail) == ("oom/gpu_memory", "2 trials (2, 6), 45 s lost")
    assert (case.quote, case.remedy) == ("CUDA out of memory", "Use less: CUDA out of memory")
    assert texts(tables(section)[0]) == [["no room: CUDA out of memory", "1"]]
    assert section.lead == "2 of 13 trials crashed and took 45 s. 1 more config would not have run: refused."


def test_the_best_so_far_is_told_in_words_too() -> None:
    section = search_section(record(whole()))
    assert "The best of the search was 5.00 req/s" in section.lead
    assert section.lead.endswith("before it was measured again.")
    assert "measured again" not in search_section(record(whole()[:7])).lead
    nothing = search_section(record([trial(1, nothing_kept(), seqs=1)]))
    assert nothing.blocks == ()
    assert "No trial kept the promises." in nothing.lead


def test_headroom_is_measured_by_limit_for_best_and_default() -> None:
    (table,) = tables(headroom_section(record(whole())))
    assert texts(table) == [
        ["broken promises", "best", "3.0 of 5 %", "60%"],
        ["p95 TTFT", "best", "100 of 400 ms", "25%"],
        ["p95 TPOT", "best", "20.0 of 25 ms", "80%"],
        ["broken promises", "default", "3.0 of 5 %", "60%"],
        ["p95 TTFT", "default", "100 of 400 ms", "25%"],
        ["p95 TPOT", "default", "20.0 of 25 ms", "80%"],
    ]


def test_limits_on_the_population_have_headroom_at_their_own_percentile() -> None:
    trials = [trial(1, at_a_rate(0.4), seqs=1), trial(2, at_a_rate(0.6), seqs=2)]
    made = record(trials, objective="goodput", slo_s={}, slo_p99_s={"ttft": 0.5})
    section = headroom_section(made)
    assert texts(tables(section)[0]) == [["p99 TTFT", "default", "400 of 500 ms", "80%"]]
    assert rates_section(made) is None
    assert confirmation_section(made) is None


def test_latencies_are_the_percentiles_of_the_log() -> None:
    section = latency_section(record(whole()))
    (table,) = tables(section)
    assert texts(table)[:2] == [["TTFT", name, *["100.0"] * 4] for name in ("best", "default")]
    assert {row[0] for row in texts(table)} == {"TTFT", "TPOT", "ITL", "E2EL"}


def test_rates_are_told_in_the_order_of_asking_with_wilson_intervals() -> None:
    section = rates_section(record(whole()))
    assert section is not None
    assert "lies between 5.00 and 5.20 requests/s" in section.lead
    assert texts(tables(section)[0]) == [
        ["1", "5.00", "yes", "97 of 100", "97.0% (91.5% to 99.0%)"],
        ["2", "5.20", "no", "60 of 70", "85.7% (75.7% to 92.1%)"],
    ]


def test_each_fresh_start_is_told_and_the_winner_stands_out() -> None:
    (table,) = tables(confirmation_section(record(whole())))
    rows = texts(table)
    assert rows[0] == ["trial 5", "5.00", "5.10", "4.90", "5.00"]
    assert rows[-1] == ["default (trial 1)", "4.00", "3.90", "4.10", "4.00"]
    assert table.strong == {0}


def test_a_fresh_start_that_failed_is_called_so() -> None:
    trials = [replace(t, outcome=nothing_kept()) if t.number == 9 else t for t in whole()]
    (table,) = tables(confirmation_section(record(trials)))
    assert ["trial 7", "4.80", "failed", "4.80", "failed"] in texts(table)


def test_every_trial_is_in_the_table_with_the_knobs_that_vary() -> None:
    (table,) = tables(trials_section(record(whole())))
    assert [column.name for column in table.columns][:4] == ["trial", "status", "capacity, req/s", "time, s"]
    assert [column.name for column in table.columns][4:-1] == ["mem", "seqs"]
    assert len(table.rows) == 13
    assert table.choices == ["crashed", "dropped", "feasible"]
    assert [cell.text for cell in table.rows[1]] == ["2", "crashed", "-", "20", "0.96", "1024", "oom/gpu_memory"]
    assert table.rows[12][-1].text == "trial 1 again"


def test_knobs_are_told_by_strength_with_the_map_of_the_first_two() -> None:
    made = record(whole(choice="priority"))
    section = knobs_section(made)
    (table,) = tables(section)
    assert {row[0] for row in texts(table)} == {"mem", "seqs", "policy"}
    assert "Indications from" in section.lead
    page = tune_page(made)
    assert named(page, "knob-pair").label.startswith("Map of the expected score")
    few = knobs_section(record(whole()[:2]))
    assert few.blocks == ()


def test_a_study_of_latency_reads_in_milliseconds() -> None:
    trials = [trial(n, at_a_rate(0.1 * n, 2.0), seqs=2**n, fast=n % 2 == 0) for n in range(1, 8)]
    made = record(trials, objective="latency", slo_s={}, slo_p99_s={"ttft": 2.0})
    page = tune_page(made)
    assert page.verdict.headline == "Keep the default"
    (table,) = tables(trials_section(made))
    assert table.columns[2].name == "mean latency, ms"
    assert [row[2].text for row in table.rows][:2] == ["280.00", "380.00"]
    assert {"knob-seqs", "knob-fast", "knob-pair"} <= {figure.name for figure in page.figures}
    assert "<svg" in render(page)


def test_a_server_of_somebody_else_has_no_knobs_and_nothing_to_apply() -> None:
    only = replace(trial(1, at_a_rate(0.1)), config=Config(), proposed=Config())
    asked = record(
        [only], engine="endpoint", gpu=None, objective="goodput", slo_s={}, slo_p99_s={"ttft": 0.5}, budget=1
    )
    told = replace(asked.header, engine={"engine": "endpoint", "base_url": "http://h", "model": "m"})
    made = replace(asked, best_yaml=None, header=told)
    page = tune_page(made)
    assert not page.verdict.blocks
    assert "Simulated" not in " ".join(page.verdict.notices)
    assert page.title == "Tuning meta-llama/Llama-3.1-8B"
