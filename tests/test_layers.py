"""Who may import whom. Imports go down the table, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paths import REPO

SRC = REPO / "src" / "sloguard"

WORDS = {
    "errors",
    "rng",
    "slo",
    "request",
    "contract",
    "metrics",
    "crash",
    "crash_log",
    "crash_rules",
    "trial",
    "registry",
    "__init__",
}

MAY_IMPORT = {
    "words": set(),
    "workload": {"words"},
    "perf": {"words"},
    "space": {"words", "perf"},
    "optim": {"words", "space"},
    "sched": {"words", "perf"},
    "route": {"words", "perf", "sched"},
    "sim": {"words", "perf", "sched", "route"},
    "load": {"words"},
    "plugins": {"words", "perf", "sched", "route"},  # runs inside vLLM, whose process never loads the rest
    "engine": {"words", "perf", "sched", "route", "sim", "space", "load", "workload", "plugins"},
    "study": {"words", "workload", "perf", "space", "optim", "sched", "route", "sim", "engine"},
    "report": {"words", "optim", "sched", "sim", "load", "study"},
    "page": {"words", "space", "optim", "load", "study", "report"},
    "fleet": {"words", "sched", "route", "plugins", "engine", "study", "report"},
    "cli": {
        "words",
        "workload",
        "perf",
        "space",
        "optim",
        "sched",
        "sim",
        "load",
        "plugins",
        "engine",
        "route",
        "fleet",
        "study",
        "report",
        "page",
    },
}

PURE = {"words", "workload", "perf", "space", "optim", "sched", "route", "sim"}
WORLD = {"time", "os", "random", "asyncio", "logging", "subprocess", "socket", "threading"}

HOMES = {
    "optuna": {"optim/tpe.py", "study/optuna_storage.py"},
    "botorch": {"optim/constrained.py"},
    "torch": {"optim/constrained.py"},
    "sklearn": {"optim/forest.py"},
    "pynvml": {"engine/gpu_detect.py", "engine/gpu_memory.py"},
    "matplotlib": {"report/capacity_figure.py", "page/canvas.py", "page/*figures.py"},
    "jinja2": {"page/page.py"},
    "vllm": {"plugins/vllm_scheduler.py"},
    "prometheus_client": {
        "plugins/meters.py",
        "plugins/door.py",
        "engine/emulator_server.py",
        "fleet/meters.py",
        "fleet/server.py",
    },
    "aiohttp": {"fleet/link.py"},
    "ray": {"fleet/ray_app.py", "fleet/ray_serve.py"},
    "fastapi": {"engine/emulator*.py", "page/live.py"},
    "uvicorn": {"engine/emulator_server.py", "fleet/server.py", "cli/watch.py"},
    "typer": {"cli/*"},
}

FILES = sorted(path for path in SRC.rglob("*.py") if path.name != "__main__.py")  # the door's doorbell


def layer_of(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else "words"


def imports(path: Path) -> list[tuple[str, ast.stmt]]:
    tree = ast.parse(path.read_text())
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node))
    return found


def name(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down_only(path: Path) -> None:
    layer = layer_of(path)
    for module, _ in imports(path):
        if module == "sloguard" or not module.startswith("sloguard."):
            continue
        head = module.split(".")[1]
        target = "words" if head in WORDS else head
        assert target == layer or target in MAY_IMPORT[layer], f"{name(path)} ({layer}) imports {module} ({target})"


@pytest.mark.parametrize("path", [p for p in FILES if layer_of(p) in PURE], ids=name)
def test_pure_layers_never_touch_the_world(path: Path) -> None:
    touched = {module.split(".")[0] for module, _ in imports(path)} & WORLD
    assert not touched, f"{name(path)} imports {sorted(touched)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_own_modules_are_imported_at_the_top(path: Path) -> None:
    for module, node in imports(path):
        inside = node.col_offset > 0
        assert not (inside and module.split(".")[0] == "sloguard"), f"{name(path)} imports {module} inside a block"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_have_one_home(path: Path) -> None:
    for module, _ in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or any(path.relative_to(SRC).match(home) for home in homes), f"{name(path)}: {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
