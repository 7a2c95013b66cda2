"""Scenarios and traces with promises, as requests."""

from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.request import Request, Stage
from sloguard.slo import NO_SLO, StageSLO
from sloguard.workload.applications import APPLICATIONS
from sloguard.workload.scenarios import SCENARIOS, resolve_slos, scenario_requests, trace_requests

NAMES = st.sampled_from(sorted(SCENARIOS))
PLAIN = ["chatbot", "coder", "summarizer", "tool-calling", "reasoning", "mixed"]


def build(name="chatbot", *, rate=None, num_requests=40, seed=0, **more) -> list[Request]:
    return scenario_requests(name, rate=rate, num_requests=num_requests, seed=seed, **more)


def arrivals(requests: list[Request]) -> np.ndarray:
    return np.array([r.arrival_s for r in requests])


def test_there_are_six_scenarios_and_a_relaxed_one_of_each():
    assert list(SCENARIOS) == PLAIN + [f"{name}-s" for name in PLAIN]


@settings(max_examples=40)
@given(NAMES, st.floats(0.1, 100), st.integers(1, 60), st.integers(0, 2**32), st.none() | st.integers(1500, 9000))
def test_the_same_seed_gives_the_same_requests_and_another_rate_the_same_faster(name, rate, n, seed, limit):
    requests = build(name, rate=rate, num_requests=n, seed=seed, max_total_tokens=limit)
    assert requests == build(name, rate=rate, num_requests=n, seed=seed, max_total_tokens=limit)
    assert [r.id for r in requests] == [f"r{i}" for i in range(n)]
    faster = build(name, rate=2 * rate, num_requests=n, seed=seed, max_total_tokens=limit)
    np.testing.assert_allclose(arrivals(faster) * 2, arrivals(requests))
    assert [r.stages for r in faster] == [r.stages for r in requests]
    assert requests[-1].arrival_s == pytest.approx(n / rate)
    assert all(type(r.arrival_s) is float and type(r.prompt_tokens) is int for r in requests)
    assert limit is None or max(r.prompt_tokens + r.output_tokens for r in requests) <= limit


def test_recorded_rates_and_burstiness():
    chat, code = (build(name, num_requests=20_000) for name in ("chatbot", "coder"))
    for requests, rate, variation in ((chat, 4.64, 1.0), (code, 1.86, 6.2)):
        gaps_s = np.diff(arrivals(requests))
        assert 1 / gaps_s.mean() == pytest.approx(rate, rel=0.01)
        assert gaps_s.std() / gaps_s.mean() == pytest.approx(variation, rel=0.1)


def test_more_requests_begin_with_the_same_lengths():
    for name in PLAIN:
        long, short = build(name, num_requests=500), build(name, num_requests=50)
        assert [r.stages for r in long[:50]] == [r.stages for r in short]
        assert [r.slo_class for r in long[:50]] == [r.slo_class for r in short]


def test_the_relaxed_scenario_asks_the_same_and_promises_twice_the_time_a_token():
    for name in PLAIN:
        for firm, relaxed in zip(build(name), build(f"{name}-s"), strict=True):
            assert firm.slo_class == relaxed.slo_class
            for a, b in zip(firm.stages, relaxed.stages, strict=True):
                assert (a.prompt_tokens, a.output_tokens, a.kind) == (b.prompt_tokens, b.output_tokens, b.kind)
                assert b.slo.tpot_s == 2 * a.slo.tpot_s


def test_mixed_has_every_application_equally_and_each_as_by_itself():
    requests = build("mixed", num_requests=5000)
    for app in APPLICATIONS:
        own = [r.stages for r in requests if r.slo_class == app.name]
        assert len(own) == pytest.approx(1000, abs=150)
        assert own[:20] == [r.stages for r in build(app.name, num_requests=20)]


def test_a_share_is_promised_nothing():
    firm, some = build(num_requests=4000), build(num_requests=4000, best_effort_share=0.25)
    free = [r for r in some if r.slo_class == "best-effort"]
    assert len(free) == pytest.approx(1000, abs=150)
    assert all(stage.slo == NO_SLO for r in free for stage in r.stages)
    assert all(a == b for a, b in zip(firm, some, strict=True) if b.slo_class != "best-effort")
    assert [r.prompt_tokens for r in firm] == [r.prompt_tokens for r in some]
    assert {r.slo_class for r in build(best_effort_share=1.0)} == {"best-effort"}


def test_a_multiple_becomes_seconds_of_what_is_new_in_its_stage():
    slo = StageSLO(ttft_slowdown=3, tpot_s=0.1)
    asked = Request("r", 0.0, (Stage(100, 10, slo), Stage(7, 5, StageSLO(ttft_s=0.2)), Stage(50, 20, slo)))
    calls: list[tuple[int, int]] = []

    def zero_load_s(prompt_tokens: int, cached_tokens: int) -> float:
        calls.append((prompt_tokens, cached_tokens))
        return (prompt_tokens - cached_tokens) / 1024

    [resolved] = resolve_slos([asked], zero_load_s)
    assert calls == [(100, 0), (117, 110), (172, 122)]
    assert [s.slo for s in resolved.stages] == [StageSLO(300 / 1024, 0.1), StageSLO(0.2), StageSLO(150 / 1024, 0.1)]
    assert [s.prompt_tokens for s in resolved.stages] == [100, 7, 50]
    assert resolve_slos([resolved], zero_load_s) == [resolved]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": "chat"}, "--scenario"),
        ({"name": "Chatbot"}, "--scenario"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": math.nan}, "--rate"),
        ({"num_requests": 0}, "--num-requests"),
        ({"best_effort_share": 1.1}, "--best-effort-share"),
        ({"best_effort_share": math.nan}, "--best-effort-share"),
        ({"max_total_tokens": 2}, "--max-model-len"),
    ],
)
def test_a_mistake_names_its_flag(wrong, field):
    with pytest.raises(SpecError) as raised:
        build(**wrong)
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv.gz"
    rows = "0,10,1\n1,2000,2\n3,30,3\n8,40,4\n9,5000,1\n10,50,5\n"
    path.write_bytes(gzip.compress(f"arrival_s,input_tokens,output_tokens\n{rows}".encode()))
    return path


def traced(path, *, rate=None, num_requests=None, **more):
    return trace_requests(path, rate=rate, num_requests=num_requests, seed=0, **more)


def test_a_trace_is_promised_what_a_scenario_promises(trace):
    requests, dropped = traced(trace, slo="chatbot-s")
    assert arrivals(requests).tolist() == [0, 1, 3, 8, 9, 10]
    assert {(r.slo_class, r.stages[0].slo) for r in requests} == {("chatbot", StageSLO(ttft_slowdown=5, tpot_s=0.2))}
    assert dropped == 0
    requests, _ = traced(trace, slo=StageSLO(ttft_s=0.5))
    assert {(r.slo_class, r.stages[0].slo) for r in requests} == {("default", StageSLO(ttft_s=0.5))}
    assert {r.stages[0].slo for r in traced(trace).requests} == {NO_SLO}


def test_long_requests_of_a_trace_are_dropped_and_counted(trace):
    requests, dropped = traced(trace, max_total_tokens=2001)
    assert [r.prompt_tokens for r in requests] == [10, 30, 40, 50]
    assert arrivals(requests).tolist() == [0, 3, 8, 10]
    assert dropped == 2
    requests, dropped = traced(trace, max_total_tokens=2001, num_requests=3, rate=1.0)
    assert arrivals(requests).tolist() == [0, 9 / 8, 3]
    assert dropped == 1, "those after the last that is offered do not count"
    with pytest.raises(SpecError, match="each of its 6 requests has more than 10 tokens"):
        traced(trace, max_total_tokens=10)
    with pytest.raises(SpecError, match=r"--num-requests = 5: the trace has 4"):
        traced(trace, max_total_tokens=2001, num_requests=5)


def test_a_trace_that_comes_at_once_has_no_rate(tmp_path):
    path = tmp_path / "burst.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,1,1\n0,1,1\n")
    with pytest.raises(SpecError, match=r"^--rate = 2\.0"):
        traced(path, rate=2.0)


def test_a_trace_keeps_its_own_promises(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("arrival_s,input_tokens,output_tokens,slo_class,slo_ttft_s\n0,1,1,tight,0.5\n")
    [request] = traced(path).requests
    assert (request.slo_class, request.stages[0].slo) == ("tight", StageSLO(ttft_s=0.5))
    with pytest.raises(SpecError, match="clash"):
        traced(path, slo="chatbot")


def test_azures_and_mooncakes_own_files_are_traces_too(tmp_path):
    azure, mooncake, drawn = (tmp_path / name for name in ("azure.csv", "mooncake.jsonl", "lengths.csv"))
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,9,8\n2023-11-16 18:17:04.5,7,6\n")
    assert arrivals(traced(azure).requests).tolist() == [0, 1.5]
    mooncake.write_text('{"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]}\n')
    assert traced(mooncake).requests[0].prefix is not None
    drawn.write_text("input_tokens,output_tokens\n10,1\n2000,2\n")
    requests, dropped = traced(drawn, rate=2.0, num_requests=10, max_total_tokens=100)
    assert {r.prompt_tokens for r in requests} == {10}
    assert (requests[-1].arrival_s, dropped) == (pytest.approx(5.0), 1)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"path": "no/such.csv"}, "--trace"),
        ({"path": "."}, "--trace"),
        ({"slo": "mixed"}, "--scenario"),
        ({"slo": "nope"}, "--scenario"),
        ({"rate": -1.0}, "--rate"),
        ({"num_requests": 0}, "--num-requests"),
    ],
)
def test_a_mistake_about_a_trace_names_its_flag(trace, wrong, field):
    with pytest.raises(SpecError) as raised:
        traced(wrong.pop("path", trace), **wrong)
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


def test_lengths_alone_need_a_rate_and_a_number(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n10,1\n")
    for field, given_ in (("--rate", {"num_requests": 3}), ("--num-requests", {"rate": 1.0})):
        with pytest.raises(SpecError) as raised:
            traced(path, **given_)
        assert raised.value.field == field
