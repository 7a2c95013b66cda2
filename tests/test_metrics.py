"""Figures of a run against definitions computed a second way, from plain lists."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.contract import Metric, judge_request, samples_s
from sloguard.metrics import DISTS, ClassSummary, Dist, Summary, summarise
from sloguard.request import End
from sloguard.slo import Judgement, StageSLO, TpotRule
from timelines import RUNS, timeline

RULES = st.sampled_from(TpotRule)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200))
def test_a_distribution_is_numpys(values):
    dist = Dist.of(np.array(values))
    assert dist.n == len(values)
    assert dist.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12)
    for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("max", 100)):
        assert getattr(dist, name) == pytest.approx(np.percentile(values, q), rel=1e-9, abs=1e-12)
    assert all(type(getattr(dist, f.name)) is (int if f.name == "n" else float) for f in fields(Dist))


def test_of_nothing_there_is_no_figure():
    assert Dist.of(np.empty(0)) == Dist(0, None, None, None, None, None, None)


def test_an_empty_run_has_no_summary():
    with pytest.raises(ValueError, match="nothing was offered"):
        summarise([])


@settings(max_examples=40)
@given(RUNS, RULES)
def test_a_summary_by_its_definitions(run, rule):
    s = summarise(run, rule)
    done = [t for t in run if t.end is End.COMPLETED]
    good = [t for t in done if judge_request(t, rule) is Judgement.MET]
    refused = [t for t in run if t.end is End.REFUSED]
    seen_s = [x for t in run for x in [t.due_s, *t.token_s.tolist(), t.ended_s or 0.0]]
    duration_s = max(seen_s) - min(t.due_s for t in run)

    assert (s.offered, s.completed, s.met) == (len(run), len(done), len(good))
    assert s.ends == {e.value: n for e in End if (n := sum(t.end is e for t in run))}
    assert s.duration_s == pytest.approx(duration_s, abs=2e-9)
    assert s.prompt_tokens == 10 * len(done)
    assert s.output_tokens == sum(len(t.token_s) for t in done)
    assert s.request_throughput * s.duration_s == pytest.approx(len(done))
    assert s.output_throughput * s.duration_s == pytest.approx(s.output_tokens)
    assert s.request_goodput * s.duration_s == pytest.approx(len(good))
    assert s.token_goodput * s.duration_s == pytest.approx(sum(len(t.token_s) for t in good))
    assert s.attainment == len(good) / len(run)
    if len(refused) == len(run):
        assert s.attainment_admitted is None
    else:
        assert s.attainment_admitted == len(good) / (len(run) - len(refused))
    assert s.tpot_rule == rule.value
    assert sum(s.errors.values()) == sum(bool(t.error) for t in run)
    for metric in Metric:
        assert getattr(s, f"{metric}_s") == Dist.of(samples_s(run, metric))


@settings(max_examples=40)
@given(RUNS, RULES)
def test_goodput_never_passes_throughput_nor_attainment_one(run, rule):
    s = summarise(run, rule)
    assert 0 <= s.met <= s.completed <= s.offered
    assert s.request_goodput <= s.request_throughput
    assert s.token_goodput <= s.output_throughput
    assert 0 <= s.attainment <= (s.attainment_admitted or 0.0) <= 1 or s.attainment_admitted is None


@settings(max_examples=40)
@given(RUNS, RULES)
def test_classes_part_the_run(run, rule):
    s = summarise(run, rule)
    assert set(s.by_class) == {t.request.slo_class for t in run}
    for name, one in s.by_class.items():
        alone = summarise([t for t in run if t.request.slo_class == name], rule)
        assert one == ClassSummary(
            alone.offered, alone.completed, alone.met, alone.attainment, alone.ttft_s, alone.tpot_s
        )
    assert sum(one.offered for one in s.by_class.values()) == s.offered
    assert sum(one.met for one in s.by_class.values()) == s.met


@settings(max_examples=40)
@given(RUNS, RULES)
def test_a_summary_survives_json(run, rule):
    s = summarise(run, rule)
    text = json.dumps(s.to_json(), allow_nan=False)
    assert Summary.from_json(json.loads(text)) == s


def test_every_distribution_is_read_back_as_one():
    s = summarise([timeline()])
    assert {f.name for f in fields(Summary) if isinstance(getattr(s, f.name), Dist)} == set(DISTS)


def test_the_order_of_requests_does_not_matter():
    run = [timeline([0.1 * i + 0.1 * k for k in range(1, i + 2)], due_s=0.1 * i, id=f"r{i}") for i in range(9)]
    forward, backward = summarise(run).to_json(), summarise(run[::-1]).to_json()
    assert backward.keys() == forward.keys()
    assert json.dumps(backward, sort_keys=True) == json.dumps(forward, sort_keys=True)


def test_figures_of_a_run_worked_by_hand():
    """Four offered over 10 s: one good, one late, one failed halfway, one refused."""
    slo = StageSLO(ttft_s=1.0)
    run = [
        timeline([0.5, 0.6, 0.7], slo=slo, due_s=0.0, id="good"),
        timeline([6.0, 6.5], slo=slo, due_s=4.0, sent_s=4.0, id="late"),
        timeline([8.5, 10.0], slo=slo, due_s=8.0, sent_s=8.0, end=End.FAILED, error="reset", id="failed"),
        timeline([], slo=slo, due_s=9.0, sent_s=9.0, end=End.REFUSED, error="503", id="refused"),
    ]
    s = summarise(run)
    assert s.duration_s == pytest.approx(10.0)
    assert (s.offered, s.completed, s.met) == (4, 2, 1)
    assert (s.request_throughput, s.request_goodput) == pytest.approx((0.2, 0.1))
    assert (s.output_throughput, s.token_goodput) == pytest.approx((0.5, 0.3))
    assert (s.attainment, s.attainment_admitted) == pytest.approx((1 / 4, 1 / 3))
    assert s.ttft_s.n == 2
    assert s.ttft_s.p50 == pytest.approx(1.25)
    assert s.errors == {"reset": 1, "503": 1}
    assert s.ends == {"completed": 2, "failed": 1, "refused": 1}


def test_the_time_that_a_lost_request_hung_is_part_of_the_run():
    """200 served within 5 s and one that hung for a minute: the server was busy for 60 s, not 5."""
    run = [timeline([i * 0.025, i * 0.025 + 0.02], due_s=i * 0.025, id=f"r{i}") for i in range(200)]
    hung = timeline([], due_s=0.0, end=End.TIMED_OUT, ended_s=60.0, id="hung")
    assert summarise(run).request_goodput > 39
    s = summarise([*run, hung])
    assert s.duration_s == 60.0
    assert s.request_goodput == s.request_throughput == pytest.approx(200 / 60)


def test_cutting_a_run_short_raises_no_rate():
    unsent = timeline([], due_s=30.0, sent_s=None, end=End.CANCELLED, ended_s=5.0, id="unsent")
    assert summarise([timeline([1.0]), unsent]).duration_s == 30.0


@pytest.mark.parametrize(("ttft_limit_s", "limited"), [(None, False), (0.05, True), (10.0, False)])
def test_the_runs_own_ttft_limit_says_how_much_lag_is_too_much(ttft_limit_s, limited):
    run = [timeline([i + 0.01], due_s=float(i), sent_s=i + 0.003, id=f"r{i}") for i in range(100)]
    assert summarise(run, ttft_limit_s=ttft_limit_s).client_limited is limited


@pytest.mark.parametrize(
    ("lag_s", "ttft_slo_s", "limited"),
    [
        (0.0049, None, False),
        (0.0051, None, True),
        (0.0051, 10.0, True),  # 5 ms bind before 5 % of 10 s
        (0.0020, 0.05, False),
        (0.0026, 0.05, True),  # 5 % of 50 ms bind before 5 ms
    ],
)
def test_a_run_whose_client_lags_is_marked(lag_s, ttft_slo_s, limited):
    slo = StageSLO(ttft_s=ttft_slo_s)
    run = [timeline([i + 0.01, i + 0.02], due_s=float(i), sent_s=i + lag_s, slo=slo, id=f"r{i}") for i in range(100)]
    s = summarise(run)
    assert s.client_limited is limited
    assert s.queue_delay_s.p99 == pytest.approx(lag_s, abs=1e-9)


def test_what_the_server_counted_as_prompt_goes_before_what_was_planned():
    run = [timeline(prompt_tokens=10), timeline(prompt_tokens=10)]
    object.__setattr__(run[0], "prompt_tokens", 13)
    assert summarise(run).prompt_tokens == 23


def test_a_run_without_duration_divides_by_no_zero():
    s = summarise([timeline([], end=End.FAILED)])
    assert s.duration_s > 0
    assert s.request_throughput == 0
