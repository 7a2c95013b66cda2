"""Latency by the definitions of docs/measuring.md, each computed a second way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.request import Request, Stage, Timeline, mean_tpot_s
from timelines import timeline, timelines


@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(0, 1), (1, 0), (-1, 1)])
def test_a_stage_has_tokens(prompt_tokens, output_tokens):
    with pytest.raises(ValueError, match="at least 1"):
        Stage(prompt_tokens, output_tokens)


def test_a_request_counts_the_tokens_of_all_its_stages():
    request = Request("r", 0.0, (Stage(100, 10), Stage(20, 5)))
    assert (request.prompt_tokens, request.output_tokens) == (120, 15)


def test_latency_counts_from_when_the_request_was_due_not_from_when_it_was_sent():
    t = timeline([11.0, 11.1, 11.3], due_s=10.0, sent_s=10.4)
    assert t.ttft_s == pytest.approx(1.0)
    assert t.e2el_s == pytest.approx(1.3)
    assert t.queue_delay_s == pytest.approx(0.4)
    assert t.tpot_s == pytest.approx(0.15)


def test_tokens_of_one_chunk_share_an_instant_and_make_no_gap():
    t = timeline([1.0, 1.0, 1.0, 1.5, 1.5, 2.5])
    np.testing.assert_allclose(t.itl_s, [0.5, 1.0])
    assert t.tpot_s == pytest.approx(1.5 / 5), "a chunk of n tokens counts n tokens"
    assert t.output_tokens == 6


def test_chunks_that_came_in_one_read_are_chunks_still():
    """As `vllm bench serve` counts them: a gap for every chunk after the first."""
    t = timeline([1.0, 1.0, 1.0, 1.5, 1.5, 2.5], chunk_tokens=[1, 2, 1, 1, 1])
    np.testing.assert_allclose(t.itl_s, [0.0, 0.5, 0.0, 1.0])
    assert timeline([1.0, 1.0], chunk_tokens=[2]).itl_s.tolist() == []
    assert timeline([], chunk_tokens=[]).itl_s.tolist() == []


def test_chunks_hold_all_tokens_and_no_more():
    with pytest.raises(ValueError, match="chunks of 3 tokens"):
        timeline([1.0, 2.0], chunk_tokens=[1, 2])


def test_a_request_is_over_when_it_ended_else_with_its_last_token_else_when_it_was_due():
    assert timeline([1.0, 2.0], due_s=0.5, ended_s=61.0).last_s == 61.0
    assert timeline([1.0, 2.0], due_s=0.5).last_s == 2.0
    assert timeline([], due_s=0.5).last_s == 0.5


@pytest.mark.parametrize("token_s", [[], [1.0]])
def test_below_two_tokens_there_is_no_pace(token_s):
    t = timeline(token_s)
    assert t.tpot_s is None
    assert len(t.itl_s) == 0
    assert (t.ttft_s is None) == (t.e2el_s is None) == (not token_s)


def test_a_request_that_was_never_sent_has_no_delay():
    assert timeline([], sent_s=None).queue_delay_s is None


@given(timelines())
def test_the_parts_sum_to_the_whole(t: Timeline):
    if not t.output_tokens:
        return
    assert t.ttft_s is not None
    assert t.e2el_s is not None
    # Instants near 1000 s carry rounding of about 1e-13.
    assert t.ttft_s + t.itl_s.sum() == pytest.approx(t.e2el_s, abs=1e-9)
    if t.tpot_s is not None:
        assert t.tpot_s * (t.output_tokens - 1) == pytest.approx(t.itl_s.sum(), abs=1e-9)
    assert len(t.itl_s) == len(set(t.token_s.tolist())) - 1


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=50).map(sorted))
def test_the_mean_pace_is_the_mean_of_the_gaps(token_s):
    assert mean_tpot_s(np.array(token_s)) == pytest.approx(float(np.mean(np.diff(token_s))), abs=1e-9)
