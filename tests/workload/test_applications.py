"""The stages of the applications: against their promises, their limits and the data they were fitted on."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import REPO, SHARED_DATA, needs_shared_data
from sloguard.errors import SpecError
from sloguard.request import Stage
from sloguard.rng import stream
from sloguard.slo import StageSLO
from sloguard.workload import figures
from sloguard.workload.applications import APPLICATIONS, Answer, Application, Reasoning, ToolLoop
from sloguard.workload.arrivals import Gamma, Hyperexponential, Poisson
from sloguard.workload.lengths import Conditional, Uniform

BY_NAME = {app.name: app for app in APPLICATIONS}
APPS = st.sampled_from(APPLICATIONS)
SLO = StageSLO(ttft_s=1.0)


def draw(app: Application, n: int, limit: int | None = None, seed: int = 0) -> list[tuple[Stage, ...]]:
    return app.draw(stream(seed, "lengths"), n, limit)


def total(stages: tuple[Stage, ...]) -> int:
    return sum(stage.prompt_tokens + stage.output_tokens for stage in stages)


def test_promises_are_those_of_the_paper():
    promised = {(app.name, kind): (s.ttft_slowdown, s.tpot_s) for app in APPLICATIONS for kind, s in app.slos.items()}
    assert promised == {
        ("chatbot", "answer"): (5, 0.1),
        ("coder", "answer"): (5, 0.05),
        ("summarizer", "answer"): (3, 0.1),
        ("tool-calling", "loop"): (3, 0.05),
        ("tool-calling", "final"): (3, 0.1),
        ("reasoning", "thinking"): (3, 0.05),
        ("reasoning", "response"): (None, 0.1),
    }
    assert BY_NAME["reasoning"].slos["response"].ttft_s == 0.1


@settings(max_examples=30)
@given(APPS, st.integers(1, 60), st.integers(1, 60), st.none() | st.integers(1500, 9000), st.integers(0, 99))
def test_requests_fit_their_limit_and_a_longer_run_begins_with_the_shorter(app, n, more, limit, seed):
    requests = draw(app, n + more, limit, seed)
    assert requests[:n] == draw(app, n, limit, seed)
    assert max(map(total, requests)) <= min(limit or 9000, app.max_total_tokens)
    assert all(stage.slo == app.slos[stage.kind] for stages in requests for stage in stages)


def test_too_long_requests_are_dropped_not_cut():
    app = Application("a", Answer(Conditional(Uniform(1, 100), (Uniform(1, 100),))), {"answer": SLO}, 100)
    free = Application("b", app.turns, app.slos, 200)
    short = [stages for stages in draw(free, 1000) if total(stages) <= 100]
    assert draw(app, len(short)) == short


def test_a_limit_that_leaves_hardly_any_request_is_refused():
    with pytest.raises(SpecError, match=r"--max-model-len = 60: .* summarizer requests are that short") as raised:
        draw(BY_NAME["summarizer"], 10, 60)
    assert "\n" not in str(raised.value)
    app = Application("a", Answer(Conditional(Uniform(1, 100), (Uniform(1, 100),))), {"answer": SLO}, 1)
    with pytest.raises(SpecError, match="0 of"):
        draw(app, 1)


def test_reasoning_thinks_then_responds_after_one_more_token():
    for thinking, response in draw(BY_NAME["reasoning"], 300):
        assert (thinking.kind, response.kind, response.prompt_tokens) == ("thinking", "response", 1)
        output = thinking.output_tokens + response.output_tokens
        assert response.output_tokens == pytest.approx(0.2 * output, abs=0.51)


def test_even_the_shortest_reasoning_has_both_stages():
    turns = Reasoning(Conditional(Uniform(1, 1), (Uniform(1, 2),)), 0.2)
    tokens = turns.tokens(stream(0).random((100, 2)))
    assert tokens.min() == 1
    assert tokens[:, :, 1].max() == 1


def test_a_tool_loop_ends_with_its_answer():
    for stages in draw(BY_NAME["tool-calling"], 300):
        assert [stage.kind for stage in stages] == ["loop"] * (len(stages) - 1) + ["final"]
        assert 2 <= len(stages) - 1 <= 5


def test_loops_prompts_and_outputs_come_from_their_own_lengths():
    turns = ToolLoop(
        Uniform(100, 199), (0.25, 0.5, 0.25), result=Uniform(1, 9), call=Uniform(10, 19), answer=Uniform(50, 59)
    )
    assert turns.kinds == ("loop", "loop", "final")
    rows = [[(p, o) for p, o in row if p] for row in turns.tokens(stream(0).random((20_000, turns.uniforms))).tolist()]
    counts = np.bincount([len(row) - 1 for row in rows])
    np.testing.assert_allclose(counts / len(rows), (0.25, 0.5, 0.25), atol=0.02)
    for (first, _), *rest in rows:
        assert 100 <= first <= 199
        assert all(1 <= p <= 9 for p, _ in rest)
    assert all(10 <= o <= 19 for row in rows for _, o in row[:-1])
    assert all(50 <= row[-1][1] <= 59 for row in rows)
    pairs = np.array([row[1:] for row in rows if len(row) == 3])[:, :, 0]
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.07, "each turn is drawn by itself"


def test_relaxed_promises_double_the_pace_and_leave_prefill_alone():
    for app in APPLICATIONS:
        for kind, slo in app.relaxed(2).slos.items():
            before = app.slos[kind]
            assert (slo.tpot_s, slo.ttft_slowdown) == (2 * before.tpot_s, before.ttft_slowdown)
            assert slo.ttft_s == (before.ttft_s and 2 * before.ttft_s)


def fit_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_scenarios", REPO / "tools" / "fit_scenarios.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@needs_shared_data
def test_the_shipped_figures_are_what_the_tool_fits():
    for name, figure in fit_tool().fitted(SHARED_DATA).items():
        if name == "CODE_GAPS":
            np.testing.assert_allclose(figure, figures.CODE_GAPS, rtol=0.01)
        else:
            assert figure == getattr(figures, name), name


# Largest Kolmogorov-Smirnov distances of (prompt, output, both) to the recorded requests of up to that many tokens.
FITS = {
    ("CHATBOT", 2048): (0.03, 0.05, 0.03),
    ("CODER", 2048): (0.03, 0.04, 0.03),
    ("SUMMARIZER", 2048): (0.05, 0.03, 0.05),
    ("REASONING", 8192): (0.06, 0.02, 0.03),
    ("REASONING", 2048): (0.13, 0.04, 0.05),
}


@needs_shared_data
@pytest.mark.parametrize(("name", "limit"), sorted(FITS))
def test_drawn_lengths_are_those_recorded_below_the_limit(name, limit):
    tool = fit_tool()
    recorded = tool.rows_of(SHARED_DATA, name)
    drawn = getattr(figures, name).draw(stream(0, "fit"), 100_000)
    ours, theirs = (pairs[pairs.sum(axis=1) <= limit] for pairs in (drawn, recorded))
    assert len(ours) / len(drawn) == pytest.approx(len(theirs) / len(recorded), abs=0.02), "as many are dropped"
    for a, b, most in zip((*ours.T, ours.sum(axis=1)), (*theirs.T, theirs.sum(axis=1)), FITS[name, limit], strict=True):
        assert tool.distance(a, b) <= most
        assert a.mean() == pytest.approx(b.mean(), rel=0.12)


@needs_shared_data
def test_drawn_arrivals_are_as_uneven_as_recorded_at_every_scale():
    """Within the 5th and 95th percentile of windows drawn; gamma gaps of the same variation are not."""
    tool = fit_tool()

    def spread(process, n):
        windows = [process.times(stream(seed, "fit"), n) for seed in range(150)]
        return np.percentile([tool.unevenness(t * 300 / t[-1], 300) for t in windows], (5, 95), axis=0)

    def recorded(file):
        times_s = tool.window(SHARED_DATA / file, *tool.WINDOWS[file]) - tool.WINDOWS[file][0]
        return len(times_s), np.array(tool.unevenness(times_s, 300))

    n, uneven = recorded(tool.CODE)
    low, high = spread(Hyperexponential(1.0, figures.CODE_GAPS), n)
    assert uneven[0] == pytest.approx(5.8, abs=0.1), "SLOs-Serve's figure for this window"
    assert np.all((low <= uneven * 1.02) & (uneven <= high))
    low, high = spread(Gamma(1.0, 1 / uneven[0] ** 2), n)
    assert np.all(low[1:4] > 1.5 * uneven[1:4]), "far too many at once"
    n, uneven = recorded(tool.CONV)
    low, high = spread(Poisson(1.0), n)
    assert uneven[0] == pytest.approx(1.0, abs=0.01)
    assert np.all((low <= uneven) & (uneven <= high * 1.1))
