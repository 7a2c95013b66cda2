"""What `simulate` and `capacity` leave of a short load: rows as JSON, and a page of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sloguard.cli.app import main

LOAD = ["--scenario", "coder", "--policy", "vllm,sloguard", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "A100-40GB"]
LOAD += ["--num-requests", "40"]
COMMANDS = {
    "simulate": ["simulate", *LOAD, "--rate", "2", "--seeds", "2"],
    "capacity": ["capacity", *LOAD, "--tolerance", "0.5", "--jobs", "1"],
}


def run(*words: str) -> None:
    argv, sys.argv = sys.argv, ["sloguard", *words]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = argv
    assert not stop.value.code


def save(directory: Path) -> dict[str, Path]:
    """The JSON of each command; its page lies beside it."""
    files = {name: directory / f"{name}.json" for name in COMMANDS}
    for name, path in files.items():
        run(*COMMANDS[name], "--json", str(path), "--report", str(path.with_suffix(".html")))
    return files
