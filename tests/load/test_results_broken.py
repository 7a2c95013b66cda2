"""What can't be read is said in one line that names the file; nothing ends in a traceback."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from result_files import GOLDEN, PROMISED, written
from sloguard.errors import SpecError
from sloguard.load.results import read_results
from sloguard.load.run_figures import held_against
from sloguard.report.grids import to_rich
from sloguard.report.runs import runs_rows, runs_sheet
from sloguard.slo import StageSLO

ALL = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "README.md")
JUNK = (None, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 10**400, "x", "", [], {}, [None], [[]], True, [1e308])


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as raised:
        read_results(path, "--compare")
    text = str(raised.value)
    assert "\n" not in text
    assert str(path) in text
    assert text.startswith("--compare = ")
    return text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "of no known tool"),
        ([1], "no JSON object"),
        ({"model_id": "m", "completed": 3, "duration": 1.0}, "total_input_tokens is missing"),
        ({"metadata": {}, "benchmarks": []}, "version None"),
        ({"metadata": {"version": 3}, "benchmarks": [{}]}, "version 3; 1 and 2 are read"),
        ({"metadata": {"version": 2}, "benchmarks": []}, "benchmarks = "),
        ({"schema_version": "2.0", "input_config": {}}, "schema_version '2.0'"),
        ({"schema": 9, "settings": {}, "summary": {}, "requests": []}, "schema 9"),
    ],
)
def test_other_files_and_other_versions(tmp_path: Path, data: Any, expected: str):
    assert expected in refusal(written(tmp_path / "a.json", data))


def test_files_that_are_none(tmp_path: Path):
    assert "No such file" in refusal(tmp_path / "absent.json")
    assert "can't be read" in refusal(tmp_path)
    for content in (
        b"",
        b"\xff\xfe\x00",
        b"\x1f\x8bbroken",
        gzip.compress(b"{}")[:-4],
        b"[" * 100_000,
        b'{"a": 1',
        b"1",
    ):
        (tmp_path / "a.json").write_bytes(content)
        refusal(tmp_path / "a.json")


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_truncated_file_is_refused(tmp_path: Path, path: Path):
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    for share in (0.1, 0.5, 0.99):
        (tmp_path / path.name).write_bytes(text[: int(len(text) * share)])
        assert "no JSON" in refusal(tmp_path / path.name)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed; of lists the first two."""
    found = [at] if at else []
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return found + [place for key, child in inner for place in places(child, (*at, key))]


LINES = {
    path: [json.loads(line) for line in (gzip.decompress(r) if path.suffix == ".gz" else r).splitlines()]
    for path in ALL
    for r in [path.read_bytes()]
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_field_missing_or_of_a_wrong_type_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data):
    path = data.draw(st.sampled_from(ALL))
    lines = json.loads(json.dumps(LINES[path]))
    target = lines[0]
    *way, last = data.draw(st.sampled_from(places(target)))
    for key in way:
        target = target[key]
    if data.draw(st.booleans()):
        del target[last]
    else:
        target[last] = data.draw(st.sampled_from(JUNK))
    file = tmp_path_factory.getbasetemp() / "changed.json"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    try:
        runs = read_results(file)
    except SpecError:
        refusal(file)
        return
    assert json.dumps(runs_rows(runs), allow_nan=False)
    Console(width=120, file=io.StringIO()).print(to_rich(runs_sheet(runs)))
    for run in runs:
        assert run.label is not None
        for slo in (PROMISED, StageSLO(e2el_s=1.0)):
            held = held_against(run, slo)
            assert held.attainment is None or 0 <= held.attainment <= 1
