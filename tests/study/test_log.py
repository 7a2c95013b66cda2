"""The log: what is durable, what may be lost, what is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import LogError
from sloguard.study.log import StudyLog
from sloguard.trial import Config, Refused, Trial


def trial(number: int) -> Trial:
    return Trial(number, Config({"a": number}), Config({"a": number, "b": True}), Refused("too big"), 1.5, ("why",))


@pytest.fixture
def log(tmp_path: Path) -> StudyLog:
    log = StudyLog(tmp_path / "study")
    with log.writer():
        log.append_header({"spec": {"seed": 1}, "engine": {}})
        for number in (1, 2, 3):
            log.append(trial(number))
    return log


def test_what_was_appended_is_read_back(log: StudyLog) -> None:
    assert log.trials() == [trial(1), trial(2), trial(3)]
    assert log.header()["spec"] == {"seed": 1}


def test_a_log_cut_anywhere_keeps_every_whole_line_and_can_be_continued(log: StudyLog) -> None:
    content = log.path.read_bytes()
    header_end = content.index(b"\n") + 1
    for cut in range(header_end, len(content) + 1):
        log.path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n") - 1
        assert log.trials() == [trial(n) for n in range(1, whole + 1)]
        with log.writer():
            for number in range(whole + 1, 4):
                log.append(trial(number))
        assert log.path.read_bytes() == content


def test_a_log_cut_inside_its_header_holds_no_study_yet(log: StudyLog) -> None:
    content = log.path.read_bytes()
    for cut in range(content.index(b"\n") + 1):
        log.path.write_bytes(content[:cut])
        assert not log.exists()


@given(position=st.floats(0, 1, exclude_max=True))
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, position: float
) -> None:
    log = StudyLog(tmp_path_factory.mktemp("study"))
    with log.writer():
        log.append_header({"spec": {}, "engine": {}})
        log.append(trial(1))
        log.append(trial(2))
    lines = log.path.read_bytes().split(b"\n")
    lines[1] = lines[1][: int(position * len(lines[1]))]
    log.path.write_bytes(b"\n".join(lines))
    with pytest.raises(LogError, match="line 2"):
        log.trials()
    assert log.path.read_bytes() == b"\n".join(lines), "reading mends nothing"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["[]"], "line 1"),
        (['{"kind": "trial"}'], "line 1: is not a header"),
        (['{"kind": "header", "schema": 99}'], "schema 99"),
        (
            ['{"kind": "header", "schema": 1, "spec": {}, "engine": {}}', json.dumps(trial(2).to_json())],
            "holds trial 2, expected 1",
        ),
        (
            ['{"kind": "header", "schema": 1, "spec": {}, "engine": {}}', '{"number": 1}'],
            "line 2: is not a trial record",
        ),
    ],
)
def test_what_is_no_study_is_said_so(tmp_path: Path, lines: list[str], complaint: str) -> None:
    log = StudyLog(tmp_path)
    log.path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(LogError, match=complaint):
        log.trials()


def test_a_second_writer_is_refused(log: StudyLog) -> None:
    with log.writer(), pytest.raises(LogError, match="another sloguard"), StudyLog(log.directory).writer():
        pass


def test_a_reader_needs_no_lock(log: StudyLog) -> None:
    with log.writer():
        assert len(StudyLog(log.directory).trials()) == 3


def test_what_fails_between_two_writes_is_not_taken_for_the_studys_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), StudyLog(tmp_path).writer():
        raise ConnectionResetError
    with StudyLog(tmp_path).writer():
        pass  # and the lock was given back
