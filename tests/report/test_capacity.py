"""Tables and figures of capacities."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from sloguard.errors import SpecError
from sloguard.report.capacity import bracket_text, capacity_report, geometric_mean, series_of
from sloguard.report.capacity_figure import capacity_figure, check_figure


def row(scenario: str, policy: str, rate: float, router: str = "round-robin") -> dict[str, Any]:
    return {
        "scenario": scenario,
        "policy": policy,
        "router": router,
        "capacity_per_gpu": rate,
        "bracket": [rate, rate * 1.02],
        "model": "m",
        "gpu": "g",
        "engines": 2,
        "tensor_parallel": 1,
        "target": 0.9,
        "seeds": 3,
        "step_times": f"measured of {policy[0]}",
        "requests": 900,
    }


ROWS = [row(s, p, 1.0 + i + 4 * j) for j, s in enumerate(("chat", "code")) for i, p in enumerate(("a", "b:k=1", "c"))]


def text(rows: list[dict[str, Any]]) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(capacity_report(rows, ["a note"]))
    return console.file.getvalue()  # type: ignore[attr-defined]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    """Each that is drawn, a line each: matplotlib notes them in comments."""
    svg = capacity_figure(rows, ".svg").decode()
    return [
        html.unescape(line.strip()) for note in re.findall("<!--(.*?)-->", svg, re.DOTALL) for line in note.split("\n")
    ]


def opened(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "bracket": [one["capacity_per_gpu"], None]}


def test_a_table_has_a_line_for_each_scenario_and_the_geometric_mean():
    shown = text(ROWS)
    lines = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    assert [line[1].strip() for line in lines] == ["chat", "code", "geometric mean"]
    assert lines[0][2].split()[0] == "1.00"
    assert lines[2][2].strip() == f"{(1.0 * 5.0) ** 0.5:.2f}"
    assert "2 engines" in shown
    assert "a note" in shown


def test_routers_are_named_where_there_are_several():
    assert list(series_of([row("chat", "a", 1.0), row("chat", "a", 2.0, "headroom")])) == [
        "a / round-robin",
        "a / headroom",
    ]


def test_an_open_bracket_says_so():
    assert bracket_text({"bracket": [4.2, 4.3]}) == "[4.20, 4.30]"
    assert bracket_text({"bracket": [4.2, None]}) == ">= 4.20"
    assert bracket_text({"bracket": [0.0, 4.3]}) == "< 4.3"
    assert "--rates" not in text(ROWS)
    assert "--rates" in text([{**ROWS[0], "bracket": [1.0, None]}])


def test_what_an_open_bracket_goes_into_is_a_lower_bound():
    rows = [opened(row("chat", "a", 6.0)), row("code", "a", 1.5), row("chat", "b", 2.0), row("code", "b", 8.0)]
    means = text(rows).split("geometric mean")[1].splitlines()[0]
    assert [cell.strip() for cell in means.split("│")[1:3]] == [">= 3.00", "4.00"]
    drawn = texts(rows)
    assert [drawn.count(label) for label in (">=6.00", ">=3.00", "1.50", "2.00", "4.00")] == [1] * 5


def test_a_mean_that_is_not_defined_has_no_bar_and_no_figure():
    drawn = texts([row("chat", "a", 0.0), row("code", "a", 1.5), row("chat", "b", 2.0), row("code", "b", 8.0)])
    assert drawn.count("0.00") == 1, "the rate itself is one"
    assert drawn.count("4.00") == 1


def test_a_figure_says_that_engines_are_simulated_and_where_step_times_come_from():
    said = " ".join(texts(ROWS))
    assert "Simulated engines; 3 seeds; step times: measured of a; measured of b; measured of c" in said
    assert "1 seed;" in " ".join(texts([{**ROWS[0], "seeds": 1}]))
    assert "1 seed." in text([{**ROWS[0], "seeds": 1}])


def test_there_is_no_geometric_mean_with_a_rate_of_zero():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([2.0, 0.0]) is None
    assert "-" in text([row("chat", "a", 0.0), row("code", "a", 1.0)])


def test_every_name_and_rate_is_in_the_figure():
    tree = ElementTree.fromstring(capacity_figure(ROWS, ".svg"))
    comments = capacity_figure(ROWS, ".svg").decode()
    assert tree.tag.endswith("svg")
    for words in ("chat", "code", "geometric mean", "a", "b:k=1", "c", "1.00", "7.00", "Requests/s a GPU"):
        assert f"<!-- {words}" in comments, f"matplotlib notes each text it draws, but not {words}"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_rows_give_equal_bytes(suffix):
    assert capacity_figure(ROWS, suffix) == capacity_figure(ROWS, suffix)


@pytest.mark.parametrize("policies", [1, 3, 14, 40])
def test_nothing_is_cut_off(policies):
    """The outermost pixels are background."""
    from matplotlib.image import imread

    rows = [row(s, f"policy number {p}", 1.0 + p) for s in ("chat", "code", "mixed") for p in range(policies)]
    pixels = imread(io.BytesIO(capacity_figure(rows, ".png")))[..., :3]
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.all(edge == 1.0)


def test_a_figure_of_nothing_is_drawn():
    assert capacity_figure([row("chat", "a", 0.0)], ".png").startswith(b"\x89PNG")


def test_another_format_is_refused():
    check_figure("--figure", Path("x.PNG"))
    with pytest.raises(SpecError, match=r"\.png or \.svg"):
        check_figure("--figure", Path("x.pdf"))
