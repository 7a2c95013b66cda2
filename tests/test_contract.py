"""Judging requests and runs, against the definitions of docs/measuring.md spelt out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.contract import Check, Contract, Limit, Metric, judge_request, percentile, samples_s
from sloguard.request import End, Request, Stage, Timeline
from sloguard.slo import Judgement, StageSLO, TpotRule
from timelines import RUNS, SECONDS, timeline, timelines

MET, MISSED, UNKNOWN = Judgement.MET, Judgement.MISSED, Judgement.UNKNOWN
LOST = [end for end in End if end is not End.COMPLETED]
LIMITS = st.builds(Limit, st.sampled_from(Metric), st.sampled_from([0, 50, 90, 99, 99.9, 100]), SECONDS)


# Percentiles


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100), st.floats(0, 100))
def test_percentiles_are_numpys(values, q):
    assert percentile(np.sort(values), q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 10), max_size=20), st.integers(1, 20), st.floats(0, 100))
def test_lost_requests_make_a_percentile_finite_or_infinite_never_nan(values, lost, q):
    everything = np.sort([*values, *[np.inf] * lost])
    measured = percentile(everything, q)
    assert not math.isnan(measured)
    position = (len(everything) - 1) * q / 100
    assert math.isinf(measured) == (position > len(values) - 1)


# Samples


@settings(max_examples=40)
@given(RUNS)
def test_samples_are_of_completed_requests_only(run):
    done = [t for t in run if t.end is End.COMPLETED]
    assert samples_s(run, Metric.TTFT).tolist() == [t.token_s[0] - t.due_s for t in done]
    assert samples_s(run, Metric.E2EL).tolist() == [t.token_s[-1] - t.due_s for t in done]
    tpot_s = [(t.token_s[-1] - t.token_s[0]) / (len(t.token_s) - 1) for t in done if len(t.token_s) > 1]
    assert samples_s(run, Metric.TPOT).tolist() == tpot_s
    gaps_s = [b - a for t in done for a, b in zip(t.token_s, t.token_s[1:], strict=False) if b > a]
    assert samples_s(run, Metric.ITL).tolist() == gaps_s


# One request


@pytest.mark.parametrize("end", LOST)
def test_what_did_not_complete_has_missed_even_without_a_promise(end):
    assert judge_request(timeline(end=end)) is MISSED


def test_without_a_promise_what_completed_has_met():
    assert judge_request(timeline()) is MET


def test_completed_without_a_token_is_unknown():
    assert judge_request(timeline([], slo=StageSLO(ttft_s=1.0))) is UNKNOWN
    assert judge_request(timeline([])) is UNKNOWN


@pytest.mark.parametrize("rule", TpotRule)
def test_one_token_has_no_pace_to_miss(rule):
    assert judge_request(timeline([5.0], slo=StageSLO(tpot_s=1e-9)), rule) is MET


def test_an_unresolved_slowdown_is_unknown():
    assert judge_request(timeline(slo=StageSLO(ttft_slowdown=3.0))) is UNKNOWN


@pytest.mark.parametrize(
    ("slo", "judged"),
    [
        (StageSLO(ttft_s=0.5), MET),
        (StageSLO(ttft_s=0.499), MISSED),
        (StageSLO(e2el_s=1.5), MET),
        (StageSLO(e2el_s=1.499), MISSED),
        (StageSLO(tpot_s=0.25), MET),
        (StageSLO(tpot_s=0.249), MISSED),
        (StageSLO(ttft_s=0.5, tpot_s=0.25, e2el_s=1.5), MET),
        (StageSLO(ttft_s=0.5, tpot_s=0.25, e2el_s=1.4), MISSED),
    ],
)
def test_each_limit_is_kept_at_and_missed_beyond_it(slo, judged):
    assert judge_request(timeline([10.5, 10.625, 11.0, 11.25, 11.5], due_s=10.0, slo=slo)) is judged


@given(timelines())
def test_the_mean_and_gap_rules_by_definition(t: Timeline):
    slo = t.request.stages[0].slo
    if t.end is not End.COMPLETED:
        assert judge_request(t) is MISSED
        return
    kept = [
        slo.ttft_s is None or t.token_s[0] - t.due_s <= slo.ttft_s,
        slo.e2el_s is None or t.token_s[-1] - t.due_s <= slo.e2el_s,
    ]
    gaps_s = np.diff(t.token_s)
    mean_s = (t.token_s[-1] - t.token_s[0]) / len(gaps_s) if len(gaps_s) else 0.0
    longest_s = gaps_s.max() if len(gaps_s) else 0.0
    for rule, pace_s in ((TpotRule.MEAN, mean_s), (TpotRule.MAX_GAP, longest_s)):
        expected = all([*kept, slo.tpot_s is None or pace_s <= slo.tpot_s])
        assert judge_request(t, rule) is (MET if expected else MISSED)


def late_by_deadline(t: Timeline, slo: StageSLO) -> bool:
    """The cumulative deadline as a loop: every tenth token, and the last."""
    assert slo.tpot_s is not None
    first_s = float(t.token_s[0])
    start_s = max(t.due_s + (slo.ttft_s or 0.0), first_s)
    checked = {*range(10, len(t.token_s), 10), len(t.token_s) - 1} - {0}
    return any(t.token_s[k] - start_s > k * slo.tpot_s * 1.05 for k in checked)


@given(st.lists(st.floats(1e-3, 0.2), min_size=2, max_size=60), st.floats(0.01, 0.2), st.none() | st.floats(0.5, 5))
def test_the_deadline_rule_by_definition(gaps_s, tpot_s, ttft_s):
    slo = StageSLO(ttft_s=ttft_s, tpot_s=tpot_s)
    t = timeline((3.0 + np.cumsum(gaps_s)).tolist(), due_s=3.0, slo=slo)
    first_late = ttft_s is not None and t.token_s[0] - 3.0 > ttft_s
    expected = first_late or late_by_deadline(t, slo)
    assert judge_request(t, TpotRule.DEADLINE) is (MISSED if expected else MET)


def test_an_early_first_token_buys_time_for_a_stall_under_the_deadline_rule_alone():
    # 12 tokens at 0.05 s but for one stall of 0.5 s; the first came 0.9 s before it was due.
    token_s = [0.1 + 0.05 * k + (0.5 if k > 3 else 0.0) for k in range(12)]
    t = timeline(token_s, slo=StageSLO(ttft_s=1.0, tpot_s=0.06))
    assert judge_request(t, TpotRule.DEADLINE) is MET
    assert judge_request(t, TpotRule.MEAN) is MISSED
    assert judge_request(t, TpotRule.MAX_GAP) is MISSED


def test_the_deadline_rule_allows_five_percent():
    for pace_s, judged in ((0.1049, MET), (0.1051, MISSED)):
        t = timeline([pace_s * k for k in range(21)], slo=StageSLO(tpot_s=0.1))
        assert judge_request(t, TpotRule.DEADLINE) is judged


STAGES = (Stage(10, 2, StageSLO(ttft_s=1.0)), Stage(10, 3, StageSLO(ttft_s=1.0, tpot_s=0.125)))


def two_stages(token_s: list[float], stage_due_s: tuple[float, ...]) -> Timeline:
    return Timeline(Request("r", 0.0, STAGES), 0.0, 0.0, np.array(token_s), End.COMPLETED, stage_due_s=stage_due_s)


@pytest.mark.parametrize(
    ("token_s", "dues", "judged"),
    [
        ([0.5, 0.6, 5.5, 5.6, 5.7], (0.0, 5.0), MET),
        ([0.5, 0.6, 6.1, 6.2, 6.3], (0.0, 5.0), MISSED),  # the second stage's first token
        ([1.1, 1.2, 5.5, 5.6, 5.7], (0.0, 5.0), MISSED),  # the first stage's
        ([0.5, 0.6, 5.5, 5.7, 5.9], (0.0, 5.0), MISSED),  # the second stage's pace
        ([0.5, 0.6], (0.0, 5.0), UNKNOWN),  # no token of the second stage
        ([0.5, 0.6, 5.5, 5.6, 5.7], (), UNKNOWN),  # nobody said when the second was due
    ],
)
def test_each_stage_is_held_against_its_own_promise(token_s, dues, judged):
    assert judge_request(two_stages(token_s, dues)) is judged


# A whole run


@settings(max_examples=40)
@given(RUNS, LIMITS)
def test_a_limit_is_held_against_numpys_percentile_with_lost_requests_infinitely_late(run, limit):
    paceless = limit.metric in (Metric.TPOT, Metric.ITL)
    run = [t for t in run if not (paceless and t.end is End.COMPLETED and t.output_tokens == 1)]
    values = samples_s(run, limit.metric).tolist()
    for t in run:
        if t.end is not End.COMPLETED:
            gaps = max(1, t.request.output_tokens - 1) if limit.metric is Metric.ITL else 1
            values += [math.inf] * gaps
    (check,) = Contract((limit,)).judge(run).checks
    if not values:
        assert (check.measured_s, check.judgement) == (None, UNKNOWN)
        return
    finite = [1e300 if math.isinf(v) else v for v in values]  # numpy's own answer among infinities is nan
    expected = float(np.percentile(finite, limit.quantile))
    if expected > 1e200:
        assert check.measured_s == math.inf
        assert check.judgement is MISSED
    else:
        assert check.measured_s == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert check.judgement is (MET if check.measured_s <= limit.limit_s else MISSED)


PACE_LIMITS = st.builds(
    Limit, st.sampled_from([Metric.TPOT, Metric.ITL]), st.sampled_from([0, 50, 90, 99, 100]), SECONDS
)


def one_token(n: int) -> list[Timeline]:
    return [timeline([0.1], id=f"one{i}") for i in range(n)]


@settings(max_examples=40)
@given(RUNS, PACE_LIMITS, st.integers(1, 50))
def test_answers_of_one_token_leave_the_pace_of_the_others_as_it_is(run, limit, n):
    served = [t for t in run if t.end is End.COMPLETED]
    values = samples_s(served, limit.metric)
    measured_s = limit.measure(served + one_token(n))
    if len(values):
        assert measured_s == pytest.approx(float(np.percentile(values, limit.quantile)), rel=1e-9, abs=1e-12)


@settings(max_examples=40)
@given(RUNS, PACE_LIMITS, st.integers(1, 50))
def test_answers_of_one_token_dilute_the_share_that_was_lost(run, limit, n):
    """Only as many lost requests as the quantile allows, among all that were served, are forgiven."""
    run = [t for t in run if t.end is not End.COMPLETED or (t.output_tokens > 1 and len(t.itl_s))]
    everything = run + one_token(n)
    done = [t for t in everything if t.end is End.COMPLETED]
    served = len(samples_s(done, limit.metric)) + n
    weights = [max(1, t.request.output_tokens - 1) if limit.metric is Metric.ITL else 1 for t in run if t not in done]
    lost_too_many = percentile(np.array([0.0] * served + [math.inf] * sum(weights)), limit.quantile) == math.inf
    assert (limit.measure(everything) == math.inf) == lost_too_many


@settings(max_examples=40)
@given(RUNS, st.lists(LIMITS, max_size=3).map(tuple))
def test_a_verdict_is_met_only_if_every_limit_is_and_something_completed(run, limits):
    verdict = Contract(limits).judge(run)
    assert verdict.completed == sum(t.end is End.COMPLETED for t in run)
    assert verdict.met == (verdict.completed > 0 and all(c.judgement is MET for c in verdict.checks))
    assert verdict.met == (verdict.judgement is MET)
    for check in verdict.checks:
        assert not math.isnan(check.excess)
        assert (check.excess <= 0) == (check.judgement is MET) or check.excess == pytest.approx(0, abs=1e-9)
    if limits:
        assert verdict.binding is not None
        assert verdict.binding.excess == max(c.excess for c in verdict.checks)
    else:
        assert verdict.binding is None


@pytest.mark.parametrize("limits", [(), (Limit(Metric.TTFT, 99, 1.0),), (Limit(Metric.ITL, 50, 1.0),)])
def test_an_empty_run_and_one_that_served_nobody_are_no_pass(limits):
    assert not Contract(limits).judge([]).met
    assert not Contract(limits).judge([timeline([], end=End.FAILED)]).met


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("end", LOST)
def test_dropping_work_can_not_pass_a_limit(metric, end):
    """98 served fast and 2 dropped: the 99th percentile is a dropped one, in gaps as in requests."""
    served = [timeline([0.1 * (k + 1) for k in range(50)], id=f"r{i}") for i in range(98)]
    dropped = [timeline([], end=end, output_tokens=50, id=f"d{i}") for i in range(2)]
    contract = Contract((Limit(metric, 99, 1000.0),))
    assert contract.judge(served).met
    verdict = contract.judge(served + dropped)
    assert verdict.judgement is MISSED
    assert verdict.checks[0].measured_s == math.inf
    assert verdict.checks[0].excess == math.inf


@pytest.mark.parametrize("metric", [Metric.TPOT, Metric.ITL])
def test_answers_of_one_token_have_no_pace_to_miss(metric):
    contract = Contract((Limit(metric, 99, 1e-6),))
    (check,) = contract.judge(one_token(2)).checks
    assert (check.measured_s, check.judgement) == (0.0, MET)
    lost = timeline([], end=End.TIMED_OUT, output_tokens=1, id="lost")
    assert contract.judge([*one_token(1), lost]).judgement is MISSED
    assert contract.judge([*one_token(200), lost]).met


def test_a_metric_nobody_could_measure_is_unknown():
    all_at_once = [timeline([0.1, 0.1, 0.1]), timeline([0.1])]  # a server that holds its tokens back has gaps to show
    for metric, run in ((Metric.ITL, all_at_once), (Metric.TPOT, [timeline([])]), (Metric.TPOT, [])):
        verdict = Contract((Limit(metric, 99, 1000.0),)).judge(run)
        assert verdict.judgement is UNKNOWN
        assert not verdict.met


@settings(max_examples=40)
@given(RUNS, LIMITS, st.floats(1.01, 10))
def test_a_looser_limit_is_never_harder(run, limit, factor):
    looser = replace(limit, limit_s=limit.limit_s * factor)
    assert Contract((looser,)).judge(run).met or not Contract((limit,)).judge(run).met


@given(SECONDS, SECONDS)
def test_excess_is_the_log_of_the_relative_miss(measured_s, limit_s):
    check = Check(Limit(Metric.TTFT, 99, limit_s), measured_s, MET)
    assert check.excess == pytest.approx(math.log(measured_s / limit_s), abs=1e-12)


def test_excess_of_what_was_not_measured_or_took_no_time():
    limit = Limit(Metric.TTFT, 99, 1.0)
    assert Check(limit, None, UNKNOWN).excess == math.inf
    assert Check(limit, math.inf, MISSED).excess == math.inf
    assert math.isfinite(Check(limit, 0.0, MET).excess)


@pytest.mark.parametrize(
    ("quantile", "limit_s"), [(-1, 1), (101, 1), (math.nan, 1), (99, 0), (99, -1), (99, math.inf), (99, math.nan)]
)
def test_a_limit_that_makes_no_sense_is_refused(quantile, limit_s):
    with pytest.raises(ValueError, match="a limit needs"):
        Limit(Metric.TTFT, quantile, limit_s)


def test_a_limit_reads_as_people_write_it():
    assert str(Limit(Metric.TTFT, 99, 0.5)) == "p99(TTFT) <= 500 ms"
    assert str(Limit(Metric.ITL, 99.9, 0.0125)) == "p99.9(ITL) <= 12.5 ms"
