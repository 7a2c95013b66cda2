"""A profile of a real vLLM. Needs a vLLM build: `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo_model import VLLM_PYTHON, needs_vllm
from procs import alive_with
from sloguard.engine.processes import STATE_DIR
from sloguard.engine.profiles import DATA_DIR, profiles_dir, read_profile
from sloguard.perf.batch_time import Batch

pytestmark = [pytest.mark.vllm, needs_vllm]

PINNED = ("enforce_eager=true", "max_model_len=512", "gpu_memory_utilization=0.05", "kv_cache_memory_bytes=64M")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, for vLLM puts sockets into TMPDIR, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="sg") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "data"))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def command(model: Path, seconds: int) -> list[str]:
    pinned = [word for pair in PINNED for word in ("--engine-arg", pair)]
    words = [sys.executable, "-m", "sloguard", "profile", "--model", str(model), "--seconds", str(seconds)]
    return [*words, "--engine-python", str(VLLM_PYTHON), *pinned]


def test_a_profile_predicts_steps_it_has_not_seen(demo_tiny: Path, tmp_path: Path, scratch: Path) -> None:
    figures_file = tmp_path / "figures.json"
    asked = [*command(demo_tiny, 12), "--json", str(figures_file)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = profiles_dir().iterdir()
    assert str(path) in done.stdout
    saved = read_profile(path)
    assert saved.effective["max_model_len"] == 512
    assert saved.key.config == (("enforce_eager", True),)
    figures = json.loads(figures_file.read_text())
    assert figures["unanswered"] == 0
    assert min(figures["probes"].values()) >= 1
    held_out = saved.fitted.held_out
    assert set(held_out) == {"decode", "prefill", "mixed"}
    assert held_out["decode"].mape < 1, "a busy machine scatters, but steps are of this size"
    time = saved.fitted.batch_time
    assert time.seconds(Batch(((500, 0),))) > time.seconds(Batch(((8, 0),)))
    assert not list(scratch.glob("sloguard-profile-*"))


def test_an_interrupt_leaves_no_engine_and_no_profile(demo_tiny: Path, tmp_path: Path, scratch: Path) -> None:
    with subprocess.Popen(command(demo_tiny, 600), stderr=subprocess.PIPE, text=True) as profiling:
        assert profiling.stderr is not None
        for line in profiling.stderr:
            if line.strip() == "probing":
                break
        (record,) = (tmp_path / "state" / "processes").glob("*.jsonl")
        run_id = json.loads(record.read_text().splitlines()[0])["run_id"]
        assert len(alive_with(run_id)) >= 3
        os.kill(profiling.pid, signal.SIGINT)
        assert "interrupted" in profiling.stderr.read()
    assert profiling.returncode == 130
    assert alive_with(run_id) == []
    assert not psutil.pid_exists(profiling.pid)
    assert not (tmp_path / "data").exists()
    assert not list(scratch.glob("sloguard-profile-*"))
