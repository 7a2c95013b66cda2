"""`sloguard tune` with an engine of the user's own: what did not start is remembered, unless it says otherwise."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sloguard.engine.processes import STATE_DIR

# Others hold 8 GiB of its GPU, of which no guard knows: it starts only where it is to take less than the rest.
ENGINE = """
from dataclasses import replace

from sloguard.engine.base import Facts
from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.perf.gpus import gpu_named


class Own(SimulatedEngine):
    @classmethod
    def from_setup(cls, setup):
        return cls(find_model_shape(setup.model), gpu_named(setup.gpu), others_gib=8.0)


class Lasting(Own):
    def facts(self):
        return replace(super().facts(), crashes_last=Facts().crashes_last)
"""
SPACE = """
[gpu_memory_utilization]
type = "categorical"
choices = [0.75, 0.9, 0.95]
"""
STUDY = (
    "tune --gpu A100-40GB --model Qwen/Qwen2-1.5B --space space.toml --optimizer random --budget 3 --no-default"
    " --confirm 0 --prior none --objective goodput --num-requests 10 --slo-ttft 1000"
)


def crashed(where: Path, engine: str, out: str) -> set[float]:
    """The utilisations under which a study of all three did not start."""
    (where / "own.py").write_text(ENGINE)
    (where / "space.toml").write_text(SPACE)
    words = [sys.executable, "-m", "sloguard", *shlex.split(STUDY), "--engine", f"own:{engine}", "--out", out]
    env = {**os.environ, STATE_DIR: str(where / "state")}
    done = subprocess.run(words, cwd=where, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in (where / out / "study.jsonl").read_text().splitlines()[1:]]
    return {t["config"]["gpu_memory_utilization"] for t in trials if t["outcome"]["kind"] == "crashed"}


@pytest.mark.parametrize(("engine", "again"), [("Lasting", set[float]()), ("Own", {0.9, 0.95})])
def test_what_did_not_start_is_remembered_unless_the_engine_says_otherwise(
    tmp_path: Path, engine: str, again: set[float]
) -> None:
    assert crashed(tmp_path, engine, "first") == {0.9, 0.95}
    assert crashed(tmp_path, engine, "second") == again
