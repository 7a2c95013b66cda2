"""`sloguard report` as a user runs it, and the page that `tune` leaves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sloguard.cli.app import main
from sloguard.page.page import render
from sloguard.page.tune import tune_page
from sloguard.page.tune_made import command_of
from sloguard.study.record import read_record

# Nothing at its default, so that all of it has to be told again.
OPTIONS = """--engine sim --gpu RTX-4090 --model Qwen/Qwen2-1.5B --slo-ttft 400 --slo-tpot 33.3 --slo-latency-p99 60000
  --attainment 0.9 --workload bursty --request-rate 2.5 --num-requests 40 --load-seconds 5 --objective goodput --seed 7
  --engine-arg max_model_len=8192 --engine-arg enforce_eager=false --budget 3 --budget-minutes 600 --confirm 1
  --optimizer random --no-race --prior none"""

SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sloguard", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "study"
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(patch, "tune", *shlex.split(OPTIONS), "--out", str(out)) == 0
    return out


def test_tune_leaves_the_page_and_report_writes_the_same(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = (study / "report.html").read_bytes()
    figures = tmp_path / "figures"
    assert run_main(monkeypatch, "report", str(study), "-o", str(tmp_path / "p.html"), "--figures", str(figures)) == 0
    assert (tmp_path / "p.html").read_bytes() == left
    told = capsys.readouterr().out
    assert f"The page is {tmp_path / 'p.html'}" in told
    assert {path.suffix for path in figures.iterdir()} == {".svg", ".png"}


def test_the_command_on_the_page_makes_the_same_study(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command_of(read_record(study))[1:-1]
    assert run_main(monkeypatch, *words, str(tmp_path / "again")) == 0
    assert (tmp_path / "again" / "study.jsonl").read_bytes() == (study / "study.jsonl").read_bytes()


def test_what_is_to_be_applied_is_told_by_the_log_and_not_by_an_older_file(study: Path, tmp_path: Path) -> None:
    there = tmp_path / "study"
    shutil.copytree(study, there)
    made = read_record(there)
    assert made.saved
    for older in ("model: an-older-one\n", None):
        if older is None:
            (there / "best.yaml").unlink()
        else:
            (there / "best.yaml").write_text(older)
        found = read_record(there)
        assert (found.best_yaml, found.saved) == (made.best_yaml, False)
        page = render(tune_page(found))
        assert "an-older-one" not in page
        assert "sloguard export" in page


def test_a_study_is_read_from_anywhere(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model lay beneath the directory that it was tuned in, and its policy was code that is not here."""
    header, *rest = (study / "study.jsonl").read_text().splitlines(keepends=True)
    told = json.loads(header)
    told["model"] = "/far/models/mine"
    told["spec"] |= {"model": "models/mine", "policy": "mine.policies:Mine"}
    (tmp_path / "study.jsonl").write_text("".join([json.dumps(told) + "\n", *rest]))
    yaml = read_record(tmp_path).best_yaml
    assert yaml is not None
    assert "model: /far/models/mine" in yaml
    assert "mine.policies:Mine" in yaml


def test_a_model_s_directory_is_known_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text(json.dumps(SHAPE))
    monkeypatch.chdir(tmp_path)
    options = "--engine sim --gpu A100-40GB --slo-tpot 50 --budget 1 --confirm 0 --model models/mine --out s"
    assert run_main(monkeypatch, "tune", *options.split()) == 0
    monkeypatch.chdir("/")
    made = read_record(tmp_path / "s")
    assert made.saved
    assert made.best_yaml is not None
    assert f"model: {tmp_path}/models/mine" in made.best_yaml


def test_a_study_that_had_no_prior_is_not_given_one_again(study: Path) -> None:
    made = read_record(study)
    real = replace(made, header=replace(made.header, spec=replace(made.spec, engine="vllm", gpu=None), engine={}))
    assert command_of(real)[-4:-2] == ["--prior", "none"]


def test_a_study_of_one_trial_is_a_page(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.jsonl").write_text("".join((study / "study.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert run_main(monkeypatch, "report", str(tmp_path)) == 0
    assert "1 of 3 configs were tried" in (tmp_path / "report.html").read_text()


NO_SPEC = '{"kind": "header", "schema": 1, "spec": {"model": 3}, "engine": {}}\n'
DAMAGES = {
    "not JSON": lambda lines: [lines[0], "{oops\n", *lines[2:]],
    "is not a header": lambda lines: lines[1:],
    "without a trial": lambda lines: lines[:1],
    "is not a trial record": lambda lines: [lines[0], '{"kind": "trial", "number": 1}\n'],
    "'spec' can't be read": lambda lines: [NO_SPEC, *lines[1:]],
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_log_is_one_line_and_no_page(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    lines = (study / "study.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "study.jsonl").write_text("".join(DAMAGES[problem](lines)))
    assert run_main(monkeypatch, "report", str(tmp_path)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert problem in told
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_study_or_no_place_for_a_page_is_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    wrong = (
        (["report", str(tmp_path / "none")], "is not there"),
        (["report", str(tmp_path / "empty")], "holds no study"),
        (["report", str(study), "-o", str(tmp_path / "none" / "p.html")], "its directory does not exist"),
        (["report", str(study), "-o", str(tmp_path)], "is no regular file"),
        (["report", str(study), str(study)], "a page is of one study"),
        (["report", str(study), "--slo", "ttft=5"], "has its own promises"),
        (["report", str(tmp_path / "file")], "is no JSON"),
        (["report", str(study), "-o", str(tmp_path / "p.html"), "--figures", str(tmp_path / "file")], "can't be made"),
    )
    for arguments, problem in wrong:
        assert run_main(monkeypatch, *arguments) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert problem in told
    assert not (tmp_path / "p.html").exists()


def test_a_page_needs_no_engine_logs(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(study / "study.jsonl", tmp_path)
    assert run_main(monkeypatch, "report", str(tmp_path)) == 0
    assert "sloguard export" in (tmp_path / "report.html").read_text()  # no best.yaml lies there
