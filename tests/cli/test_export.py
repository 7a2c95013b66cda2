"""`sloguard export` as a user runs it: what vLLM, a spreadsheet and Optuna are given."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from sloguard.cli.app import main
from sloguard.study.log import StudyLog
from sloguard.trial import Crashed, Trial

STUDY = (
    "tune --engine sim --gpu A100-40GB --model meta-llama/Llama-3.1-8B --optimizer random --seed 4 --budget 9 "
    "--slo-ttft 400 --slo-tpot 25 --num-requests 40 --load-seconds 5 --confirm 1 --engine-arg block_size=32"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "study"
    command = [sys.executable, "-m", "sloguard", *STUDY.split(), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def ran(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sloguard", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return ran


def trials_of(study: Path) -> list[Trial]:
    return StudyLog(study).trials()


def test_the_best_is_exported_as_tune_wrote_it(study: Path, run, tmp_path: Path) -> None:
    best = (study / "best.yaml").read_text()
    assert run(study) == (0, best, "")
    assert run(study, "--format", "vllm-yaml", "-o", tmp_path / "b.yaml")[0] == 0
    assert (tmp_path / "b.yaml").read_text() == best


def test_any_trial_can_be_served(study: Path, run) -> None:
    other = next(trial for trial in trials_of(study) if trial.overrides)
    _, out, _ = run(study, "--trial", other.number)
    told = yaml.safe_load(out)
    assert (told["model"], told["block-size"]) == ("meta-llama/Llama-3.1-8B", 32)
    assert told["max-num-seqs"] == other.config["max_num_seqs"]
    _, out, _ = run(study, "--trial", 1)
    assert yaml.safe_load(out) == {"model": "meta-llama/Llama-3.1-8B", "block-size": 32}, "the default needs no flag"


def test_csv_has_a_row_a_trial(study: Path, run) -> None:
    _, out, _ = run(study, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    trials = trials_of(study)
    assert [int(row["number"]) for row in rows] == [trial.number for trial in trials]
    assert {row["status"] for row in rows} >= {"feasible", "dropped", "crashed"}, "or this study shows too little"
    for row, trial in zip(rows, trials, strict=True):
        crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
        assert (row["crash_category"], row["crash_cause"]) == ((crash.category, crash.cause) if crash else ("", ""))
        assert float(row["cost_s"]) == trial.cost_s
        assert row["recheck"] == ("" if trial.recheck is None else str(trial.recheck))
        assert (row["status"] == "feasible") is trial.feasible
        assert bool(row["capacity_requests_s"]) is (trial.capacity is not None and trial.capacity.low > 0)
        assert {name: row[name] for name in trial.config} == {name: str(value) for name, value in trial.config.items()}


def test_optuna_opens_what_it_is_given(study: Path, run, tmp_path: Path) -> None:
    path = tmp_path / "what? study.db"
    assert run(study, "--format", "optuna", "-o", path) == (0, "", "")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    plain = shutil.copy(path, tmp_path / "study.db")
    opened = optuna.load_study(study_name="study", storage=f"sqlite:///{plain}")
    assert len(opened.trials) == len(trials_of(study))
    assert opened.user_attrs["spec"]["seed"] == 4
    assert opened.user_attrs["engine"]["simulated"] == "true"
    before = path.read_bytes()
    code, _, err = run(study, "--format", "optuna", "-o", path)
    assert code == 2
    assert "is there already" in err
    assert path.read_bytes() == before


def test_what_measured_a_running_server_has_no_config(study: Path, run, tmp_path: Path) -> None:
    header, *rest = (study / "study.jsonl").read_text().splitlines(keepends=True)
    told = json.loads(header)
    told["engine"]["engine"] = "endpoint"
    (tmp_path / "study.jsonl").write_text("".join([json.dumps(told) + "\n", *rest]))
    code, out, err = run(tmp_path)
    assert (code, out) == (2, "")
    assert "somebody else runs" in err
    assert run(tmp_path, "--format", "csv")[0] == 0
