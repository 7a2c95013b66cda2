"""`sloguard profile` over a log that a server kept; tests/engine/test_profile_vllm.py has the one that starts vLLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sloguard.cli.app import main
from sloguard.engine.profiles import DATA_DIR, cpu_name, find, profile_key, read_profile
from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.rng import stream

TIME = BatchTime((Piece(10e-3, 370e-6, 400e-6, 1e-6, 50e-9),))
STATED = ("--gpu", "H100", "--engine-version", "0.32.0")


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "data"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = stream(0, "log")
    lines: list[str] = []
    for _ in range(400):
        decodes = int(rng.integers(1, 32))
        chunks = [[int(rng.integers(1, 512)), 0]] if rng.random() < 0.3 else []
        batch = Batch(tuple((n, c) for n, c in chunks), decodes, 100 * decodes)
        step = {"chunks": chunks, "decodes": decodes, "kv_tokens": 100 * decodes, "draft_tokens": 0, "draft_steps": 0}
        lines.append(json.dumps({**step, "seconds": TIME.seconds(batch)}))
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sloguard", "profile", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_log_becomes_a_profile_that_is_found(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--model", "org/model", "--step-log", log, *STATED, "--engine-arg", "dtype=bfloat16") == 0
    printed = capsys.readouterr().out
    assert "decode" in printed
    assert "mixed" in printed
    saved = find(profile_key("org/model", "H100", "0.32.0", {"dtype": "bfloat16"}))
    assert saved is not None
    assert saved.fitted.batch_time.seconds(Batch((), 16, 1600)) == pytest.approx(
        TIME.seconds(Batch((), 16, 1600)), rel=0.05
    )


def test_where_it_goes_and_what_it_says(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json"
    asked = ("--model", "m", "--step-log", log, "--gpu", "cpu", "--engine-version", "0.32.0", "--out", out)
    assert run(monkeypatch, *asked, "--json", "-") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["saved_in"] == str(out)
    assert figures["device"] == cpu_name()
    assert figures["held_out"]["decode"]["mape"] < 0.05
    assert read_profile(out).key.model == "m"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--seconds", "1"), "--seconds = 1"),
        (("--seconds", "nan"), "--seconds = nan"),
        (("--step-log", "{log}"), "--gpu"),
        (("--step-log", "{log}", "--gpu", "H100"), "--engine-version"),
        (("--step-log", "{log}.none", *STATED), "No such file"),
        (("--step-log", "{short}", *STATED), "too few"),
        (("--step-log", "{broken}", *STATED), "line 1"),
        (("--step-log", "{log}", *STATED, "--out", "/no/such/place.json"), "--out"),
        (("--engine-version", "0.32.0"), "--engine-version"),
        (("--engine-python", sys.executable), "vLLM is not installed there"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short").write_text("".join(log.read_text().splitlines(keepends=True)[:5]))
    (tmp_path / "broken").write_text("{}\n")
    files = {"log": log, "short": tmp_path / "short", "broken": tmp_path / "broken"}
    given = [word.format(**files) for word in arguments]
    assert run(monkeypatch, "--model", "org/model", *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "data").exists()
