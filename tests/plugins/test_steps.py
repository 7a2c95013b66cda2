from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.engine.step_log import read_step_log
from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.online import OnlineTime
from sloguard.plugins.steps import FIRST_ACCEPTANCE, Acceptance, Steps, batch_of
from sloguard.rng import stream

DECODE = Batch((), 4, 400)


def steps(log: Path | None = None) -> Steps:
    return Steps(OnlineTime(BatchTime((Piece(0.01, 0.0, 0.0, 0.0, 0.0),))), log)


def test_what_a_step_computes():
    rows = [(100, 0, 300), (200, 100, 300), (1, 300, 300), (1, 450, 300), (4, 500, 300), (2, 900, 300)]
    assert batch_of(rows) == Batch(((100, 0), (200, 100)), 4, 301 + 451 + 501 + 901, 3 + 1, 3)
    assert batch_of([]) == Batch()


def test_a_step_takes_from_when_it_was_handed_out_until_its_tokens_came():
    timed = steps()
    timed.begin(1, 100.0, DECODE)
    measured_s, predicted_s = timed.end(1, 100.5) or (0.0, 0.0)
    assert (measured_s, predicted_s) == (0.5, 0.01)
    assert timed.time.bias > 1.0, "it was learnt from"


def test_a_step_that_was_handed_out_early_begins_when_the_one_before_ended():
    timed = steps()
    timed.begin(1, 100.0, DECODE)
    timed.begin(2, 100.1, DECODE)
    timed.begin(3, 100.6, DECODE)
    found = [timed.end(mark, at_s) for mark, at_s in ((1, 100.5), (2, 100.75), (3, 101.0))]
    assert [step[0] for step in found if step] == [0.5, 0.25, 0.25]


def test_a_busy_engine_takes_no_time_off_between_steps():
    timed = steps()
    timed.begin(1, 100.0, DECODE, goes_on=True)  # nothing ended before
    assert (timed.end(1, 100.5) or [0])[0] == 0.5
    timed.begin(2, 100.75, DECODE, goes_on=True)
    assert (timed.end(2, 101.5) or [0])[0] == 1.0
    timed.begin(3, 109.0, DECODE)
    assert (timed.end(3, 109.5) or [0])[0] == 0.5


def test_a_step_that_never_began_says_nothing():
    timed = steps()
    timed.begin(1, 100.0, DECODE)
    assert timed.end(2, 100.5) is None
    assert timed.end(1, 101.0) is not None
    assert timed.end(1, 102.0) is None, "each ends once"
    assert timed._begun == {}


def test_the_log_is_what_a_profile_is_made_of(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    batches = [Batch(((100, 0), (7, 93)), 3, 1000, 5, 2), DECODE]
    for _ in range(2):  # another engine of the same server goes on
        timed = steps(path)
        assert timed._log is not None
        with closing(timed._log):
            for mark, batch in enumerate(batches):
                timed.begin(mark, mark + 1.0, batch)
                timed.end(mark, mark + 1.25)
    found = read_step_log(path)
    assert [sample.batch for sample in found] == batches * 2
    assert [sample.seconds for sample in found] == [0.25] * 4


def test_a_log_that_cannot_be_written_is_said_at_once(tmp_path: Path):
    with pytest.raises(OSError, match="nowhere"):
        steps(tmp_path / "nowhere" / "steps.jsonl")


def test_acceptance_is_learnt_of_each_token_that_was_tried():
    rng, learnt = stream(0, "drafts"), Acceptance()
    assert learnt.rate == FIRST_ACCEPTANCE
    seen: list[float] = []
    for _ in range(4000):
        accepted = 0
        while accepted < 4 and rng.random() < 0.8:
            accepted += 1
        learnt.tried(4, accepted)
        seen.append(learnt.rate)
    assert sum(seen[1000:]) / 3000 == pytest.approx(0.8, abs=0.02)


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1)), max_size=50))
def test_acceptance_is_a_probability(tries: list[tuple[int, float]]):
    learnt = Acceptance()
    for drafted, share in tries:
        learnt.tried(drafted, int(drafted * share))
        assert 0 <= learnt.rate <= 1


def test_where_nothing_was_drafted_nothing_is_learnt():
    learnt = Acceptance()
    learnt.tried(0, 0)
    assert learnt.rate == FIRST_ACCEPTANCE


def test_drafts_get_another_chance_after_a_while():
    learnt = Acceptance()
    learnt.tried(200, 0)
    for _ in range(5):
        before = learnt.rate
        learnt.untried()
        assert before < learnt.rate < FIRST_ACCEPTANCE
    for _ in range(2000):
        learnt.untried()
    assert learnt.rate == pytest.approx(FIRST_ACCEPTANCE, abs=0.01)
