"""What is handed out: a wheel and an sdist that hold what runs, an image and a manifest that their linters pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from paths import REPO
from sloguard import __version__

SRC = REPO / "src" / "sloguard"
TOOLS = Path(sys.executable).parent  # of the environment that has the linters


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPO)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return out


def test_the_wheel_holds_every_file_of_the_package(dist: Path) -> None:
    names = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    ours = [p for p in SRC.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {f"sloguard/{path.relative_to(SRC).as_posix()}" for path in ours} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_building_and_testing_needs(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "LICENSE", "README.md", "Makefile", "tests/test_packaging.py", "docs/index.md"} <= names


def test_the_wheel_runs_without_the_source_tree(dist: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(next(dist.glob("*.whl"))).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-c", "import sloguard; print(sloguard.__file__)"]
    told = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert told.startswith(str(tmp_path)), "else what follows says nothing of the wheel"
    words = [sys.executable, "-m", "sloguard", "--version"]
    told = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert told.strip() == f"sloguard {__version__}"


def test_completion_scripts_are_made(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = {**os.environ, "_SLOGUARD_COMPLETE": f"source_{shell}"}
        ended = subprocess.run([TOOLS / "sloguard"], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert "_SLOGUARD_COMPLETE" in ended.stdout, ended.stderr


def test_the_image_passes_its_linter() -> None:
    ended = subprocess.run([TOOLS / "hadolint", REPO / "Dockerfile"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_manifest_is_valid_kubernetes() -> None:
    words = [TOOLS / "kubernetes-validate", "--strict", REPO / "deploy" / "kubernetes.yaml"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
