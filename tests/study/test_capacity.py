"""Many searches at once equal one after the other, one that was interrupted, and one that never stops a run early."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from sloguard.contract import judge_request
from sloguard.errors import LogError, PolicyError, WorkerLost
from sloguard.sim.capacity import drained
from sloguard.slo import Judgement
from sloguard.study.capacity import Capacity, Probe, Question, find_capacities, probe, to_json
from sloguard.study.choice import Choice
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import requests_of, run

SPEC = SimSpec(
    policy=Choice("vllm", "vllm"),
    router=Choice("round-robin", "round-robin"),
    model="Qwen/Qwen2-1.5B",
    gpu="A100-40GB",
    scenario="coder",
    num_requests=60,
)
ROWS = [replace(SPEC, scenario=scenario) for scenario in ("chatbot", "coder")]
QUESTION = Question(target=0.9, seeds=2, tolerance=0.2)


@pytest.fixture(scope="module")
def serial() -> list[Capacity]:
    return find_capacities(ROWS, QUESTION)


def test_processes_change_nothing(serial):
    assert find_capacities(ROWS, QUESTION, jobs=2) == serial
    assert [c.spec for c in serial] == ROWS
    for capacity in serial:
        assert capacity.bracket.found
        assert 0 < capacity.per_gpu < capacity.bracket.high <= 1.2 * capacity.per_gpu


@pytest.mark.parametrize("kept", [1, 7, 1000])
def test_a_search_that_goes_on_equals_one_that_was_not_interrupted(serial, kept):
    record = [one for capacity in serial for one in capacity.probes][:kept]
    again: list[Probe] = []
    known = {(one.row, one.rate_per_gpu): Probe.from_json(asdict(one)) for one in record}
    assert find_capacities(ROWS, QUESTION, known=known, on_probe=again.append) == serial
    assert [*record, *again] == [one for capacity in serial for one in capacity.probes]


def test_stopping_early_loses_nothing(serial):
    """Every rate that was tried is judged as by runs to the end."""
    for capacity in serial:
        for one in capacity.probes:
            met = total = 0
            steady = True
            for seed in range(QUESTION.seeds):
                requests = requests_of(capacity.spec, one.rate_per_gpu, seed).requests
                timelines = run(capacity.spec, requests, seed).timelines
                met += sum(judge_request(t, SPEC.tpot_rule) is Judgement.MET for t in timelines)
                total += len(timelines)
                steady &= drained(timelines)
            assert one.passed(QUESTION.target) == (met >= QUESTION.target * total and steady)
            assert one.attainment >= met / total
            if one.passed(QUESTION.target):
                assert one.attainment == met / total


def test_a_rate_that_nobody_could_serve_ends_with_the_first_seed():
    hopeless = probe(SPEC, 500.0, replace(QUESTION, seeds=3))
    assert (hopeless.ended_early, hopeless.drained, hopeless.passed(0.9)) == (True, None, False)
    assert hopeless.requests == 60


def test_a_backlog_ends_a_rate_with_the_seeds_that_were_not_asked():
    """All promises are kept, for there are none, but not all is begun 20 s after the last request came."""
    jammed = replace(SPEC, scenario="chatbot", best_effort_share=1.0, num_requests=600, max_num_seqs=1)
    one = probe(jammed, 500.0, replace(QUESTION, seeds=3))
    assert (one.drained, one.ended_early, one.requests, one.attainment) == (False, True, 600, 1.0)
    last = probe(jammed, 500.0, replace(QUESTION, seeds=1))
    assert (last.drained, last.ended_early) == (False, False)


WORSE = """
import os, signal
from sloguard.errors import SpecError
from sloguard.sched.fcfs import Fcfs

class Refuses(Fcfs):
    def plan(self, now_s, view):
        raise SpecError("--policy", "Refuses", "it refuses", "Take another.")

class Dies(Fcfs):
    def plan(self, now_s, view):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("policy", "error", "says"),
    [("Refuses", PolicyError, "Refuses.*it refuses. Take another"), ("Dies", WorkerLost, "was killed.*--resume")],
)
def test_what_ends_a_process_of_the_search_is_an_error_of_one_line(policy, error, says, tmp_path, monkeypatch):
    (tmp_path / "worse_policies.py").write_text(WORSE)
    monkeypatch.syspath_prepend(tmp_path)
    own = Choice(policy, f"worse_policies:{policy}")
    with pytest.raises(error, match=says) as raised:
        find_capacities([replace(SPEC, policy=own)], QUESTION, jobs=2)
    assert "\n" not in str(raised.value)


def test_a_row_says_what_was_found(serial):
    row = to_json(serial[0], QUESTION)
    assert (row["scenario"], row["policy"], row["router"]) == ("chatbot", "vllm", "round-robin")
    assert row["capacity_per_gpu"] == row["bracket"][0] == serial[0].per_gpu
    assert row["attainment"] >= 0.9
    assert [p["rate_per_gpu"] for p in row["probes"]] == [p.rate_per_gpu for p in serial[0].probes]


def test_an_open_bracket_is_null():
    within = replace(QUESTION, rates=(0.001, 0.002))
    (found,) = find_capacities([SPEC], within)
    assert to_json(found, within)["bracket"] == [0.002, None]
    beyond = replace(QUESTION, rates=(400.0, 500.0))
    (none,) = find_capacities([SPEC], beyond)
    row = to_json(none, beyond)
    assert (row["capacity_per_gpu"], row["bracket"], row["attainment"]) == (0.0, [0.0, 400.0], None)


def test_rates_are_per_gpu():
    """Twice the engines under twice the load, which comes without bursts: about the same rate each."""
    steady = replace(SPEC, scenario="chatbot")
    (one,) = find_capacities([replace(steady, num_requests=100)], QUESTION)
    (two,) = find_capacities([replace(steady, num_requests=200, replicas=2)], QUESTION)
    assert 0.5 < two.per_gpu / one.per_gpu < 2


def test_a_record_without_a_field_is_an_error():
    with pytest.raises(LogError, match="rate_per_gpu"):
        Probe.from_json({"row": "x"})
