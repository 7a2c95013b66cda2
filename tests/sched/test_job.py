from __future__ import annotations

from math import inf

import pytest

from sloguard.sched.job import Job


def job(ttft_s: float | None = 1.0, tpot_s: float | None = 0.1) -> Job:
    return Job("a", 10.0, 100, 50, ttft_s=ttft_s, tpot_s=tpot_s)


def test_the_first_token_is_due_when_it_was_promised():
    assert job().token_due_s == 11.0
    assert job(ttft_s=None).token_due_s == inf


@pytest.mark.parametrize(("first_s", "due_s"), [(10.2, 11.3), (12.0, 12.3)])
def test_the_others_follow_at_their_pace_from_the_later_of_promise_and_token(first_s: float, due_s: float):
    decoding = job()
    decoding.first_token_s, decoding.generated_tokens = first_s, 3
    assert decoding.token_due_s == pytest.approx(due_s)
    decoding.tpot_s = None
    assert decoding.token_due_s == inf


def test_a_pace_may_begin_later_as_where_thoughts_end():
    thought = job()
    thought.first_token_s, thought.generated_tokens, thought.paced_from = 10.2, 40, (15.0, 40)
    assert thought.token_due_s == pytest.approx(15.1)
    thought.generated_tokens = 45
    assert thought.token_due_s == pytest.approx(15.6)
    thought.tpot_s = None
    assert thought.token_due_s == inf


def test_what_is_left_to_compute():
    waiting = job()
    assert (waiting.known_tokens, waiting.remaining_tokens, waiting.decoding) == (100, 100, False)
    waiting.computed_tokens, waiting.generated_tokens = 100, 1
    assert (waiting.known_tokens, waiting.remaining_tokens, waiting.decoding) == (101, 1, True)
    waiting.computed_tokens = 0
    assert (waiting.remaining_tokens, waiting.decoding) == (101, False), "evicted"
