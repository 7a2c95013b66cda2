"""`sloguard capacity` as a user runs it, interrupts it and goes on with it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sloguard.cli.app import main

ON = "--model Qwen/Qwen2-1.5B --gpu A100-40GB --num-requests 60 --tolerance 0.2"
CAPACITY = f"capacity --scenario coder,tool-calling --policy vllm,edf {ON}"
CODE = "import sys; from sloguard.cli.app import main; sys.exit(main())"


def sloguard(command: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", CODE, *shlex.split(command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_it_ends_in_a_table_a_figure_and_a_record(tmp_path: Path):
    figure, out, rows_file = tmp_path / "c.svg", tmp_path / "out", tmp_path / "rows.json"
    done = sloguard(f"{CAPACITY} --jobs 2 --figure {figure} --out {out} --json {rows_file}")
    assert done.returncode == 0, done.stderr
    for words in ("Requests/s a GPU at 90% attainment", "coder", "geometric mean", "Simulated"):
        assert words in done.stdout
    assert done.stderr.count("req/s a GPU") == 4
    rows = json.loads(rows_file.read_text())["rows"]
    assert json.loads((out / "capacity.json").read_text())["rows"] == rows
    assert [(row["scenario"], row["policy"]) for row in rows] == [
        (scenario, policy) for scenario in ("coder", "tool-calling") for policy in ("vllm", "edf")
    ]
    for row in rows:
        low, high = row["bracket"]
        assert 0 < row["capacity_per_gpu"] == low < high <= 1.2 * low
        assert (row["seeds"], row["target"], row["model"], row["gpu"]) == (1, 0.9, "Qwen/Qwen2-1.5B", "A100-40GB")
    assert figure.read_text().startswith("<?xml")
    lines = (out / "capacity.jsonl").read_text().splitlines()
    assert len(lines) == 1 + sum(len(row["probes"]) for row in rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one uninterrupted search in one process finds."""
    out = tmp_path_factory.mktemp("whole") / "rows.json"
    assert sloguard(f"{CAPACITY} --jobs 1 --json {out}").returncode == 0
    return out.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_was_interrupted_goes_on_to_the_same_result_and_leaves_no_process(
    how: signal.Signals, tmp_path: Path, whole: bytes
):
    out = tmp_path / "out"
    words = [sys.executable, "-c", CODE, *shlex.split(f"{CAPACITY} --jobs 2 --out {out}")]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = out / "capacity.jsonl"
    deadline_s = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    workers = psutil.Process(started.pid).children(recursive=True)
    os.kill(started.pid, how)
    said = started.communicate(timeout=30)[1]
    assert started.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert "Traceback" not in said
    assert not psutil.wait_procs(workers, timeout=10)[1]
    resumed = sloguard(f"{CAPACITY} --jobs 1 --out {out} --resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after" in resumed.stderr
    assert (out / "capacity.json").read_bytes() == whole


def test_rates_that_nothing_serves_are_said_by_the_exit_code():
    done = sloguard(f"capacity --scenario coder --policy vllm {ON} --rates 400:500 --json -")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["rows"][0]["bracket"] == [0.0, 400.0]


def test_an_open_end_reads_the_same_above_the_table_as_in_it(tmp_path: Path):
    """And a file of lengths comes at any rate; nothing is promised in it."""
    (tmp_path / "len.csv").write_text("input_tokens,output_tokens\n100,20\n200,30\n")
    done = sloguard(f"capacity --trace {tmp_path}/len.csv --policy vllm {ON} --rates 1:2 --jobs 1")
    assert done.returncode == 0, done.stderr
    assert ">= 2.00" in done.stderr
    for words in (">= 2.00", "No request of", "search higher with --rates"):
        assert words in done.stdout


WRONG = {
    "target": ("{cap} --target 1", "--target"),
    "target of zero": ("{cap} --target 0", "--target"),
    "tolerance": ("{cap} --tolerance 0", "--tolerance"),
    "rates": ("{cap} --rates 5", "--rates", "LO:HI"),
    "rates turned round": ("{cap} --rates 5:1", "--rates"),
    "rates that are no numbers": ("{cap} --rates a:b", "--rates"),
    "rates of nearly zero": ("{cap} --rates 1e-300:1", "--rates", "1e-06"),
    "a trace that comes at once": ("capacity --trace {tmp}/t0.csv --policy vllm {on} --num-requests 2", "no rate to"),
    "no processes": ("{cap} --jobs 0", "--jobs"),
    "figure": ("{cap} --figure {tmp}/c.gif", "--figure", ".svg"),
    "figure in no directory": ("{cap} --figure {tmp}/no/c.svg", "--figure"),
    "json in no directory": ("{cap} --json {tmp}/no/c.json", "--json"),
    "resume of nothing": ("{cap} --resume", "--resume", "--out"),
    "out is a file": ("{cap} --out {tmp}/file", "--out"),
    "out holds a search": ("{cap} --out {tmp}/old", "--out", "--resume"),
    "resume of another search": ("{cap} --out {tmp}/old --resume", "--resume", "another"),
    "unknown scenario": ("capacity --scenario all,x --policy vllm {on}", "'all'"),
    "unknown policy": ("capacity --scenario all --policy magic {on}", "'magic'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(what: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "t0.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n0,10,5\n")
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / "capacity.jsonl"
    old.write_text('{"kind":"header","schema":1,"question":{}}\n')
    before = old.read_text()
    command, *says = WRONG[what]
    cap = f"capacity --scenario coder --policy vllm {ON.replace('--tolerance 0.2', '')}"
    monkeypatch.setattr(sys, "argv", ["sloguard", *command.format(on=ON, cap=cap, tmp=tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert all(word in shown.err for word in says), shown.err
    assert old.read_text() == before
