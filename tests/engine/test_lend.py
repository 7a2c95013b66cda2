from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import sloguard
from sloguard.engine.lend import lend_package, lent_environment, refuse_ours, scheduler_arguments
from sloguard.engine.vllm_install import VllmInstall
from sloguard.errors import SpecError
from sloguard.space.flags import to_flags
from sloguard.trial import Value

INSTALL = VllmInstall("/venv/bin/python", "3.12.1", "vllm", "0.32.0", (0, 32, 0))


def test_only_sloguard_is_lent(tmp_path: Path) -> None:
    lent = lend_package(tmp_path)
    assert [entry.name for entry in lent.iterdir()] == ["sloguard"]
    ask = "import sloguard, sys; print(sloguard.__file__); import rich"
    done = subprocess.run(
        [sys.executable, "-S", "-c", ask], env={"PYTHONPATH": str(lent)}, capture_output=True, text=True, check=False
    )
    assert Path(done.stdout.strip()).resolve() == Path(sloguard.__file__).resolve()
    assert "No module named 'rich'" in done.stderr


def test_lending_again_mends_what_is_there(tmp_path: Path) -> None:
    lent = lend_package(tmp_path)
    link = lent / "sloguard"
    assert lend_package(tmp_path) == lent
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    lend_package(tmp_path)
    assert (link / "__init__.py").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "lent").write_text("")
    with pytest.raises(SpecError, match="SLOGUARD_STATE_DIR"):
        lend_package(tmp_path)


def test_the_users_own_path_comes_after(tmp_path: Path) -> None:
    lent = str(lend_package(tmp_path))
    assert lent_environment(INSTALL, tmp_path, {}) == {"PYTHONPATH": lent}
    assert lent_environment(INSTALL, tmp_path, {"PYTHONPATH": "/mine"}) == {"PYTHONPATH": f"{lent}{os.pathsep}/mine"}


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--engine-python.*Python 3\.10\.4"):
        lent_environment(replace(INSTALL, python_version="3.10.4"), tmp_path, {})


def test_the_scheduler_as_flags() -> None:
    flags = to_flags(scheduler_arguments({"policy": "vllm"}))
    assert flags[:2] == ["--scheduler-cls", "sloguard.plugins.vllm_scheduler.SloScheduler"]
    assert flags[2:] == ["--additional-config", '{"sloguard": {"policy": "vllm"}}']


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scheduler_cls": "mine.Own"}, "is set by sloguard itself"),
        ({"scheduling_policy": "priority"}, "--policy vllm-priority does the same"),
        ({"kv_offloading_size": 4}, "by rules of its own"),
        ({"kv_transfer_config": "{}"}, "by rules of its own"),
    ],
)
def test_what_the_scheduler_can_not_work_beside_is_said_before_vllm_starts(arguments: dict[str, Value], says: str):
    with pytest.raises(SpecError, match=says):
        refuse_ours(arguments)
    refuse_ours({"scheduling_policy": "fcfs", "kv_offloading_size": None})
