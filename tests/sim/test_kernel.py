from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.sim.kernel import Kernel


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]), max_size=30))
def test_in_order_of_time_then_of_asking(times: list[float]):
    kernel, seen = Kernel(), []
    for number, time_s in enumerate(times):
        kernel.at(time_s, lambda number=number: seen.append((kernel.now_s, number)))
    kernel.run()
    assert seen == sorted((time_s, number) for number, time_s in enumerate(times))


def test_actions_may_ask_for_more_and_run_stops_at_the_bound():
    kernel, seen = Kernel(), []

    def tick() -> None:
        seen.append(kernel.now_s)
        kernel.after(1.0, tick)

    kernel.at(0.5, tick)
    kernel.run(until_s=3.0)
    assert seen == [0.5, 1.5, 2.5]
    assert kernel.now_s == 3.0
    kernel.run(until_s=3.5)
    assert seen[-1] == 3.5


def test_the_past_is_refused():
    kernel = Kernel()
    kernel.run(until_s=2.0)
    with pytest.raises(ValueError, match="has passed"):
        kernel.at(1.0, lambda: None)


def test_what_comes_from_outside_is_done_first_however_late_it_was_asked_for():
    kernel, seen = Kernel(), []
    kernel.at(1.0, lambda: seen.append("step"))
    kernel.at(1.0, lambda: seen.append("arrival"), first=True)
    kernel.at(1.0, lambda: seen.append("next arrival"), first=True)
    kernel.run()
    assert seen == ["arrival", "next arrival", "step"]


def test_a_stop_leaves_the_rest_for_another_run():
    kernel, seen = Kernel(), []
    for time_s in (1.0, 2.0, 3.0):
        kernel.at(time_s, lambda: (seen.append(kernel.now_s), kernel.stop() if kernel.now_s == 2.0 else None))
    kernel.run()
    assert (seen, kernel.now_s) == ([1.0, 2.0], 2.0)
    kernel.run()
    assert seen == [1.0, 2.0, 3.0]
