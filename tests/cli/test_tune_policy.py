"""`sloguard tune --policy`: the scheduler in every trial, its knobs in the space, and what the user is told to run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sloguard.cli.options import read_slo
from sloguard.plugins.options import Options
from sloguard.sched.policy import POLICIES
from sloguard.space.policies import of_policy, policy_knobs
from sloguard.study.choice import read_choices
from sloguard.trial import Config

SIM = "tune --engine sim --gpu A100-40GB --model Qwen/Qwen2-1.5B --num-requests 60 --budget 4 --seed 1 --confirm 0"
PROMISES = "--slo-ttft-p99 500 --slo-itl-p99 100 --slo-tpot-p99 80"


def sloguard(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sloguard", *shlex.split(command)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("policy") / "study"
    done = sloguard(f"{SIM} {PROMISES} --policy sloguard:busy=0.9 --out {out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_trial_tunes_the_policy_beside_the_engine(study: tuple[Path, str]):
    header, *trials = [json.loads(line) for line in (study[0] / "study.jsonl").read_text().splitlines()]
    assert header["spec"]["policy"] == header["engine"]["policy"] == "sloguard:busy=0.9"
    configs = [trial["config"] for trial in trials[1:]]
    assert all({"policy.full", "policy.patience", "max_num_seqs"} <= config.keys() for config in configs)
    assert not any({"policy.busy", "scheduling_policy"} & config.keys() for config in configs)


def test_the_best_can_be_served_as_it_stands(study: tuple[Path, str]):
    (line,) = [line for line in study[1].splitlines() if line.startswith("Apply it: ")]
    words = shlex.split(line.removeprefix("Apply it: "))
    assert words[:2] == ["sloguard", "serve"]
    (choice,) = read_choices(words[words.index("--policy") + 1], "--policy")
    choice.make(POLICIES, "--policy", "plan")
    assert dict(choice.options)["busy"] == 0.9
    slo = read_slo("--default-slo", words[words.index("--default-slo") + 1])
    assert (slo.ttft_s, slo.tpot_s) == (0.5, 0.08)
    best = yaml.safe_load((study[0] / "best.yaml").read_text())
    options = Options.read(json.loads(best["additional-config"]))
    assert (options.policy, options.default_class) == ("sloguard", "default")
    assert options.classes["default"] == slo
    assert not any(name.startswith("policy.") for name in best)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (f"{PROMISES} --policy fastest", "--policy = 'fastest'"),
        (f"{PROMISES} --policy sloguard:busy=7", "--policy = 'sloguard:busy=7'"),
        (f"{PROMISES} --policy vllm,sloguard", "is more than one"),
        ("--slo-latency-p99 5000 --policy sloguard", "end-to-end limit alone"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(more: str, said: str, tmp_path: Path):
    done = sloguard(f"{SIM} {more} --out {tmp_path / 'study'}")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_takes_whatever_its_knobs_propose(name: str):
    for knob in policy_knobs(name):
        for value in knob.outermost() if not hasattr(knob, "choices") else knob.values():
            config, options = of_policy(Config({knob.name: value, "max_num_seqs": 8}))
            assert config == Config({"max_num_seqs": 8})
            text = ":".join([name, *(f"{key}={value}" for key, value in options.items())])
            read_choices(text, "--policy")[0].make(POLICIES, "--policy", "plan")
