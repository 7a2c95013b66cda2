"""The page of load tests says what their files hold, whichever tool wrote them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from result_files import AIPERF, GOLDEN, GUIDELLM, OWN, PROMISED, VLLM, one
from sloguard.load.results import read_results
from sloguard.load.run_figures import held_against
from sloguard.page.load import MOST_LINES, load_page
from sloguard.page.page import Page, Table, render
from sloguard.slo import StageSLO

FILES = sorted(path for path in GOLDEN.rglob("*") if path.suffix in (".json", ".gz", ".jsonl"))


def table(page: Page, section: str, caption: str) -> Table:
    blocks = [b for s in page.sections if s.name == section for b in s.blocks]
    inner = [block for b in blocks for block in getattr(b, "blocks", (b,))]
    return next(block for block in inner if isinstance(block, Table) and block.caption == caption)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(GOLDEN).as_posix())
def test_every_file_has_a_page_and_the_same_one_twice(path: Path) -> None:
    runs = [held_against(run, PROMISED) for run in read_results(path)]
    assert render(load_page(runs)) == render(load_page(runs))


def test_the_verdict_is_the_share_of_requests_as_promised() -> None:
    run = held_against(one(OWN), StageSLO(ttft_s=0.014, tpot_s=0.0066))
    page = load_page([run])
    assert run.attainment is not None
    assert page.verdict.headline == f"{run.attainment:.1%} of requests as promised"
    assert page.verdict.tone == "bad", "fewer than nine in ten"
    assert load_page([held_against(one(OWN), StageSLO(ttft_s=9.0))]).verdict.tone == "good"


def test_what_broke_is_counted_limit_by_limit() -> None:
    """By the requests themselves."""
    slo = StageSLO(ttft_s=0.014, tpot_s=0.0066)
    run = held_against(one(OWN), slo)
    requests = run.requests
    assert requests is not None
    late, slow = requests.ttft_s > 0.014, requests.tpot_s > 0.0066
    rows = table(load_page([run]), "promised-1", "Completed requests").rows
    told = {row[0].text: row[1].sort for row in rows}
    assert told == {
        "kept both": float(np.sum(~late & ~slow)),
        "first token too late": float(np.sum(late)),
        "pace too slow": float(np.sum(slow)),
    }
    assert 0 < np.sum(late) < len(late)


def test_runs_stand_side_by_side_each_under_a_name_of_its_own() -> None:
    runs = [run for path in (OWN, VLLM, GUIDELLM, AIPERF) for run in read_results(path)]
    page = load_page(runs)
    names = [tile.name for tile in page.verdict.tiles]
    assert len(set(names)) == len(runs) == 5
    assert [column.name for column in table(page, "runs", "Load tests").columns][1:] == [
        "sloguard_bench.json",
        "vllm_0.32.json",
        *["guidellm_0.8.json.gz"] * 2,
        "profile_export_aiperf.json",
    ]
    figures = [figure.name for figure in page.figures]
    assert len(set(figures)) == len(figures)


def test_a_run_in_which_nothing_completed_says_so() -> None:
    page = load_page([replace(one(OWN), completed=0, failed=24, attainment=0.0, requests=None)])
    assert (page.verdict.tone, page.verdict.headline) == ("bad", "No request completed")


def test_a_long_run_is_drawn_in_part_and_says_so() -> None:
    run = one(OWN)
    requests = run.requests
    assert requests is not None
    times = 2 * MOST_LINES // len(requests.ends) + 1
    arrays = {
        name: np.tile(getattr(requests, name), times)
        for name in ("due_s", "sent_s", "ended_s", "ttft_s", "e2el_s", "input_tokens", "output_tokens")
    }
    many = replace(requests, ends=requests.ends * times, itl_s=None, **arrays)
    page = load_page([replace(run, requests=many)])
    lead = next(section.lead for section in page.sections if section.name.startswith("time-"))
    step = -(-len(many.ends) // MOST_LINES)
    assert lead.endswith(f"One request in {step} is drawn.")
    assert len(render(page)) < 400_000


def test_what_the_end_of_a_run_cut_off_is_not_shown_as_broken() -> None:
    (run,) = read_results(GOLDEN / "guidellm_0.8_cut.json")
    assert run.unfinished
    page = load_page([held_against(run, StageSLO(ttft_s=1000.0))])
    (label,) = [figure.label for figure in page.figures if figure.name == "timeline-1"]
    assert "; 0 broke" in label


def test_what_was_promised_in_another_way_is_not_judged_request_by_request() -> None:
    """By classes of a file's own, or by another rule of pace: the page would contradict the file's share."""
    run = held_against(one(OWN), StageSLO(ttft_s=1.0, tpot_s=1.0))
    for other in (replace(run, slo=None), replace(run, tpot_rule="max_gap")):
        page = load_page([other])
        (label,) = [figure.label for figure in page.figures if figure.name == "timeline-1"]
        assert label.endswith("; 0 failed.")
        assert not any(section.name == "promised-1" for section in page.sections)
    assert any(section.name == "promised-1" for section in load_page([run]).sections)


def test_how_a_run_ended_is_what_the_file_tells() -> None:
    run = replace(one(OWN), requests=None)
    told = {
        (24, 0, 0): "Every request completed.",
        (20, 4, 0): "4 of 24 requests failed.",
        (0, 0, 5): "5 of 5 were cut off by the end of the run.",
        (20, None, 0): "20 requests completed; how many failed is not in the file.",
    }
    for (completed, failed, unfinished), expected in told.items():
        page = load_page([replace(run, completed=completed, failed=failed, unfinished=unfinished)])
        assert page.verdict.text == expected


def test_what_is_drawn_of_many_runs_is_said() -> None:
    runs = [replace(one(OWN), file=f"r{at}.json") for at in range(6)]
    ttft = next(figure for figure in load_page(runs).figures if figure.name == "latency-ttft")
    assert ttft.caption == "Drawn: r0.json, r1.json, r2.json, r3.json. The table has 2 more."
    bare = [replace(run, requests=None) for run in runs[:2]]
    ttft = next(figure for figure in load_page(bare).figures if figure.name == "latency-ttft")
    assert ttft.caption == "Drawn: r0.json. The table has 1 more."
    assert "r1.json" not in ttft.label


def test_what_was_emulated_is_said_before_any_figure() -> None:
    told = "the server emulates H100: figures are a model's, none was measured on a GPU"
    page = load_page([replace(one(OWN), notes=("another", told)), one(OWN)])
    assert told in page.verdict.notices
    assert "another" not in page.verdict.notices


def test_files_with_like_names_have_figures_of_their_own() -> None:
    runs = [replace(one(OWN), file=name) for name in ("run_1.json", "run-1.json")]
    names = [figure.name for figure in load_page([held_against(run, PROMISED) for run in runs]).figures]
    assert len(set(names)) == len(names)


def test_names_of_files_are_text() -> None:
    page = load_page([replace(one(OWN), file="<script>alert(1)</script>.json"), one(OWN)])
    assert "<script>alert" not in render(page)
