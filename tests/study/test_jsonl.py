"""A durable log of records: what may be lost, what is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from sloguard.errors import LogError
from sloguard.study.jsonl import JsonLog

RECORDS = [{"kind": "probe", "n": n, "text": "ü" * n} for n in range(4)]


@pytest.fixture
def log(tmp_path: Path) -> JsonLog:
    log = JsonLog(tmp_path / "new" / "search.jsonl")
    with log.writer():
        log.append_header({"rows": [1, 2]})
        for record in RECORDS:
            log.append("probe", {k: v for k, v in record.items() if k != "kind"})
    return log


def test_a_log_cut_anywhere_keeps_its_whole_lines_and_can_be_continued(log: JsonLog):
    assert (log.header()["rows"], log.records()) == ([1, 2], RECORDS)
    content = log.path.read_bytes()
    for cut in range(content.index(b"\n") + 1, len(content)):
        log.path.write_bytes(content[:cut])
        with log.writer():
            kept = log.records()
            log.append("probe", {"n": 9})
        assert kept == RECORDS[: len(kept)]
        assert log.records() == [*kept, {"kind": "probe", "n": 9}]


def test_a_header_that_was_cut_is_none(log: JsonLog):
    log.path.write_bytes(log.path.read_bytes()[:5])
    assert not log.exists()
    log.clear()
    assert not log.path.exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"kind":"header"', b'"kind":"other"', "line 1: is not a header"),
        (b'"schema":1', b'"schema":2', "schema 2"),
        (b'{"kind":"probe","n":1,', b'"kind":"probe","n":1,', "line 3: is not JSON"),
        (b'{"kind":"probe","n":0,"text":""}', b"[]", "line 2: is not a JSON object"),
    ],
)
def test_what_is_broken_is_an_error_that_names_the_line(log: JsonLog, old, new, says):
    content = log.path.read_bytes()
    assert old in content
    log.path.write_bytes(content.replace(old, new))
    with pytest.raises(LogError, match=says):
        log.records()


def test_there_is_one_writer(log: JsonLog):
    with log.writer(), pytest.raises(LogError, match="another sloguard"), JsonLog(log.path).writer():
        pass


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="can't be written"), JsonLog(tmp_path / "file" / "x.jsonl").writer():
        pass
