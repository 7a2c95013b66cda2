"""What benchmarks/serve_pairs.py makes of runs that are on record, and the load that its arms get."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import pytest

from paths import REPO

sys.path.insert(0, str(REPO / "benchmarks"))

from serve_arms import CLASSES, SAMPLE, deadline_ms, mixed_requests, plugin, priority, stock
from serve_stats import SCOPES, Runs, all_series, best_budgets, capacity, curves
from serve_tables import figure, planner_s, tables

from sloguard.slo import TpotRule

RULE = TpotRule.MEAN
RATES = [1.0, 2.0, 3.0]
SETTINGS = {
    "model": "m", "vllm": "0.32.0", "seconds": 20.0, "drain_s": 15.0, "output_tokens": [32, 64],
    "classes": [["tight", 0.5, 128, 0.4, 0.05], ["best-effort", 0.5, 1500, None, None]],
}  # fmt: skip


def row(met: bool, promised: bool = True, end: str = "completed") -> dict[str, Any]:
    e2el_s = 2.0 if end == "completed" else None
    return {
        "class": "tight" if promised else "best-effort", "promised": promised, "end": end, "error": "", "due_s": 0.0,
        "tokens": 40, "ttft_s": 0.2, "tpot_s": e2el_s and 0.03, "e2el_s": e2el_s, "met": dict.fromkeys(TpotRule, met),
    }  # fmt: skip


def record(phase: str, rate: float, seed: int, arm: str, met: int, of: int = 10, unfinished: int = 0) -> dict[str, Any]:
    rows = [row(i < met) for i in range(of)]
    rows += [row(i >= unfinished, False, "timed_out" if i < unfinished else "completed") for i in range(4)]
    return {
        "phase": phase, "rate": rate, "seed": seed, "arm": arm, "took_s": 20.0, "output_throughput": 50.0 * rate,
        "lag_p99_s": 0.001, "client_limited": False, "counts": {}, "notes": [], "requests": rows,
    }  # fmt: skip


def some_runs() -> Runs:
    ours, theirs = {1.0: 10, 2.0: 10, 3.0: 5}, {1.0: 10, 2.0: 8, 3.0: 1}
    records = []
    for rate in RATES:
        best = 256 if rate < 3 else 512
        records += [record("screen", rate, 1000, f"stock {b}", theirs[rate] - (b != best)) for b in (256, 512)]
        for seed in range(5):
            records.append(record("pair", rate, seed, "plugin sloguard", ours[rate] - seed % 2, unfinished=2))
            records.append(record("pair", rate, seed, f"stock {best}", max(0, theirs[rate] - seed % 2)))
            records.append(record("pair", rate, seed, f"priority {best}", max(0, theirs[rate] - seed % 2)))
    return Runs(records)


@pytest.mark.parametrize(
    ("attainment", "expected"),
    [
        ([1.0, 0.95, 0.85], 2.5),
        ([1.0, 0.9, 0.0], 2.0),
        ([1.0, 0.8, 1.0], inf),  # that a higher rate serves more is noise: 0.9 on average, up to the end
        ([0.5, 0.4, 0.3], 0.0),
        ([1.0, 1.0, 1.0], inf),
    ],
)
def test_capacity_is_where_attainment_falls_through_the_target(attainment, expected):
    found = capacity(np.array(RATES), np.array(attainment), np.ones(3))
    assert found == pytest.approx(expected)


def test_the_best_budget_is_that_of_the_screening():
    assert best_budgets(some_runs(), RATES, RULE) == {1.0: 256, 2.0: 256, 3.0: 512}


def test_attainment_counts_what_was_lost_and_intervals_hold_it():
    series = all_series(some_runs())
    assert [one.name for one in series] == ["plugin sloguard", "best stock", "same budget by priority"]
    assert series[1].arms == {1.0: "stock 256", 2.0: "stock 256", 3.0: "stock 512"}
    promised, everything = (curves(series, RULE, of) for of in SCOPES.values())
    assert promised.found[1].tolist() == [0.96, 0.76, 0.76]
    assert everything.found[1, 0] == pytest.approx((48 + 10) / 70)  # two of four best-effort ones never ended
    low, high = promised.interval()
    assert np.all((low <= promised.found) & (promised.found <= high))
    capacities, drawn = promised.capacities()
    assert capacities[0] == pytest.approx(2 + 0.06 / 0.5)
    assert np.all(drawn[:, 0] > drawn[:, 1])


def test_a_pair_that_is_not_complete_does_not_count():
    runs = some_runs()
    runs.add(record("pair", 1.0, 7, "plugin sloguard", 0))
    assert list(all_series(runs)[0].runs[1.0]) == [0, 1, 2, 3, 4]


def test_tables_and_figure_show_every_arm():
    text = tables(some_runs(), SETTINGS, RULE)
    assert "96% [92%, 100%]" in text
    assert "best stock" in text
    assert "| 3 | stock 512 |" in text
    assert "| 1 | plugin sloguard | 10 of 20 | 0.2 / 0.2 | " in text
    assert "/ never" in text  # half of the best-effort requests did not complete
    assert figure(some_runs(), SETTINGS, RULE).startswith(b"\x89PNG")


def test_tables_of_a_screening_alone():
    text = tables(Runs([record("screen", 1.0, 1000, "stock 256", 9)]), SETTINGS, RULE)
    assert "| 1 | 90% |" in text


def test_planner_quantiles_come_from_the_histogram():
    name = "sloguard_planner_seconds_bucket"
    counts = {f'{name}{{le="0.0001"}}': 50.0, f'{name}{{le="0.0002"}}': 100.0, f'{name}{{le="+Inf"}}': 100.0}
    assert planner_s(counts, 0.5) == pytest.approx(100e-6)
    assert planner_s(counts, 0.75) == pytest.approx(150e-6)
    assert planner_s({}, 0.5) is None


def test_the_load_has_the_classes_in_their_shares_and_is_the_same_again():
    requests = mixed_requests(2.0, 20.0, 1)
    assert Counter(r.slo_class for r in requests) == {kind.name: 40 * kind.share for kind in CLASSES}
    assert requests == mixed_requests(2.0, 20.0, 1)
    assert requests[-1].arrival_s == pytest.approx(20.0)
    assert all(r.arrival_s <= s.arrival_s for r, s in pairwise(requests))


def test_only_the_priority_arm_sends_deadlines():
    request = next(r for r in mixed_requests(2.0, 20.0, 1) if r.slo_class == "tight")
    told = {"vllm_xargs": {"slo_ttft_ms": 400.0, "slo_tpot_ms": 50.0}}
    assert plugin("sloguard").extra(request, 0) == stock(256).extra(request, 0) == told
    assert priority(256).extra(request, 0) == told | {"priority": deadline_ms(request)}
    assert deadline_ms(request) == round((request.arrival_s + 0.4) * 1000)


def test_metrics_are_read_with_their_labels():
    text = '# HELP vllm:x y\nvllm:num_requests_running{engine="0"} 2.0\nsloguard_steps_total{order="policy"} 7.0\n'
    assert SAMPLE.findall(text) == [
        ('vllm:num_requests_running{engine="0"}', "2.0"),
        ('sloguard_steps_total{order="policy"}', "7.0"),
    ]
