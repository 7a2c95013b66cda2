"""The peak of memory against stepping through every step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sloguard.sched.memory_ahead import MemoryAhead, Row

row = st.tuples(st.integers(1, 40), st.integers(0, 60))
rows = st.lists(row, max_size=10)


def stepped(jobs: list[Row]) -> int:
    longest = max((left for left, _ in jobs), default=0)
    return max((sum(held + t for left, held in jobs if left >= t) for t in range(1, longest + 1)), default=0)


@given(rows)
def test_the_peak_is_that_of_stepping_to_the_last_end(jobs: list[Row]):
    held_now = sum(held for _, held in jobs)
    assert max(MemoryAhead(jobs).peak_tokens(), held_now) == max(stepped(jobs), held_now)


@given(rows, row)
def test_asking_about_a_job_tells_what_adding_it_does(jobs: list[Row], more: Row):
    memory = MemoryAhead(jobs)
    asked = memory.peak_tokens(more)
    memory.add(more)
    assert asked == memory.peak_tokens() == stepped([*jobs, more])
    assert len(memory) == len(jobs) + 1
