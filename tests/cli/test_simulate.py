"""`sloguard simulate` as a user runs it."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sloguard import __version__
from sloguard.cli.app import main
from sloguard.sched.policy import POLICIES

ON = "--model Qwen/Qwen2-1.5B --gpu A100-40GB"
SIMULATE = f"simulate --scenario chatbot --policy vllm {ON} --num-requests 20"
OWN = """
from sloguard.sched.fcfs import Fcfs

class Mine(Fcfs):
    def __init__(self, patience: float = 1.0) -> None:
        super().__init__()
"""


def sloguard(command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "import sys; from sloguard.cli.app import main; sys.exit(main())"
    words = [sys.executable, "-P", "-c", code, *shlex.split(command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd)


def rows(command: str, cwd: Path | None = None) -> list[dict]:
    done = sloguard(f"{command} --json -", cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_it_ends_in_tables_and_exit_code_0():
    done = sloguard(f"{SIMULATE} --rate 4 --seeds 2")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "Promises kept (TPOT rule: deadline)",
        "attainment",
        "tokens a step",
        "planner p50 / p99",
        "Simulated",
    ):
        assert words in done.stdout


def test_json_has_a_row_for_each_scenario_policy_and_router(tmp_path: Path):
    out = tmp_path / "rows.json"
    command = f"simulate --scenario chatbot,tool-calling --policy vllm,sarathi:chunk_tokens=256 {ON} --rate 4 --seeds 2"
    done = sloguard(f"{command} --num-requests 20 --replicas 2 --router round-robin,least-tokens --json {out}")
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text())
    found = saved["rows"]
    assert (saved["simulated"], saved["version"]) == (True, __version__)
    assert all("A100-40GB" in row["step_times"] for row in found)
    assert [(row["scenario"], row["policy"], row["router"]) for row in found] == [
        (scenario, policy, router)
        for scenario in ("chatbot", "tool-calling")
        for policy in ("vllm", "sarathi:chunk_tokens=256")
        for router in ("round-robin", "least-tokens")
    ]
    row = found[0]
    for name in ("attainment", "goodput_rps", "goodput_tps", "mean_batch_tokens", "evictions", "planner_p99_ms"):
        assert isinstance(row[name], int | float)
    for name in ("ttft", "tpot", "e2el"):
        assert 0 < row[f"{name}_p50_ms"] <= row[f"{name}_p99_ms"]
    assert (row["seeds"], row["replicas"], row["rate"], row["requests"]) == (2, 2, 4.0, 40)
    assert list(row["classes"]) == ["chatbot"]
    assert set(found[-1]["stages"]) <= {"tool-calling/loop", "tool-calling/final"}
    assert list(tmp_path.iterdir()) == [out]


def test_the_same_command_gives_the_same_figures_but_for_the_planners_time():
    def figures() -> list[dict]:
        noisy = f"{SIMULATE} --rate 8 --noise 0.02 --speculation 0.7:4 --replicas 2 --router power-of-two"
        return [{k: v for k, v in row.items() if not k.startswith("planner")} for row in rows(noisy)]

    assert figures() == figures()


def test_every_policy_of_the_table_and_distserve_run():
    found = rows(f"{SIMULATE.replace('vllm', ','.join([*POLICIES, 'distserve']))} --rate 4 --pools 1:1,2:1")
    assert [row["policy"] for row in found] == [*POLICIES, "distserve 1:1", "distserve 2:1"]
    assert {row["completed"] for row in found} == {20}


def test_ones_own_policy_is_found_in_the_working_directory(tmp_path: Path):
    (tmp_path / "my_policy.py").write_text(OWN)
    (row,) = rows(SIMULATE.replace("vllm", "my_policy:Mine:patience=2") + " --rate 4", tmp_path)
    assert (row["policy"], row["completed"]) == ("my_policy:Mine:patience=2", 20)


SLIPS = """
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.plan import Plan

class Idle:
    def plan(self, now_s, view):
        return Plan({})

class Typo(Fcfs):
    def plan(self, now_s, view):
        return super().plan(now_s, view.limit)
"""


@pytest.mark.parametrize("command", ["simulate", "capacity"])
@pytest.mark.parametrize(
    ("source", "policy", "says"),
    [
        (SLIPS, "Idle", ("s it planned no token although r0/0 waits", "See docs/writing-a-policy.md")),
        (SLIPS, "Typo", ("s it raised AttributeError: 'View' object has no", "slips.py, line 11)")),
        ("def f(:", "Idle", ("SyntaxError", "slips.py, line 1)")),
        ("import json\nimport no_such_module", "Idle", ("No module named 'no_such_module'", "slips.py, line 2)")),
    ],
)
def test_a_mistake_in_ones_own_policy_is_one_line_and_exit_code_2(
    command: str, source: str, policy: str, says: tuple[str, ...], tmp_path: Path
):
    (tmp_path / "slips.py").write_text(source)
    done = sloguard(f"{command} --scenario chatbot --policy slips:{policy} {ON} --num-requests 20", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"sloguard: --policy slips:{policy}: ")
    assert all(words in done.stderr for words in says), done.stderr


def test_a_trace_is_served_as_recorded_or_at_a_rate_with_the_promises_of_a_scenario(tmp_path: Path):
    trace = tmp_path / "trace.csv.gz"
    lines = ["arrival_s,input_tokens,output_tokens", "0,9000,1", *(f"{i},{100 + i},{10 + i}" for i in range(30))]
    trace.write_bytes(gzip.compress("\n".join(lines).encode()))
    command = f"simulate --trace {trace} --policy vllm {ON}"
    (row,) = rows(command)
    assert (row["requests"], row["rate"], row["scenario"]) == (30, None, str(trace))
    assert row["rate_offered"] == pytest.approx(30 / 29)
    (promised,) = rows(f"{command} --scenario coder --rate 5")
    assert (list(promised["classes"]), promised["rate_offered"]) == (["coder"], pytest.approx(5.0))
    assert "too long and left out: 1 of" in sloguard(command).stdout


def test_a_file_of_lengths_is_served_at_a_rate(tmp_path: Path):
    (tmp_path / "len.csv").write_text("input_tokens,output_tokens\n100,20\n200,30\n")
    command = f"simulate --trace {tmp_path}/len.csv --policy vllm {ON} --num-requests 10"
    (row,) = rows(f"{command} --rate 2")
    assert (row["requests"], row["rate_offered"]) == (10, pytest.approx(2.0))
    unstated = sloguard(command)
    assert (unstated.returncode, "State the rate" in unstated.stderr) == (2, True)


@pytest.mark.parametrize(("command", "goes_on"), [("simulate", False), ("tune", True), ("capacity", True)])
def test_only_what_can_go_on_speaks_of_it_when_interrupted(command: str, goes_on: bool, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sloguard.cli.app.app", interrupted)
    monkeypatch.setattr(sys, "argv", ["sloguard", command])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.startswith("sloguard: interrupted."), "--resume" in said) == (130, True, goes_on)


WRONG = {
    "no scenario": ("simulate --policy vllm {on}", "--scenario"),
    "unknown scenario": ("simulate --scenario night --policy vllm {on}", "'night'", "chatbot"),
    "scenario twice": ("simulate --scenario coder,coder --policy vllm {on}", "--scenario"),
    "no such trace": ("simulate --trace {tmp}/none.csv --policy vllm {on}", "none.csv"),
    "broken trace": ("simulate --trace {tmp}/bad.csv --policy vllm {on}", "bad.csv"),
    "trace and two scenarios": (
        "simulate --trace {tmp}/t.csv --scenario chatbot,coder --policy vllm {on}",
        "--scenario",
    ),
    "unknown policy": ("{sim} --policy magic", "--policy", "'magic'", "vllm"),
    "unknown option": ("{sim} --policy sarathi:chunks=3", "'chunks'", "chunk_tokens"),
    "policy class without plan": ("{sim} --policy sloguard.request:Request", "plan"),
    "unknown router": ("{sim} --replicas 2 --router nearest", "--router", "'nearest'", "round-robin"),
    "unknown model": ("simulate --scenario coder --policy vllm --model no/model --gpu H100", "--model", "no/model"),
    "unknown gpu": ("simulate --scenario coder --policy vllm --model Qwen/Qwen2-1.5B --gpu H1", "--gpu", "H100"),
    "rate of zero": ("{sim} --rate 0", "--rate"),
    "rate of nearly zero": ("{sim} --rate 1e-300", "--rate", "1e-06"),
    "rate of a trace that comes at once": ("simulate --trace {tmp}/t0.csv --rate 1 --policy vllm {on}", "--rate = 1.0"),
    "rate that is no number": ("{sim} --rate nan", "--rate"),
    "no seeds": ("{sim} --seeds 0", "--seeds"),
    "no requests": ("{sim} --num-requests 0", "--num-requests"),
    "more requests than memory holds": ("{sim} --num-requests 10000001", "--num-requests = 10000001: not a number"),
    "pools of no policy": ("{sim} --pools 2:1", "--pools = '2:1': no policy here has pools", "distserve"),
    "a link between no pools": ("{sim} --link-gb-s 25", "--link-gb-s = 25.0: no policy here has pools"),
    "a router of one": ("{sim} --router headroom", "--router = 'headroom': one engine", "--replicas"),
    "a picture of one": ("{sim} --stale-ms 5", "--stale-ms = 5.0: one engine"),
    "replicas of pools": ("{sim} --policy distserve --replicas 2", "--replicas = 2: distserve has pools"),
    "a router of pools": ("{sim} --policy distserve --replicas 1 --router headroom", "distserve has pools"),
    "option of distserve": ("{sim} --policy distserve:x=1", "--policy = 'distserve:x=1': distserve has no option"),
    "no replicas": ("{sim} --replicas 0", "--replicas"),
    "pools": ("{sim} --pools 1", "--pools"),
    "pools twice": ("{sim} --pools 1:1,1:1", "--pools", "twice"),
    "pools of too many": ("{sim} --pools 1:9999 --policy distserve", "--pools", "1024"),
    "too many replicas": ("{sim} --replicas 999999999", "--replicas", "1024"),
    "seats beyond a step": ("{sim} --max-num-batched-tokens 64 --max-num-seqs 128", "--max-num-batched-tokens", "128"),
    "a length that nothing has": ("{sim} --max-model-len 2", "--max-model-len = 2"),
    "scenarios beside all": ("simulate --scenario all,chatbot --policy vllm {on}", "alone"),
    "a fraction of a batch": ("{sim} --policy slos-serve:fixed_batch=100.5", "fixed_batch takes no float"),
    "pools of none": ("{sim} --pools 0:1", "--pools"),
    "speculation": ("{sim} --speculation often", "--speculation"),
    "speculation beyond 1": ("{sim} --speculation 1.2", "--speculation"),
    "speculation with too much": ("{sim} --speculation 0.7:4:1:1", "--speculation"),
    "speculation of too many": ("{sim} --speculation 0.7:11", "--speculation", "at most 10"),
    "speculation without drafts": ("{sim} --speculation 0.7:0", "--speculation"),
    "lengths": ("{sim} --lengths guess", "--lengths", "quantile"),
    "tpot rule": ("{sim} --tpot-rule median", "--tpot-rule"),
    "share": ("{sim} --best-effort-share 2", "--best-effort-share"),
    "json in no directory": ("{sim} --json {tmp}/no/dir.json", "--json", "directory"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(what: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "bad.csv").write_text("arrival_s,input_tokens,output_tokens\n0,ten,5\n")
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n")
    (tmp_path / "t0.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n0,10,5\n")
    before = sorted(tmp_path.iterdir())
    command, *says = WRONG[what]
    sim = f"simulate --scenario chatbot {ON}" + ("" if "--policy" in command else " --policy vllm")
    monkeypatch.setattr(sys, "argv", ["sloguard", *command.format(on=ON, sim=sim, tmp=tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert all(word in shown.err for word in says), shown.err
    assert sorted(tmp_path.iterdir()) == before
