"""Moore and Hodgson's rule against trying every subset."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from sloguard.sched.shed import Prompt, set_aside

prompts = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60), st.booleans()), min_size=1, max_size=8).map(
    lambda rows: [Prompt(float(w), float(room), promised=p) for w, room, p in sorted(rows, key=lambda r: r[1])]
)


def keeps_all(kept: list[Prompt]) -> bool:
    total_s = 0.0
    for prompt in kept:
        total_s += prompt.work_s
        if total_s > prompt.room_s:
            return False
    return True


@given(prompts)
def test_what_is_left_is_in_time_wherever_that_is_possible(rows: list[Prompt]):
    gone = set_aside(rows)
    assert not any(rows[i].promised for i in gone)
    if keeps_all([p for p in rows if p.promised]):
        assert keeps_all([p for i, p in enumerate(rows) if i not in gone])


@given(prompts)
def test_without_promises_no_subset_keeps_more(rows: list[Prompt]):
    rows = [Prompt(p.work_s, p.room_s) for p in rows]
    kept = len(rows) - len(set_aside(rows))
    most = max(
        size
        for size in range(len(rows) + 1)
        if any(keeps_all([rows[i] for i in chosen]) for chosen in combinations(range(len(rows)), size))
    )
    assert kept == most


def test_the_costliest_per_value_leaves():
    long, short, dear = Prompt(5.0, 6.0), Prompt(2.0, 6.5), Prompt(4.0, 7.0, value=10.0)
    assert set_aside([long, short, dear]) == {0}
