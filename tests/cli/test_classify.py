"""`sloguard classify`: what scripts and people read of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sloguard.cli.app import main
from sloguard.cli.classify import TAIL_BYTES

PORT = "OSError: [Errno 98] Address already in use"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sloguard", "classify", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_text(f"INFO 01-01 00:00:00 [api_server.py:1] vLLM\n{PORT}\n")
    return path


def test_a_person_reads_four_lines(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(log)) == 0
    lines = [line.split(":", 1) for line in capsys.readouterr().out.splitlines()]
    assert [(key, value.strip()) for key, value in lines[:3]] == [
        ("category", "startup_failure"),
        ("cause", "port_in_use"),
        ("line", PORT),
    ]
    assert lines[3][0] == "hint"
    assert "--port" in lines[3][1]
    assert len({len(line) - len(line.split(":", 1)[1].lstrip()) for line in map(":".join, lines)}) == 1, "aligned"


def test_a_machine_reads_one_object(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(log), "--json", "--phase", "load", "--exit-code", "1") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["environment"] is True
    assert answer["phase"] == "load"
    assert set(answer) == {"category", "cause", "line", "hint", "environment", "phase"}


@pytest.mark.parametrize(("arguments", "category"), [((), "none"), (("--timed-out",), "timeout")])
def test_a_healthy_log_from_standard_input(
    arguments: tuple[str, ...], category: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"INFO:     Application startup complete.\n\xff\xfe\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(monkeypatch, "-", "--json", *arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["category"], answer["phase"]) == (category, "load")
    if category == "none":
        assert (answer["cause"], answer["line"]) == ("none", "")


def test_only_the_end_of_a_long_log_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long.log"
    long.write_text(f"{PORT}\n" + "INFO 01-01 00:00:00 [a.py:1] fine\n" * (TAIL_BYTES // 30))
    assert run(monkeypatch, str(long), "--json") == 0
    assert json.loads(capsys.readouterr().out)["category"] == "none"


@pytest.mark.parametrize(
    ("make", "arguments", "says"),
    [
        (lambda path: None, (), "No such file"),
        (lambda path: path.mkdir(), (), "directory"),
        (lambda path: path.write_bytes(b"\x7fELF\0\0"), (), "not text"),
        (lambda path: path.write_text("x"), ("--phase", "middle"), "--phase"),
    ],
)
def test_bad_input_is_one_line(
    make: object,
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "given"
    assert callable(make)
    make(path)
    assert run(monkeypatch, str(path), *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
