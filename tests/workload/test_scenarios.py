"""Named and recorded workloads as requests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import SHARED_DATA, needs_shared_data
from sloguard.errors import SpecError
from sloguard.request import Prefix, Request
from sloguard.rng import stream
from sloguard.slo import NO_SLO, StageSLO
from sloguard.workload.arrivals import Gamma, Scaling
from sloguard.workload.scenarios import WORKLOADS, SloClass, build_requests
from sloguard.workload.traces import read_trace

NAMES = st.sampled_from(sorted(WORKLOADS))
TIGHT, LOOSE = StageSLO(0.4, 0.05), StageSLO(4.0, 0.12)


def build(workload="interactive", *, rate=None, num_requests=None, seed=0, classes=(), **more) -> list[Request]:
    return build_requests(str(workload), rate=rate, num_requests=num_requests, seed=seed, classes=classes, **more)


def lengths(requests: list[Request]) -> list[tuple[int, int]]:
    return [(r.prompt_tokens, r.output_tokens) for r in requests]


def arrivals(requests: list[Request]) -> list[float]:
    return [r.arrival_s for r in requests]


@given(NAMES, st.floats(0.01, 1000) | st.just(math.inf) | st.none(), st.integers(1, 200), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_requests_in_order(name, rate, n, seed):
    requests = build(name, rate=rate, num_requests=n, seed=seed)
    assert requests == build(name, rate=rate, num_requests=n, seed=seed)
    assert [r.id for r in requests] == [f"r{i}" for i in range(n)]
    assert arrivals(requests) == sorted(arrivals(requests))
    assert all(type(r.arrival_s) is float and type(r.prompt_tokens) is int for r in requests)
    assert all(r.slo_class == "default" and r.stages[0].slo == NO_SLO and r.prefix is None for r in requests)


@given(NAMES, st.floats(0.01, 1000), st.integers(0, 1000))
def test_arrivals_lengths_and_classes_come_from_streams_of_their_own(name, rate, seed):
    classes = (SloClass("tight", 0.5, TIGHT), SloClass("loose", 0.5, LOOSE))
    plain = build(name, num_requests=30, seed=seed)
    other = build(name, num_requests=30, seed=seed, rate=rate, classes=classes)
    assert lengths(other) == lengths(plain)
    faster = build(name, num_requests=30, seed=seed, rate=2 * rate, classes=classes)
    assert [r.slo_class for r in faster] == [r.slo_class for r in other]
    same_rate = build(name, num_requests=30, seed=seed, rate=rate)
    assert arrivals(same_rate) == arrivals(other)


@given(NAMES, st.integers(0, 2**32))
def test_the_streams_are_the_named_ones(name, seed):
    workload = WORKLOADS[name]
    classes = (SloClass("tight", 0.3, TIGHT), SloClass("loose", 0.7, LOOSE))
    requests = build(name, num_requests=20, seed=seed, classes=classes)
    assert arrivals(requests) == workload.arrivals.times(stream(seed, "arrivals"), 20).tolist()
    assert lengths(requests) == [tuple(pair) for pair in workload.lengths.draw(stream(seed, "lengths"), 20).tolist()]
    drawn = stream(seed, "classes").random(20)
    assert [r.slo_class for r in requests] == ["tight" if u < 0.3 else "loose" for u in drawn]


def test_another_seed_gives_other_requests():
    a, b = build(seed=1), build(seed=2)
    assert lengths(a) != lengths(b)
    assert arrivals(a) != arrivals(b)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_more_requests_begin_with_the_same_lengths(name):
    assert lengths(build(name, num_requests=500))[:50] == lengths(build(name, num_requests=50))


def test_defaults_are_those_of_the_workload():
    interactive, batch, bursty = (build(name) for name in ("interactive", "batch", "bursty"))
    assert (len(interactive), interactive[-1].arrival_s) == (200, pytest.approx(200 / 4.0))
    assert (len(batch), set(arrivals(batch))) == (100, {0.0})
    assert (len(bursty), bursty[-1].arrival_s) == (192, pytest.approx(192 / 4.0))
    gaps_s = np.diff(arrivals(build("bursty", num_requests=3200)))
    assert np.sum(gaps_s > 5.5) == 100, "a pause after each of a hundred bursts"


@settings(max_examples=20)
@given(NAMES, st.integers(0, 2**32))
def test_requests_fit_their_window(name, seed):
    window = {"interactive": 2048, "batch": 4096, "bursty": 2048}[name]
    assert max(p + o for p, o in lengths(build(name, num_requests=2000, seed=seed))) <= window


# File, and the bounds of total and output tokens within which its rows were fitted.
FITTED = {
    "interactive": ("lengths/sharegpt_8k_llama2tok.csv.gz", 2048, 1024, 14568),
    "batch": ("lengths/arxiv_summarization_llama2tok.csv.gz", 4096, 1024, 27027),
    "bursty": ("traces/azure2023_code.csv.gz", 2048, 1024, 5450),
}


@needs_shared_data
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_named_lengths_are_those_of_their_source(name):
    file, max_total, max_output, n = FITTED[name]
    real = np.array([row[1:3] for row in read_trace(SHARED_DATA / file).rows])
    real = real[(real.sum(axis=1) <= max_total) & (real[:, 1] <= max_output)]
    assert len(real) == n
    drawn = WORKLOADS[name].lengths.draw(stream(0, "fit"), 100_000)
    for ours, theirs in zip(drawn.T, real.T, strict=True):
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.07)
        levels = [5, 10, 25, 50, 75, 90, 95]
        np.testing.assert_allclose(np.percentile(ours, levels), np.percentile(theirs, levels), rtol=0.07)
        grid = np.unique(theirs)
        cdfs = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (ours, theirs)]
        assert np.abs(cdfs[0] - cdfs[1]).max() < 0.05, "Kolmogorov-Smirnov distance"
    assert abs(np.corrcoef(np.log(real.T))[0, 1]) < 0.07, "prompt and output may be drawn apart"


def test_another_arrival_process_changes_arrivals_alone():
    plain, gamma = build(num_requests=3000), build(num_requests=3000, rate=9.0, arrivals=Gamma(1.0, 0.25))
    assert lengths(plain) == lengths(gamma)
    gaps_s = np.diff(arrivals(gamma))
    assert gamma[-1].arrival_s == pytest.approx(3000 / 9)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(2, rel=0.1)


def test_classes_are_drawn_by_their_shares():
    classes = (SloClass("a", 0.2, TIGHT), SloClass("b", 0.3, LOOSE), SloClass("c", 0.5, NO_SLO))
    requests = build(num_requests=10_000, classes=classes)
    promised = {c.name: c.slo for c in classes}
    assert all(r.stages[0].slo == promised[r.slo_class] for r in requests)
    for c in classes:
        count = sum(r.slo_class == c.name for r in requests)
        assert count == pytest.approx(c.share * 10_000, abs=5 * math.sqrt(10_000 * c.share * (1 - c.share)))
    assert [r.slo_class for r in build(num_requests=10, classes=classes)] == [r.slo_class for r in requests[:10]]


def test_thirds_sum_to_one():
    thirds = tuple(SloClass(name, 1 / 3, TIGHT) for name in "abc")
    assert {r.slo_class for r in build(classes=thirds)} == {"a", "b", "c"}


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,10,1\n1,20,2\n3,30,3\n8,40,4\n")
    return path


def test_a_trace_is_replayed_as_recorded(trace):
    requests = build(trace)
    assert arrivals(requests) == [0, 1, 3, 8]
    assert lengths(requests) == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert requests == build(trace, seed=99)
    assert build(trace, num_requests=2) == requests[:2]


def test_a_rate_stretches_a_trace(trace):
    requests = build(trace, rate=2.0)
    assert arrivals(requests) == pytest.approx([0, 0.25, 0.75, 2.0])
    assert lengths(requests) == lengths(build(trace))
    assert arrivals(build(trace, rate=math.inf)) == [0.0] * 4


def test_thinning_keeps_each_requests_own_lengths(trace, tmp_path):
    long = tmp_path / "long.csv"
    long.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{i / 10},{i + 1},1\n" for i in range(1, 1001)))
    requests = build(long, rate=2.0, scaling=Scaling.THIN)
    assert 120 < len(requests) < 280
    assert all(r.arrival_s == pytest.approx((r.prompt_tokens - 1) / 10) for r in requests)
    assert [r.id for r in requests] == [f"r{i}" for i in range(len(requests))]


def test_thinning_is_refused_where_it_would_change_nothing(trace, tmp_path):
    untimed = tmp_path / "lengths.csv"
    untimed.write_text("input_tokens,output_tokens\n5,6\n")
    for workload, rate in (("interactive", 2.0), (trace, None), (untimed, 2.0)):
        with pytest.raises(SpecError, match="--trace-scaling = 'thin'"):
            build(workload, rate=rate, num_requests=4, scaling=Scaling.THIN)


def test_a_trace_may_carry_prefixes_and_slos(tmp_path):
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text('{"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]}\n')
    (request,) = build(mooncake)
    assert (request.arrival_s, request.prefix) == (1.5, Prefix((7, 9), 512))
    ours = tmp_path / "o.csv"
    ours.write_text("arrival_s,input_tokens,output_tokens,slo_class,slo_ttft_s\n0,1,1,tight,0.5\n")
    (request,) = build(ours)
    assert (request.slo_class, request.stages[0].slo) == ("tight", StageSLO(ttft_s=0.5))
    with pytest.raises(SpecError, match="clash"):
        build(ours, classes=(SloClass("a", 1.0, TIGHT),))


def test_a_file_of_lengths_is_drawn_from(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n10,1\n20,2\n")
    requests = build(path, rate=5.0, num_requests=100)
    assert set(lengths(requests)) == {(10, 1), (20, 2)}
    assert requests[-1].arrival_s == pytest.approx(20.0)
    assert len(build(path, num_requests=3, arrivals=Gamma(1.0, 0.5))) == 3
    path.write_text("input_tokens,output_tokens,slo_ttft_s\n10,1,0.5\n20,2,0.7\n")
    promised = {(r.stages[0].prompt_tokens, r.stages[0].slo.ttft_s) for r in build(path, rate=5.0, num_requests=100)}
    assert promised == {(10, 0.5), (20, 0.7)}, "rows are drawn whole"
    for field, given_ in (("--request-rate", {"num_requests": 3}), ("--num-requests", {"rate": 1.0})):
        with pytest.raises(SpecError) as raised:
            build(path, **given_)
        assert raised.value.field == field


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"rate": 0.0}, "--request-rate"),
        ({"rate": -1.0}, "--request-rate"),
        ({"rate": math.nan}, "--request-rate"),
        ({"num_requests": 0}, "--num-requests"),
        ({"num_requests": -5}, "--num-requests"),
        ({"workload": "interactiv"}, "--workload"),
        ({"workload": "no/such/trace.csv"}, "--workload"),
        ({"workload": ""}, "--workload"),
        ({"workload": "x" * 5000}, "--workload"),
        ({"classes": (SloClass("a", 0.5, TIGHT),)}, "SLO class shares"),
        ({"classes": (SloClass("a", 0.5, TIGHT), SloClass("b", 0.6, TIGHT))}, "SLO class shares"),
        ({"classes": (SloClass("a", 0.5, TIGHT), SloClass("a", 0.5, LOOSE))}, "SLO classes"),
        ({"classes": (SloClass("a", 1.5, TIGHT), SloClass("b", -0.5, LOOSE))}, "SLO class a share"),
        ({"classes": (SloClass("a", math.nan, TIGHT),)}, "SLO class a share"),
    ],
)
def test_a_mistake_names_its_flag(wrong, field):
    with pytest.raises(SpecError) as raised:
        build(**wrong)
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(SpecError, match=r"interactive, batch, bursty"):
        build("interactiv")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"num_requests": 5}, "--num-requests"), ({"arrivals": Gamma(1.0, 1.0)}, "--workload")],
)
def test_what_a_trace_can_not_do_is_named(trace, wrong, field):
    with pytest.raises(SpecError) as raised:
        build(trace, **wrong)
    assert raised.value.field == field
