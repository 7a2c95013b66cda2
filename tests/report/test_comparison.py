"""A comparison as tables: golden output of made studies, and LaTeX that holds together whatever the labels are."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from paths import REPO
from sloguard import __version__
from sloguard.report.comparison import comparison_sheet, p_text
from sloguard.report.grids import latex_text, to_latex, to_markdown, to_rich
from sloguard.study.compare import Comparison, compare
from sloguard.study.runs import StudyRun, TrialRun
from sloguard.trial import Config

GOLDEN = REPO / "tests" / "golden"
CRASH = TrialRun(False, crashed=True, cost_s=20.0, config=Config({"seqs": 512}))


def study(
    label: str, seed: int, *scores: float, objective: str = "capacity", held_out: float | None = None
) -> StudyRun:
    trials = [
        TrialRun(True, s, cost_s=100.0, config=Config({"seqs": i, "seed": seed}), requests=60)
        for i, s in enumerate(scores)
    ]
    return StudyRun(label, seed, (*trials, CRASH), objective, held_out=held_out, simulated=True)


def made(ours: str = "guided", objective: str = "capacity") -> Comparison:
    sign = -1 if objective == "latency" else 1
    theirs = [(1, (2.0, 4.0, 3.0)), (2, (2.5, 3.0, 4.5)), (3, (4.2, 1.0, 2.0))]
    mine = [(1, (4.0, 5.0, 4.8)), (2, (2.0, 5.1, 5.0)), (3, (4.5, 4.7, 4.9))]
    studies = [study("random", seed, *(sign * s for s in scores), objective=objective) for seed, scores in theirs]
    studies += [
        study(ours, seed, *(sign * s for s in scores), objective=objective, held_out=sign * (scores[-1] - 0.2))
        for seed, scores in mine
    ]
    return compare(studies, notes=["r9 holds no trial and is left out"])


def shown(comparison: Comparison, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(to_rich(comparison_sheet(comparison)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comparison.txt", shown(made())),
        ("comparison.md", to_markdown(comparison_sheet(made()))),
        ("comparison.tex", to_latex(comparison_sheet(made())).replace(f"sloguard {__version__}", "sloguard VERSION")),
    ],
)
def test_output_is_as_it_was_looked_over(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize(("objective", "unit"), [("capacity", "req/s"), ("goodput", "tok/s"), ("latency", "ms")])
def test_scores_have_the_unit_of_their_objective(objective: str, unit: str) -> None:
    measures, tests = comparison_sheet(made(objective=objective)).grids
    assert any(row[0] == f"best, {unit}" for row in measures.rows)
    assert sum(row[2].endswith(f" {unit}") for row in tests.rows) == 1


def test_a_latency_is_shown_in_milliseconds_above_nought() -> None:
    best = next(row for row in comparison_sheet(made(objective="latency")).grids[0].rows if row[0] == "best, ms")
    assert best[1].startswith("1833.33 +- ")
    assert "-1" not in best[1]


def test_figures_of_a_simulation_are_called_so_in_every_form() -> None:
    for text in (shown(made()), to_markdown(comparison_sheet(made())), to_latex(comparison_sheet(made()))):
        assert "Simulated studies by capacity" in text
        assert "figures are a model's" in text


def test_without_a_second_label_there_is_nothing_tested() -> None:
    alone = compare([study("random", seed, 2.0) for seed in (1, 2)])
    assert len(comparison_sheet(alone).grids) == 1
    assert "Mann-Whitney" not in shown(alone)
    check_latex(to_latex(comparison_sheet(alone)))


@pytest.mark.parametrize(
    ("p", "text"), [(0.0001, "< 0.001"), (0.00793, "0.008"), (0.0104, "0.010"), (0.841, "0.84"), (1.0, "1.00")]
)
def test_small_p_have_the_more_digits(p: float, text: str) -> None:
    assert p_text(p) == text


def check_latex(text: str) -> None:
    """Groups and environments close in order, rows have the columns declared, no character is left special."""
    depth = 0
    for token in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
            assert not re.match(r"\s*[\[*]", row), "it would be an option of the row before"
    for special in "%#_^~<>|":
        body = re.sub(r"\A%.*\n", "", text)
        assert not re.search(rf"(?<!\\){re.escape(special)}", body), special


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20))
def test_any_label_makes_latex_that_holds_together(label: str) -> None:
    check_latex(to_latex(comparison_sheet(made(label))))


def test_text_is_shown_in_latex_as_it_is() -> None:
    assert latex_text("7.40 +- 2.51") == r"7.40 $\pm$ 2.51"
    assert latex_text("(-1.30 to +1.91)") == r"($-$1.30 to +1.91)"
    assert latex_text("tba-tpe, prior sim") == "tba-tpe, prior sim"
    assert latex_text("tune --no-race") == "tune -{}-no-race"
    assert latex_text(r"a_b & 50% \x{1} $^~ #") == (
        r"a\_b \& 50\% \textbackslash{}x\{1\} \$\textasciicircum{}\textasciitilde{} \#"
    )


def test_a_label_is_no_markup() -> None:
    assert "│ [red]a" in shown(made("[red]a")).replace(" ", "").replace("│[red]a", "│ [red]a")
    assert r"\*a\|b\*" in to_markdown(comparison_sheet(made("*a|b*")))
