"""`sloguard capacity` as a user runs it, interrupts it and goes on with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sloguard import __version__
from sloguard.cli.app import main
from sloguard.cli.capacity import check_same, header_of
from sloguard.cli.sim_options import SimOptions
from sloguard.errors import SpecError
from sloguard.study.capacity import Question
from sloguard.study.jsonl import JsonLog

ON = "--model Qwen/Qwen2-1.5B --gpu A100-40GB --num-requests 60 --tolerance 0.2"
CAPACITY = f"capacity --scenario coder,tool-calling --policy vllm,edf {ON}"
LONG = CAPACITY.replace("--num-requests 60 --tolerance 0.2", "--num-requests 250 --tolerance 0.05")  # to be interrupted
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
    saved = json.loads(rows_file.read_text())
    rows = saved["rows"]
    assert (saved["simulated"], saved["version"]) == (True, __version__)
    assert json.loads((out / "capacity.json").read_text())["rows"] == rows
    assert [(row["scenario"], row["policy"]) for row in rows] == [
        (scenario, policy) for scenario in ("coder", "tool-calling") for policy in ("vllm", "edf")
    ]
    for row in rows:
        low, high = row["bracket"]
        assert 0 < row["capacity_per_gpu"] == low < high <= 1.2 * low
        assert f"Step times: {row['step_times']}." in done.stdout
        assert (row["seeds"], row["target"], row["model"], row["gpu"]) == (1, 0.9, "Qwen/Qwen2-1.5B", "A100-40GB")
    assert figure.read_text().startswith("<?xml")
    assert "Simulated engines; 1 seed; step times:" in figure.read_text()
    lines = (out / "capacity.jsonl").read_text().splitlines()
    assert len(lines) == 1 + sum(len(row["probes"]) for row in rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one uninterrupted search in one process finds."""
    out = tmp_path_factory.mktemp("whole") / "rows.json"
    assert sloguard(f"{LONG} --jobs 1 --json {out}").returncode == 0
    return out.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_was_interrupted_goes_on_to_the_same_result_and_leaves_no_process(
    how: signal.Signals, tmp_path: Path, whole: bytes
):
    out = tmp_path / "out"
    words = [sys.executable, "-c", CODE, *shlex.split(f"{LONG} --jobs 2 --out {out}")]
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
    resumed = sloguard(f"{LONG} --jobs 1 --out {out} --resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after" in resumed.stderr
    assert (out / "capacity.json").read_bytes() == whole


def test_rates_that_nothing_serves_are_said_by_the_exit_code():
    done = sloguard(f"capacity --scenario coder --policy vllm {ON} --rates 400:500 --json -")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["rows"][0]["bracket"] == [0.0, 400.0]


def test_an_open_end_reads_the_same_above_the_table_as_in_it(tmp_path: Path):
    """And a file of lengths comes at any rate, promised what a scenario promises."""
    (tmp_path / "len.csv").write_text("input_tokens,output_tokens\n100,20\n200,30\n")
    done = sloguard(f"capacity --trace {tmp_path}/len.csv --scenario coder --policy vllm {ON} --rates 1:2 --jobs 1")
    assert done.returncode == 0, done.stderr
    assert ">= 2.00" in done.stderr
    for words in (">= 2.00", "search higher with --rates"):
        assert words in done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search leaves that was cut off before its first rate."""
    out = tmp_path_factory.mktemp("recorded")
    log, specs = JsonLog(out / "capacity.jsonl"), ASKED.rows()
    log.append_header(header_of(specs, Question(0.9, 1, 0.03)))
    return out


ASKED = SimOptions(
    policy="vllm,distserve", model="Qwen/Qwen2-1.5B", gpu="A100-40GB", scenario="coder", num_requests=60, replicas=2
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_requests": 200}, "--num-requests = 200: the search in {out} has 60. Resume with that, or"),
        ({"num_requests": None}, "--num-requests: the search in {out} has 60."),
        ({"scenario": "coder,chatbot"}, "--scenario = 'coder,chatbot': the search in {out} has 'coder'."),
        ({"policy": "distserve,vllm"}, "--policy = 'distserve,vllm': the search in {out} has 'vllm,distserve'."),
        ({"policy": "vllm:max_num_seqs=8,distserve"}, "--policy = 'vllm:max_num_seqs=8,distserve': "),
        ({"pools": "2:1"}, "--pools = 'None,2:1': the search in {out} has 'None,1:1'."),
        ({"router": "headroom"}, "--router = "),
        ({"link_gb_s": 64.0}, "--link-gb-s = 64.0: the search in {out} has 300.0."),
        ({"stale_ms": 5.0}, "--stale-ms = 5.0: the search in {out} has 0.0."),
        ({"speculation": "0.7:4:2.5"}, "--speculation = '0.7:4:2.5': the search in {out} has none. Resume without, or"),
        ({"async_lag": True}, "--async-lag = True: the search in {out} has False."),
    ],
)
def test_a_search_goes_on_with_the_same_rows_or_the_flag_that_differs_is_named(changes, says, recorded: Path):
    question, log = Question(0.9, 1, 0.03), JsonLog(recorded / "capacity.jsonl")
    check_same(log, header_of(ASKED.rows(), question))
    with pytest.raises(SpecError) as error:
        check_same(log, header_of(replace(ASKED, **changes).rows(), question))
    assert str(error.value).startswith(says.format(out=repr(str(recorded))))


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question(0.8, 1, 0.03), "--target = 0.8: "),
        (Question(0.9, 2, 0.03), "--seeds = 2: "),
        (Question(0.9, 1, 0.1), "--tolerance = 0.1: "),
        (Question(0.9, 1, 0.03, (1.0, 5.5)), "--rates = '1:5.5': "),
    ],
)
def test_a_search_goes_on_with_the_same_question_or_the_flag_that_differs_is_named(question, says, recorded: Path):
    with pytest.raises(SpecError, match=re.escape(says)):
        check_same(JsonLog(recorded / "capacity.jsonl"), header_of(ASKED.rows(), question))


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
    "resume of another search": ("{cap} --out {tmp}/old --resume", "--resume", "sloguard None", "another --out"),
    "a trace without promises": (
        "capacity --trace {tmp}/len.csv --policy vllm {on}",
        "len.csv': promises nothing, so every rate passes. Add --scenario S",
    ),
    "promises to nobody": ("{cap} --best-effort-share 1", "--best-effort-share = 1.0: promises nothing"),
    "unknown scenario": ("capacity --scenario all,x --policy vllm {on}", "'all'"),
    "unknown policy": ("capacity --scenario all --policy magic {on}", "'magic'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(what: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "t0.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n0,10,5\n")
    (tmp_path / "len.csv").write_text("input_tokens,output_tokens\n100,20\n")
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
