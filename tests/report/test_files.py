from __future__ import annotations

import os
from pathlib import Path

import pytest

from sloguard.errors import SpecError
from sloguard.report.files import check_writable, write_text_atomic


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "a.json"
    write_text_atomic(path, "old")
    write_text_atomic(path, "né\n")
    assert path.read_text(encoding="utf-8") == "né\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_can_not_be_encoded_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/a.json", "."])
def test_a_place_that_can_not_be_written_is_named(tmp_path: Path, name: str):
    with pytest.raises(SpecError, match="can't be written"):
        write_text_atomic(tmp_path / name, "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/a.json", ".", "a.json/b.json", "x" * 300, "pipe"])
def test_a_place_that_could_not_be_written_is_told_beforehand(tmp_path: Path, name: str):
    (tmp_path / "a.json").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SpecError) as caught:
        check_writable("--json", tmp_path / name)
    assert caught.value.field == "--json"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["new.json", "a.json"])
def test_asking_whether_a_place_can_be_written_leaves_it_as_it_was(tmp_path: Path, name: str):
    (tmp_path / "a.json").write_text("old")
    check_writable("--json", tmp_path / name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
