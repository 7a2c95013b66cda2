"""The real vLLM scheduler under sloguard's policies, on a virtual clock and without a model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paths import REPO
from sloguard.sched.policy import POLICIES
from vllm_cases import OLDEST_PYTHON, VLLM_PYTHON, random_case

CASES = 20
STOCK = {"policy": "fcfs", "plugin": False}

WAYS = pytest.mark.parametrize(
    ("python", "asynchronous"),
    [(VLLM_PYTHON, False), (VLLM_PYTHON, True), (OLDEST_PYTHON, True)],
    ids=["0.32", "0.32-async", "0.28-async"],
)
pytestmark = pytest.mark.vllm


def cases(seed: int, n: int = CASES, **fixed: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [random_case(rng) | fixed for _ in range(n)]


def drive(
    given: list[dict[str, Any]], *asked: dict[str, Any], python: Path = VLLM_PYTHON
) -> list[list[dict[str, Any]]]:
    """Of each that is asked, an answer for each case; everything has been served, and nothing is left behind."""
    if not python.exists():
        pytest.skip(f"no Python with vLLM at {python}: make test-vllm installs it")
    run = subprocess.run(
        [
            str(python),
            str(Path(__file__).with_name("drive_scheduler.py")),
            json.dumps([{"async": False} | one for one in asked]),
        ],
        input=json.dumps(given),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO / "src"), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert len(lines) == len(asked), run.stderr[-3000:]
    found = [json.loads(line.removeprefix("ANSWERS ")) for line in lines]
    for one, answers in zip(asked, found, strict=True):
        for case, answer in zip(given, answers, strict=True):
            expected = {str(i): row["output"] for i, row in enumerate(case["requests"])}
            stays = [name for name in expected if not (one.get("hang_ups") and int(name) % 3 == 0)]
            assert [answer["tokens"][name] for name in stays] == [expected[name] for name in stays], one
            assert answer["left"].get("jobs", 0) == answer["left"]["blocks"] == 0, one
    return found


def decisions(answers: list[dict[str, Any]]) -> list[Any]:
    return [answer["decisions"] for answer in answers]


@WAYS
def test_vllms_policy_in_the_plugin_decides_as_vllm(python: Path, asynchronous: bool):
    stock = {"policy": "fcfs", "plugin": False, "async": asynchronous}
    plugin = {"policy": "vllm", "plugin": True, "async": asynchronous}
    theirs, ours = drive(cases(1, enable_prefix_caching=False), stock, plugin, python=python)
    assert decisions(ours) == decisions(theirs)
    assert sum(answer["left"]["planned"] for answer in ours) > 3_000
    assert sum(answer["left"]["faults"] for answer in ours) == 0


def test_with_a_prefix_cache_only_blocks_that_are_shared_within_a_step_are_seen_late():
    plugin = {"policy": "vllm", "plugin": True}
    theirs, ours = map(decisions, drive(cases(2, enable_prefix_caching=True), STOCK, plugin))
    assert sum(a == b for a, b in zip(theirs, ours, strict=True)) >= 0.9 * CASES


@WAYS
def test_every_policy_serves_everything_inside_vllm(python: Path, asynchronous: bool):
    promises = {"slo_classes": {"tight": {"ttft_ms": 50, "tpot_ms": 2}}, "default_class": "tight"}
    asked = [{"policy": name, "plugin": True, "async": asynchronous, "options": promises} for name in POLICIES]
    for one, answers in zip(asked, drive(cases(3, 4), *asked, python=python), strict=True):
        for answer in answers:
            assert answer["left"]["planned"] > 0, one
            assert answer["left"]["faults"] == answer["left"]["steps in flight"] == 0, one


def test_where_the_policy_fails_vllm_schedules_by_itself():
    broken = {"policy": "broken_policies:Raises", "plugin": True}
    theirs, answers = drive(cases(4, 10, enable_prefix_caching=False), STOCK, broken)
    assert decisions(answers) == decisions(theirs)
    assert all(answer["left"]["faults"] > 0 < answer["left"]["planned"] for answer in answers)


@pytest.mark.parametrize("kind", ["EvictsWhoWaits", "GivesHalfTokens"])
def test_a_plan_that_breaks_the_rules_is_not_carried_out(kind: str):
    broken = {"policy": f"broken_policies:{kind}", "plugin": True}
    theirs, answers = drive(cases(6, 6, enable_prefix_caching=False), STOCK, broken)
    assert decisions(answers) == decisions(theirs)
    assert sum(answer["left"]["faults"] for answer in answers) > 100


@WAYS
@pytest.mark.parametrize("more", [{"hang_ups": True}, {"adapters": 3}, {"hang_ups": True, "adapters": 2}])
def test_clients_may_hang_up_and_adapters_take_turns(python: Path, asynchronous: bool, more: dict[str, Any]):
    promises = {"slo_classes": {"tight": {"ttft_ms": 50, "tpot_ms": 2}}, "default_class": "tight"}
    asked = {"policy": "sloguard", "plugin": True, "async": asynchronous, "options": promises} | more
    for answer in drive(cases(7, 10), asked, python=python)[0]:
        assert answer["left"]["planned"] > 0
        assert answer["left"]["faults"] == 0


def test_a_slow_policy_is_asked_less_and_less():
    slow = {"policy": "broken_policies:Slow", "plugin": True, "options": {"planner_budget_ms": 1.0}}
    theirs, answers = drive(cases(5, 4, enable_prefix_caching=False), STOCK, slow)
    assert decisions(answers) == decisions(theirs)
    for answer in answers:
        assert answer["left"]["planned"] == 0
        assert 0 < answer["left"]["overruns"] <= 10 < answer["left"]["rested"]
