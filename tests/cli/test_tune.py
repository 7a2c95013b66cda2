"""`sloguard tune` as a user runs it: files, exit codes, kill and resume, a second writer."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sloguard.cli.app import main

MODEL = ["--engine", "sim", "--gpu", "A100-40GB", "--model", "Qwen/Qwen2-1.5B", "--optimizer", "tba-tpe"]
SLOS = ["--slo-ttft-p99", "500", "--slo-itl-p99", "100"]
AT_A_RATE = ["--objective", "goodput", "--confirm", "0"]
STUDY = ["tune", *MODEL, *SLOS, *AT_A_RATE, "--seed", "42", "--num-requests", "60"]


def tune(out: Path, *more: str, budget: int = 15) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sloguard", *STUDY, "--budget", str(budget), "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sloguard", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "study"
    done = tune(out)
    assert done.returncode == 0, done.stderr
    return out


def records(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "study.jsonl").read_text().splitlines()]


def test_the_log_has_a_header_and_a_line_a_trial(whole: Path) -> None:
    header, *trials = records(whole)
    assert header["kind"] == "header"
    assert header["engine"]["simulated"] == "true"
    assert [t["number"] for t in trials] == list(range(1, 16))
    for trial in trials:
        assert {"proposed", "config", "outcome", "cost_s"} <= trial.keys()
        assert trial["outcome"]["kind"] in {"measured", "crashed", "refused"}
        assert (whole / "trials" / f"{trial['number']:03d}").is_dir()


def test_the_summary_and_best_yaml_are_the_log_in_brief(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    trials = records(whole)[1:]
    feasible = [t for t in trials if t["outcome"].get("status") == "met"]
    assert summary["feasible"] == len(feasible)
    assert summary["trials"] == 15
    assert summary["crashes"] == sum(t["outcome"]["kind"] == "crashed" for t in trials)
    top = max(t["outcome"]["summary"]["token_goodput"] for t in feasible)
    assert summary["best"]["summary"]["token_goodput"] == top
    assert summary["default"]["number"] == 1
    assert summary["wall_s"] > 0
    best = yaml.safe_load((whole / "best.yaml").read_text())
    assert best["model"] == "Qwen/Qwen2-1.5B"
    assert best["max-num-seqs"] == summary["best"]["config"]["max_num_seqs"]


@pytest.mark.parametrize("moment", range(4))
def test_killed_at_a_random_moment_and_resumed_it_is_the_same_study(whole: Path, tmp_path: Path, moment: int) -> None:
    out = tmp_path / "study"
    command = [sys.executable, "-m", "sloguard", *STUDY, "--budget", "15", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines_wanted = random.Random(moment).randrange(0, 15)
    while process.poll() is None and _lines(out) < lines_wanted:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert tune(out, "--resume").returncode == 0
    assert records(out)[1:] == records(whole)[1:]


def _lines(out: Path) -> int:
    path = out / "study.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_study_can_go_on_with_a_larger_budget(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert tune(out, budget=3).returncode in (0, 3)
    assert tune(out, "--resume", budget=5).returncode in (0, 3)
    assert len(records(out)) == 6


def test_a_start_that_failed_at_once_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "study.jsonl").write_text('{"kind":"header","schema":1,"spec":{"seed":9},"engine":{}}\n')
    assert tune(tmp_path, budget=2).returncode in (0, 3)
    assert len(records(tmp_path)) == 3


def test_interrupted_it_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = [sys.executable, "-m", "sloguard", *STUDY, "--budget", "5000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and _lines(out) < 2:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert f"report: {out / 'report.html'}" in errors
    assert "configs were tried" in (out / "report.html").read_text()


def test_json_is_the_summary_and_nothing_else(tmp_path: Path) -> None:
    done = tune(tmp_path / "study", "--json", budget=3)
    assert json.loads(done.stdout) == json.loads((tmp_path / "study" / "summary.json").read_text())


def test_nothing_feasible_exits_3_and_names_the_closest_and_the_binding_promise(tmp_path: Path) -> None:
    impossible = ["--slo-ttft-p99", "0.001"]
    done = tune(tmp_path / "study", *impossible, budget=4)
    assert done.returncode == 3
    assert "Closest: trial" in done.stdout
    assert "best.yaml" not in done.stdout
    assert "binding: p99 TTFT" in done.stdout
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["best"] is None
    assert summary["binding"]["slo"] == "p99(TTFT) <= 0.001 ms"
    assert not (tmp_path / "study" / "best.yaml").exists()
