"""Every command that README and docs show is run, in order, page by page.

What a page shows of a real GPU or vLLM runs here on a simulated one: `STAND_IN` says what is added to a command, and
models and ports are put in that are there. What can't be had here at all is in `NOT_RUN`, with the reason; of those,
sloguard's own are still parsed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import typer

from paths import REPO, SHARED_DATA
from sloguard.cli.app import app

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
BIN = REPO / ".venv" / "bin"
MODEL = "meta-llama/Llama-3.1-8B"

SIMULATED = ["--engine", "sim", "--gpu", "A100-40GB"]
STAND_IN = {  # command: (where it lacks this flag, this is added), and what makes it short
    "tune": ("--engine", SIMULATED, ["--budget", "2", "--confirm", "0", "--prior", "none"]),
    "serve": ("--engine", ["--engine", "emulator", "--gpu", "H100"], []),
    "capacity": (None, [], ["--seeds", "1", "--tolerance", "0.5", "--num-requests", "60"]),
}
NOT_RUN = {
    r"sloguard profile ": "measures the steps of a real vLLM: tests/cli/test_profile.py",
    r"sloguard serve (?!.*--backend local).*--replicas": "needs Ray: tests/fleet",
    r"sloguard tune .*--workload": "its load is the reader's own: tests/cli/test_tune.py",
    r"sloguard watch ": "serves until it is stopped: tests/page/test_live.py",
    r"vllm bench serve |guidellm |aiperf ": "other tools: tests/golden/results/README.md says what each made",
    r"vllm serve ": "needs a GPU: tests/cli/test_tune_vllm.py starts the CPU build with such a file",
}
FILES = {
    "engine.log": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n",
    "classes.toml": 'default = "chat"\n\n[classes.chat]\nttft_ms = 500\ntpot_ms = 50\n',
}
RESULTS = REPO / "tests" / "golden" / "results"
COPIES = {  # what a page takes for granted: a file like it
    "own.json": RESULTS / "sloguard_bench.json",
    "vllm.json": RESULTS / "vllm_0.32.json",
    "guidellm.json": RESULTS / "guidellm_0.8.json.gz",
    "profile_export_aiperf.json": RESULTS / "aiperf_0.13" / "profile_export_aiperf.json",
    "sloguard_trials_sequential.jsonl": SHARED_DATA / "tuning" / "sloguard_trials_sequential.jsonl",
}
STUDY = f"sloguard tune --model {MODEL} --slo-ttft 500 --slo-tpot 50 --out study"  # of a page before


def blocks(page: Path, *languages: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, lang, body in found if lang in languages]


def commands(page: Path) -> Iterator[str]:
    """As they would be typed: lines that go on are joined; of a console, what follows a prompt."""
    for block in blocks(page, "sh"):
        yield from _joined(block)
    for block in blocks(page, "console"):
        shown = re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)
        assert shown, f"{page.name}: a console without a prompt"
        yield from (line for text in shown for line in _joined(text))


def shown_tables(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of a console whose outcome is a function of the flags, with the rows of the first table they print."""
    for block in blocks(page, "console"):
        prompt, _, output = block.partition("\n┏")
        for command in _joined(prompt.removeprefix("$ ").rpartition("\n")[0]):
            if command.startswith("sloguard simulate "):
                yield command, re.findall("^│.*│$", output.partition("└")[0], re.MULTILINE)


def _joined(block: str) -> Iterator[str]:
    document = re.compile(r"^(cat > \S+) <<(\w+)\n(.*?\n)\2$", re.DOTALL | re.MULTILINE)
    for match in document.finditer(block):
        yield match[0]
    for line in document.sub("", block).replace("\\\n", " ").splitlines():
        if line.split("#")[0].strip():
            yield line.strip()


class Shell:
    """Runs the commands of one page, in one directory."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory, self.stack = directory, stack
        self.port = 0
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "COLUMNS": "160",
            "PYTHONPATH": str(REPO / "docs" / "examples"),
        }

    def run(self, command: str) -> None:
        takes_study = command.startswith(("sloguard export study", "sloguard report study"))
        if takes_study and not (self.directory / "study").exists():
            self.run(STUDY)
        if any(re.match(pattern, command) for pattern in NOT_RUN):
            self.parse(command)
        elif command.startswith("make "):
            self.call(["make", "--dry-run", *shlex.split(command, comments=True)[1:]], REPO)
        elif command.startswith("sloguard serve "):
            self.serve(command)
        else:
            if "127.0.0.1:8000" in command and not self.port:
                self.serve(f"sloguard serve --model {MODEL}")
            if command.startswith("sloguard "):
                self.call(self.words(command), self.directory)
            else:
                told = re.sub(r"\bcurl ", "curl --fail --silent --show-error ", self.told(command))
                self.call(["bash", "-euo", "pipefail", "-c", told], self.directory)

    def told(self, command: str) -> str:
        """With the model and the port that are there."""
        command = re.sub(r"(--model |\"model\": \")(M\b|Qwen/[\w.-]+)", rf"\1{MODEL}", command)
        return command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def words(self, command: str) -> list[str]:
        words = shlex.split(self.told(command), comments=True)
        lacking, added, short = STAND_IN.get(words[1], (None, [], []))
        return [*words, *(added if lacking is not None and lacking not in words else []), *short]

    def serve(self, command: str) -> None:
        self.stack.enter_context(self.server(self.words(command)))

    def call(self, words: list[str], cwd: Path) -> str:
        ended = subprocess.run(words, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
        return ended.stdout

    def parse(self, command: str) -> None:
        """That sloguard has such flags, at least."""
        words = shlex.split(command, comments=True)
        if words[0] == "sloguard":
            group = typer.main.get_command(app)
            sub = group.get_command(typer.Context(group), words[1])  # pyright: ignore[reportAttributeAccessIssue]
            sub.make_context(words[1], words[2:])

    @contextmanager
    def server(self, words: list[str]) -> Iterator[None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        log = (self.directory / f"server-{self.port}.log").open("w")
        process = subprocess.Popen(
            [*words, "--port", str(self.port)], cwd=self.directory, env=self.environment, stdout=log, stderr=log
        )
        try:
            deadline_s = time.monotonic() + 120
            while not self._answers():
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline_s, Path(log.name).read_text()
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)
            log.close()

    def _answers(self) -> bool:
        try:
            return urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=2).status == 200
        except OSError:
            return False


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    for name, source in COPIES.items():
        if source.exists():
            shutil.copy(source, tmp_path / name)
    for text in blocks(page, "toml"):
        if "[arms." in text:
            short = text.replace("seeds = 3", "seeds = 2").replace("budget = 10", "budget = 2")
            (tmp_path / "optimizers.toml").write_text(short)
    with ExitStack() as stack:
        shell = Shell(tmp_path, stack)
        for command in commands(page):
            shell.run(command)


@pytest.mark.parametrize("page", [page for page in PAGES if list(shown_tables(page))], ids=lambda page: page.name)
def test_what_a_page_shows_of_a_simulation_is_what_comes(page: Path, tmp_path: Path) -> None:
    for command, rows in shown_tables(page):
        printed = Shell(tmp_path, ExitStack()).call(shlex.split(command), tmp_path)
        assert rows
        assert [" ".join(row.split()) for row in rows if row not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_are_well_formed(page: Path) -> None:
    for text in blocks(page, "toml"):
        tomllib.loads(text)
    for text in blocks(page, "json"):
        json.loads(text)
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


def test_what_is_not_run_is_shown_somewhere() -> None:
    """Else a reason stands for nothing."""
    shown = [command for page in PAGES for command in commands(page)]
    assert all(any(re.match(pattern, command) for command in shown) for pattern in NOT_RUN)
