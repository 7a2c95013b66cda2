"""Per-request promises."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.slo import NO_SLO, Judgement, StageSLO, worst
from timelines import SECONDS

MET, MISSED, UNKNOWN = Judgement.MET, Judgement.MISSED, Judgement.UNKNOWN


@pytest.mark.parametrize("judgements", [list(c) for n in range(4) for c in itertools.product(Judgement, repeat=n)])
def test_worst_is_missed_before_unknown_before_met(judgements):
    rank = {MET: 0, UNKNOWN: 1, MISSED: 2}
    assert worst(iter(judgements)) is max(judgements, key=rank.__getitem__, default=MET)


@pytest.mark.parametrize("name", ["ttft_s", "tpot_s", "e2el_s", "ttft_slowdown"])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_is_a_positive_number(name, limit):
    with pytest.raises(ValueError, match=name):
        StageSLO(**{name: limit})


def test_a_first_token_has_one_limit():
    with pytest.raises(ValueError, match="not both"):
        StageSLO(ttft_s=1.0, ttft_slowdown=3.0)


@given(SECONDS, SECONDS, st.none() | SECONDS, st.none() | SECONDS)
def test_a_slowdown_resolves_to_its_seconds(slowdown, zero_load_s, tpot_s, e2el_s):
    resolved = StageSLO(tpot_s=tpot_s, e2el_s=e2el_s, ttft_slowdown=slowdown).resolve(zero_load_s)
    assert resolved == StageSLO(slowdown * zero_load_s, tpot_s, e2el_s)
    assert resolved.resolve(zero_load_s) == resolved


def test_no_slowdown_is_left_as_it_is():
    for slo in (NO_SLO, StageSLO(ttft_s=1.0)):
        assert slo.resolve(0.3) is slo
