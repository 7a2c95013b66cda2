"""Load tests of four tools side by side."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from paths import REPO
from sloguard.load.results import read_results
from sloguard.load.run_figures import RunFigures, held_against
from sloguard.report.grids import to_rich
from sloguard.report.runs import runs_notes, runs_rows, runs_sheet
from sloguard.slo import StageSLO

GOLDEN = REPO / "tests" / "golden" / "results"
NAMES = ("sloguard_bench.json", "vllm_0.32.json", "guidellm_0.8.json.gz", "aiperf_0.13/profile_export_aiperf.json")
RUNS = [run for name in NAMES for run in read_results(GOLDEN / name)]


def shown(runs: list[RunFigures], width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(to_rich(runs_sheet(runs)))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def line(text: str, name: str) -> list[str]:
    """The cells of one line of the table."""
    (found,) = [one for one in text.splitlines() if one.startswith(f"│ {name} ")]
    return [cell.strip() for cell in found.strip("│").split("│")][1:]


def test_a_column_for_each_run():
    text = shown(RUNS)
    assert line(text, "completed") == ["24 of 24"] * 5
    assert line(text, "tool") == ["sloguard bench 0.1.0", "vllm bench serve", *["guidellm 0.8.1"] * 2, "aiperf 0.13.0"]
    assert line(text, "latency counts from") == ["due", "sent", "due", "due", "due"]
    ttft = RUNS[1].ttft_s
    assert ttft is not None
    assert ttft.p50 is not None
    assert line(text, "TTFT p50 / p99, ms")[1].startswith(f"{ttft.p50 * 1000:.1f} / ")
    assert line(text, "ITL p50 / p99, ms")[2:4] == ["-", "-"]  # not in GuideLLM's files
    assert line(text, "promised") == [
        "TTFT 50 ms, TPOT 20 ms",
        "by class, or not in the file",
        "-",
        "-",
        "TTFT 50 ms, TPOT 20 ms",
    ]
    assert line(text, "attainment") == ["100.0%", "100.0%", "-", "-", "100.0%"]


def test_a_line_that_nobody_can_fill_is_left_out():
    text = shown([RUNS[2]])
    assert "ITL p50" not in text
    assert "attainment" not in text
    assert "attainment" in shown([held_against(RUNS[2], StageSLO(ttft_s=1.0))])


def test_each_note_stands_once_with_whom_it_holds_for():
    notes = runs_notes(RUNS)
    assert len(notes) == len({note.split(": ", 1)[1] for note in notes})
    assert any(note.startswith("guidellm: gaps between chunks") for note in notes)
    assert any(note.startswith("vllm bench serve: latencies count from when a request was sent") for note in notes)
    both = [RUNS[1], *read_results(GOLDEN / "vllm_0.32_aggregate.json")]
    assert any(note.startswith("vllm_0.32_aggregate.json: no data per request") for note in runs_notes(both))
    assert "Note: guidellm: gaps" in shown(RUNS)


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (block,) = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "interop.md").read_text(), re.DOTALL)
    for name, file in (("own.json", NAMES[0]), ("vllm.json", NAMES[1])):
        shutil.copy(GOLDEN / file, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/interop.md", "exec"), {})
    assert "attainment" in capsys.readouterr().out


def test_rows_are_flat_and_fit_for_json():
    rows = runs_rows(RUNS)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len({tuple(row) for row in rows}) == 1  # the same names in each, for a table
    ours, vllm = rows[0], rows[1]
    assert (ours["burstiness"], ours["request_rate"], ours["slo_ttft_s"], ours["attainment"]) == ("inf", 4.0, 0.05, 1.0)
    assert RUNS[0].ttft_s is not None
    assert ours["ttft_p99_s"] == RUNS[0].ttft_s.p99
    assert (vllm["queue_delay_p99_s"], vllm["slo_ttft_s"], vllm["failed"]) == (None, None, 0)
    scalars = (str, int, float, type(None))
    assert all(isinstance(value, scalars) for row in rows for name, value in row.items() if name != "notes")
