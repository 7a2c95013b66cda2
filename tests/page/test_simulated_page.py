"""The pages of simulations say what the rows hold that `simulate` and `capacity` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulated_files import run, save
from sloguard.errors import SpecError
from sloguard.page.page import Page, Table, render
from sloguard.page.simulated import simulated_page
from sloguard.study.sim_rows import simulated_rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save(tmp_path_factory.mktemp("simulated"))


def rows_of(path: Path) -> list[Any]:
    rows = simulated_rows(path)
    assert rows is not None
    return list(rows)


def table(page: Page, caption: str) -> Table:
    blocks = [block for section in page.sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Table) and block.caption == caption)


def cells(page: Page, caption: str, column: str) -> list[float | None]:
    found = table(page, caption)
    at = [one.name for one in found.columns].index(column)
    return [row[at].sort for row in found.rows]


@pytest.mark.parametrize("name", ["simulate", "capacity"])
def test_the_command_writes_the_page_that_report_makes_of_its_rows(saved: dict[str, Path], name: str) -> None:
    path = saved[name]
    written = path.with_suffix(".html").read_text()
    assert render(simulated_page(rows_of(path))) == written
    run("report", str(path), "-o", str(path.with_name("again.html")))
    assert path.with_name("again.html").read_text() == written


def test_a_capacity_page_names_who_serves_the_most(saved: dict[str, Path]) -> None:
    rows = rows_of(saved["capacity"])
    page = simulated_page(rows)
    rates = {row["policy"]: row["capacity_per_gpu"] for row in rows}
    best = max(rates, key=lambda policy: rates[policy])
    assert page.verdict.headline == f"{best} serves the most"
    assert cells(page, "Capacity", "req/s a GPU") == list(rates.values())
    assert [f.name for f in page.figures] == ["capacity-coder", "feasible-coder-0", "feasible-coder-1"]


def test_where_nothing_is_served_the_page_says_so(saved: dict[str, Path]) -> None:
    rows = [{**row, "capacity_per_gpu": 0.0, "bracket": [0.0, 0.1]} for row in rows_of(saved["capacity"])]
    page = simulated_page(rows)
    assert (page.verdict.tone, page.verdict.headline) == ("bad", "Nothing serves enough")
    assert render(page)


def test_a_page_of_policies_names_who_keeps_the_most_and_ties(saved: dict[str, Path]) -> None:
    rows = rows_of(saved["simulate"])
    page = simulated_page(rows)
    best = max(rows, key=lambda row: row["attainment"])
    assert page.verdict.headline.endswith(f"{best['attainment']:.1%} of the promises")
    assert [tile.value for tile in page.verdict.tiles] == [f"{row['attainment']:.1%}" for row in rows]
    tied = simulated_page([{**row, "attainment": 0.5} for row in rows])
    assert tied.verdict.headline == "vllm and sloguard keep 50.0% of the promises"


def test_a_file_that_is_none_or_lacks_something_is_told(saved: dict[str, Path], tmp_path: Path) -> None:
    assert simulated_rows(tmp_path / "none.json") is None
    path = tmp_path / "rows.json"
    path.write_text("{}")
    assert simulated_rows(path) is None
    told = json.loads(saved["simulate"].read_text())
    path.write_text(json.dumps({**told, "rows": []}))
    with pytest.raises(SpecError, match="has no rows"):
        simulated_rows(path)
    del told["rows"][0]["classes"]
    path.write_text(json.dumps(told))
    with pytest.raises(SpecError, match="without 'classes'"):
        simulated_rows(path)
