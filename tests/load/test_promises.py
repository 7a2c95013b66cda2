"""What is told is what the scheduler reads."""

from __future__ import annotations

import json

import pytest

from sloguard.errors import SpecError
from sloguard.load.promises import FIELD, promise_fields
from sloguard.load.prompts import render_stages
from sloguard.load.target import Abilities, Target
from sloguard.request import Request, Stage
from sloguard.sched.asked import read_asked
from sloguard.slo import NO_SLO, StageSLO

PROMISES = (StageSLO(0.4, 0.05), StageSLO(ttft_s=4.0), StageSLO(tpot_s=0.12), NO_SLO)


@pytest.mark.parametrize("slo", PROMISES)
def test_the_scheduler_reads_what_was_promised(slo: StageSLO):
    told = promise_fields(Request("a", 0.0, (Stage(8, 4, slo),)), 0)[FIELD]
    asked = read_asked(told, {"default": StageSLO(1.0, 1.0)}, "default")
    assert asked.slo == slo
    assert asked.best_effort is (slo == NO_SLO)


def test_each_stage_tells_its_own():
    request = Request("a", 0.0, tuple(Stage(8, 4, slo) for slo in PROMISES))
    payloads = render_stages(Target("http://h", "m"), Abilities(), request, 1, promise_fields)
    told = [json.loads(payload.partition(b"\r\n\r\n")[2])[FIELD] for payload in payloads]
    assert [read_asked(fields, {}, None).slo for fields in told] == list(PROMISES)


@pytest.mark.parametrize("slo", [StageSLO(0.4, e2el_s=9.0), StageSLO(ttft_slowdown=3.0)])
def test_a_promise_without_a_field_is_refused(slo: StageSLO):
    with pytest.raises(SpecError, match="--send-slos"):
        promise_fields(Request("a", 0.0, (Stage(8, 4, slo),)), 0)
