"""The figures of a row, from timelines that were made by hand."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from sloguard.contract import judge_request
from sloguard.report.simulate import simulate_report
from sloguard.request import End, Request, Stage, Timeline
from sloguard.sched.job import Tier
from sloguard.sim.replica import ReplicaStats
from sloguard.slo import Judgement, StageSLO, TpotRule
from sloguard.study.choice import Choice
from sloguard.study.sim_results import Ran, simulate_row, stage_timelines
from sloguard.study.sim_spec import SimSpec

SPEC = SimSpec(Choice("p:k=1", "p"), Choice("r", "r"), "m", "g", scenario="loops")
LOOPS = (
    Stage(10, 2, StageSLO(ttft_s=1.0, tpot_s=0.5), "loop"),
    Stage(5, 3, StageSLO(ttft_s=1.0, tpot_s=0.5), "final"),
)


def looped(id: str, token_s: list[float], dues: tuple[float, ...], end: End = End.COMPLETED) -> Timeline:
    request = Request(id, dues[0], LOOPS, "tools")
    return Timeline(request, dues[0], dues[0], np.array(token_s), end, stage_due_s=dues, ended_s=token_s[-1])


GOOD = looped("a", [0.5, 0.9, 1.5, 1.9, 2.2], (0.0, 0.9))
LATE_FINAL = looped("b", [10.5, 10.9, 12.5, 12.9, 13.2], (10.0, 10.9))
CUT = looped("c", [20.5, 20.9, 21.5], (20.0, 20.9), End.TIMED_OUT)


def ran(*timelines: Timeline, **stats: object) -> Ran:
    return Ran(list(timelines), Counter({Tier.PROMISED: 1}), 0, [ReplicaStats(**stats)])


def test_each_stage_is_judged_by_itself():
    judged = [[judge_request(one, TpotRule.DEADLINE) for one in stage_timelines(t)] for t in (GOOD, LATE_FINAL, CUT)]
    met, missed = Judgement.MET, Judgement.MISSED
    assert judged == [[met, met], [met, missed], [met, missed]]
    final = stage_timelines(GOOD)[1]
    assert (final.ttft_s, final.output_tokens, final.request.slo_class) == (pytest.approx(0.6), 3, "tools/final")


def test_a_stage_that_never_began_has_missed():
    never = looped("d", [0.5, 0.9], (0.0,), End.TIMED_OUT)
    first, second = stage_timelines(never)
    assert (first.end, second.end, len(second.token_s)) == (End.COMPLETED, End.TIMED_OUT, 0)


def test_a_row_takes_seeds_together():
    one = ran(GOOD, LATE_FINAL, steps=10, step_tokens=50, evictions=1, plan_s=[0.001, 0.003])
    other = ran(GOOD, CUT, GOOD, GOOD, steps=10, step_tokens=150, plan_s=[0.002])
    row = simulate_row(SPEC, [one, other], 3.0)
    assert (row["policy"], row["scenario"], row["rate"], row["seeds"], row["requests"]) == ("p:k=1", "loops", 3.0, 2, 6)
    assert row["attainment_by_seed"] == [0.5, 0.75]
    assert row["attainment"] == pytest.approx(0.625)
    assert row["goodput_rps"] == pytest.approx((1 / 13.2 + 3 / 21.5) / 2)
    assert (row["mean_batch_tokens"], row["evictions"], row["promised"]) == (10.0, 1, 2)
    assert row["planner_p50_ms"] == pytest.approx(2.0)
    assert row["ttft_p50_ms"] == pytest.approx(500.0)
    assert row["classes"]["tools"]["offered"] == 6
    assert row["stages"]["tools/loop"]["attainment"] == 1.0
    assert row["stages"]["tools/final"]["attainment"] == pytest.approx(4 / 6)
    assert row["stages"]["tools/final"]["ttft_p50_ms"] == pytest.approx(600.0)


def test_the_tables_name_what_tells_rows_apart():
    rows = [simulate_row(SPEC, [ran(GOOD, LATE_FINAL)], None)]
    console = Console(width=160, file=io.StringIO())
    console.print(simulate_report(rows, TpotRule.DEADLINE, ["a note"]))
    text = console.file.getvalue()
    for words in ("p:k=1", "50.0%", "tools/loop", "tools/final", "a note", "TPOT rule: deadline"):
        assert words in text
    assert "router" not in text, "there is one"
