"""`sloguard compare` as a user runs it, over real (simulated) studies and the published trials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import SHARED_DATA, needs_shared_data
from sloguard.cli.app import main

TASK = ["--engine", "sim", "--gpu", "A100-40GB", "--model", "Qwen/Qwen2-1.5B", "--slo-ttft-p99", "500"]
AT_A_RATE = ["--objective", "goodput", "--num-requests", "20", "--confirm", "0", "--budget", "4"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sloguard", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sloguard", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two optimizers with two seeds each."""
    out = tmp_path_factory.mktemp("studies")
    for optimizer in ("tba", "random"):
        for seed in (1, 2):
            at = out / f"{optimizer}.{seed}"
            done = run("tune", *TASK, *AT_A_RATE, "--optimizer", optimizer, "--seed", str(seed), "--out", at)
            assert done.returncode == 0, done.stderr
    return out


def test_studies_of_two_optimizers_are_compared(studies: Path) -> None:
    done = run("compare", studies)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    head = next(line for line in done.stdout.splitlines() if "random" in line and "tba" in line)
    assert head.index("random") < head.index("tba"), "the baseline comes first"
    for said in (
        "Simulated studies by goodput",
        "seeds 1, 2",
        "tba: fast trials",
        "two-sided",
        "few seeds (2 against 2)",
    ):
        assert said in done.stdout


def test_json_has_what_the_logs_have(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(monkeypatch, capsys, "compare", studies, "--format", "json")
    assert code == 0
    told = json.loads(out)
    assert (told["objective"], told["baseline"], told["simulated"]) == ("goodput", "random", True)
    summaries = {path.parent.name: json.loads(path.read_text()) for path in studies.glob("*/summary.json")}
    for group in told["groups"]:
        mine = [summary for name, summary in summaries.items() if name.startswith(group["label"])]
        assert group["feasible"] == sum(summary["feasible"] for summary in mine)
        assert group["crashes"] == sum(summary["crashes"] for summary in mine)
        best = [summary["best"]["score"] for summary in mine]
        assert group["measures"]["best"]["mean"] == pytest.approx(sum(best) / len(best))


def test_another_baseline_turns_differences_round(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps = []
    for baseline in ("random", "tba"):
        _, out, _ = ran(monkeypatch, capsys, "compare", studies, "--baseline", baseline, "--format", "json")
        gaps.append(next(test["difference"] for test in json.loads(out)["tests"] if test["measure"] == "best"))
    assert gaps[0] == pytest.approx(-gaps[1])


@pytest.mark.parametrize(
    ("form", "begins"), [("table", "Simulated"), ("markdown", "**Simulated"), ("latex", "% Made by"), ("json", "{")]
)
def test_each_form_can_be_written_to_a_file(
    studies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    begins: str,
) -> None:
    path = tmp_path / "out"
    code, out, _ = ran(monkeypatch, capsys, "compare", studies, "--format", form, "-o", path)
    assert (code, out) == (0, "")
    assert path.read_text().startswith(begins)
    assert "\x1b" not in path.read_text()


def test_one_study_is_shown_alone(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(monkeypatch, capsys, "compare", studies / "tba.1")
    assert code == 0
    assert "one study of tba" in out


def test_studies_of_different_promises_are_an_error(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looser = [*TASK[:-1], "900"]
    assert (
        run("tune", *looser, *AT_A_RATE, "--optimizer", "random", "--seed", "3", "--out", tmp_path / "s").returncode
        == 0
    )
    code, out, err = ran(monkeypatch, capsys, "compare", studies, tmp_path / "s")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "slo_p99_s" in err


@needs_shared_data
def test_the_published_row_is_printed_and_what_it_rests_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SHARED_DATA / "tuning" / "sloguard_trials_sequential.jsonl"
    _, out, _ = ran(monkeypatch, capsys, "compare", path)
    cells = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in out.splitlines()
        if "│" in line
    }
    assert cells["fast trials of 15"] == ["7.40 +- 2.51", "10.60 +- 0.89"]
    assert cells["post-hit consistency"] == ["0.539 +- 0.224", "0.876 +- 0.123"]
    assert cells["best, ms"] == ["431.11 +- 1.74", "431.57 +- 1.90"]
    assert cells["feasible trials"] == ["75/75", "75/75"]
    p = {name: (row[0], row[3]) for name, row in cells.items() if name.startswith("tba-tpe: ")}
    assert p == {
        "tba-tpe: fast trials": ("greater", "0.008"),
        "tba-tpe: consistency": ("greater", "0.010"),
        "tba-tpe: best": ("two-sided", "0.84"),
    }
    for caveat in (
        "few seeds (5 against 5): p is at least 0.004 one-sided, 0.0079 two-sided",
        "no trial crashed",
        "all 150 configs that ran are feasible",
        "best scores differ from those of random by less than runs of one config do: tba-tpe 0.1%",
        "a trial's load had 5 requests (median), one after another: nothing was concurrent",
    ):
        assert f"Caveat: {caveat}" in out


@needs_shared_data
def test_the_pilot_says_that_its_studies_are_guessed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(monkeypatch, capsys, "compare", SHARED_DATA / "tuning" / "sloguard_trials_pilot.jsonl")
    assert code == 0
    assert "Note: sloguard_trials_pilot.jsonl names no optimizer" in out
