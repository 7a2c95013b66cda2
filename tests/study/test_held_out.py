"""What is measured again at the end of a study on a recorded trace is, as far as it can be, a part of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sloguard.errors import SpecError
from sloguard.study.build import build_study
from sloguard.study.log import StudyLog
from sloguard.study.runner import run_study
from sloguard.study.spec import StudySpec
from sloguard.trial import Ask, Measured

ROWS = 120
SPEC = StudySpec(
    "sim", "Qwen/Qwen2-1.5B", "random", 2, 3, {}, slo_s={"ttft": 1.0}, gpu="A100-40GB", rechecks=2, num_requests=40
)


@pytest.fixture
def trace(tmp_path: Path) -> StudySpec:
    """Row i has a prompt of 100 + i tokens."""
    at_s = np.cumsum(np.random.default_rng(1).exponential(0.5, ROWS))
    rows = "".join(f"{s:.3f},{100 + i},20\n" for i, s in enumerate(at_s))
    path = tmp_path / "trace.csv"
    path.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return replace(SPEC, workload=str(path))


def offered(spec: StudySpec, turn: int) -> list[int]:
    """The rows of the first load, in order."""
    load = next(build_study(spec).question.plan(Ask(turn=turn)).loads)
    at_s = [request.arrival_s for request in load.requests]
    assert at_s == sorted(at_s)
    return [request.prompt_tokens - 100 for request in load.requests]


@pytest.mark.parametrize("objective", ["capacity", "goodput"])
def test_each_round_has_a_part_of_the_trace_that_nobody_has_seen(trace: StudySpec, objective: str) -> None:
    spec = replace(trace, objective=objective)
    assert [offered(spec, turn) for turn in range(3)] == [list(range(first, first + 40)) for first in (0, 40, 80)]
    assert build_study(spec).recheck_note is None


def test_a_trace_that_is_offered_whole_is_begun_elsewhere_and_the_result_says_so(
    trace: StudySpec, tmp_path: Path
) -> None:
    spec = replace(trace, num_requests=None)
    assert [offered(spec, turn)[0] for turn in range(3)] == [0, 40, 80]
    assert all(sorted(offered(spec, turn)) == list(range(ROWS)) for turn in range(3))
    log = StudyLog(tmp_path / "study")
    with log.writer():
        log.append_header({"spec": spec.to_json(), "engine": {}})
        trials = list(run_study(build_study(spec), log, spec.budget))
    notes = {trial.recheck is not None: trial.outcome.notes for trial in trials if isinstance(trial.outcome, Measured)}
    said = f"the trace has {ROWS}; --num-requests 40 would hold out the rest"
    assert notes[False] == ()
    assert len(notes[True]) == 1
    assert said in notes[True][0]


def test_what_is_drawn_is_drawn_anew_and_needs_no_word() -> None:
    assert offered(SPEC, 1) != offered(SPEC, 0)
    assert build_study(SPEC).recheck_note is None


def test_requests_too_long_for_the_engine_are_said_at_once_wherever_they_lie(trace: StudySpec) -> None:
    """Row 119 is offered in the last round only."""
    with pytest.raises(SpecError, match="1 of 40 requests are longer than the 238 tokens"):
        build_study(replace(trace, engine_args={"max_model_len": 238}))
    build_study(replace(trace, engine_args={"max_model_len": 238}, rechecks=0))
