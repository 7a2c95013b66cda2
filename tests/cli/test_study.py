"""`sloguard study`: several ways, several seeds, one file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT = """
out = "studies"
seeds = 2
[tune]
engine = "sim"
gpu = "A100-40GB"
model = "meta-llama/Llama-3.1-8B"
slo-ttft = 400
slo-tpot = 25
budget = {budget}
confirm = 0
prior = "none"
default = {default}
[arms.random]
optimizer = "random"
[arms.tpe]
optimizer = "tpe"
"""
NAMES = ["random-0", "random-1", "tpe-0", "tpe-1"]


def written(directory: Path, budget: int = 3, default: str = "true") -> Path:
    path = directory / "optimizers.toml"
    path.write_text(TEXT.format(budget=budget, default=default))
    return path


def study(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sloguard", "study", str(file), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def configs(directory: Path) -> dict[str, list[object]]:
    """What was tried and what came of it, by study; times of the wall clock aside."""
    found: dict[str, list[object]] = {}
    for log in sorted((directory / "studies").glob("*/study.jsonl")):
        trials = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        found[log.parent.name] = [(t["config"], t["outcome"]) for t in trials]
    return found


def test_at_a_time_or_one_by_one_killed_or_not_the_studies_are_the_same(tmp_path: Path) -> None:
    for name in ("serial", "parallel", "killed"):
        (tmp_path / name).mkdir()
    assert study(written(tmp_path / "serial")).returncode == 0
    assert study(written(tmp_path / "parallel"), "--jobs", "2").returncode == 0
    words = [sys.executable, "-m", "sloguard", "study", str(written(tmp_path / "killed"))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "killed" / "studies" / "tpe-0" / "study.jsonl"
    deadline_s = time.monotonic() + 120
    while not (first.exists() and first.read_text().count("\n") > 1):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = study(tmp_path / "killed" / "optimizers.toml")
    assert ended.returncode == 0
    assert "resuming: 1 of 4 studies are done" in ended.stderr
    whole = configs(tmp_path / "serial")
    assert list(whole) == NAMES
    assert whole == configs(tmp_path / "parallel") == configs(tmp_path / "killed")


def test_a_study_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    file = written(tmp_path, 2)
    assert study(file).returncode == 0
    whole = configs(tmp_path)
    shutil.rmtree(tmp_path / "studies" / "tpe-0")
    ended = study(file)
    assert "resuming: 3 of 4 studies are done" in ended.stderr
    assert configs(tmp_path) == whole


def test_a_larger_budget_goes_on_and_other_options_are_refused(tmp_path: Path) -> None:
    assert study(written(tmp_path, 2)).returncode == 0
    short = configs(tmp_path)
    assert study(written(tmp_path, 3)).returncode == 0
    assert {name: trials[:2] for name, trials in configs(tmp_path).items()} == short
    assert {len(trials) for trials in configs(tmp_path).values()} == {3}
    ended = study(written(tmp_path, 3, default="false"))
    assert ended.returncode == 2
    assert "arm random: --no-default" in ended.stderr


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("seeds = 2", 'seeds = "two"', "seeds = 'two'"),
        ("seeds = 2", "seeds = [1, 1]", "seeds = [1, 1]"),
        ("slo-ttft = 400", "slo-tft = 400", "--slo-tft"),
        ('optimizer = "tpe"', 'optimizer = "tpee"', "arm tpe: --optimizer = 'tpee'"),
        ("slo-ttft = 400", "seed = 4", "'seed'"),
        ("budget = 3", "budget = {}", "tune.budget = {}"),
        ("[arms.random]", '[arms."../random"]', "'../random'"),
        ('out = "studies"', 'out = "studies"\nworkers = 3', "workers = 3"),
        ('out = "studies"', "out = studies", "is not TOML"),
        ("budget = 3", "budget = 0", "--budget = 0"),
        ("budget = 3", 'budget = 3\nengine-arg = ["a=1", false]', "engine-arg = 'false': is no switch"),
        ("budget = 3", "budget = false", "budget = 'false': is no switch"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(tmp_path: Path, before: str, after: str, told: str) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace(before, after))
    ended = study(file)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert configs(tmp_path) == {}


def test_real_engines_are_not_measured_beside_each_other(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace('engine = "sim"', 'engine = "vllm"'))
    ended = study(file, "--jobs", "2")
    assert ended.returncode == 2
    assert "would measure each other" in ended.stderr
