"""The waits it tells, beside those of a queue that is simulated as a fluid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.plugins.board import Notice
from sloguard.plugins.queue_wait import FEWEST_WAITING, LOOK_EVERY_S, WINDOW_S, QueueWait

STEP_S = 0.1
Rate = Callable[[float], float]


@dataclass
class Fluid:
    """A queue into which requests flow at a rate, and out of which the engine takes them at another."""

    comes: Rate
    serves: Rate
    now_s: float = 500.0
    waiting: float = 0.0
    started: float = 0.0
    wait: QueueWait = field(default_factory=QueueWait)

    def step(self) -> float:
        """What is told after another STEP_S."""
        self.now_s += STEP_S
        self.waiting += STEP_S * self.comes(self.now_s)
        out = min(self.waiting, STEP_S * self.serves(self.now_s))
        self.waiting -= out
        self.started += out
        self.wait.see(self.now_s, Notice(self.now_s, 8, 0, round(self.waiting), int(self.started)))
        return self.wait.wait_s(self.now_s)


@given(st.floats(1.0, 200.0), st.floats(1.2, 4.0))
def test_an_overloaded_queue_takes_what_is_in_it_over_what_is_served(serves: float, load: float):
    fluid = Fluid(lambda _: load * serves, lambda _: serves)
    while fluid.step() == 0.0 and round(fluid.waiting) < FEWEST_WAITING:
        pass
    queued_s = 0.0
    for _ in range(int(2 * WINDOW_S / STEP_S)):
        told_s = fluid.step()
        queued_s += STEP_S
        if queued_s > 2 * LOOK_EVERY_S + STEP_S:
            measured = serves * min(queued_s, WINDOW_S)  # starts are whole, and so is who waits
            assert told_s == pytest.approx(fluid.waiting / serves, rel=0.05 + 2.5 / measured)


@given(st.floats(10.0, 100.0), st.floats(0.0, 0.9), st.integers(FEWEST_WAITING, 2000))
def test_a_burst_waits_as_long_as_it_takes_whatever_came_before(serves: float, load: float, burst: int):
    fluid = Fluid(lambda _: load * serves, lambda _: serves)
    for _ in range(int(WINDOW_S / STEP_S)):
        assert fluid.step() == 0.0, "nobody waits"
    fluid.waiting += burst
    true_s = burst / serves
    while fluid.waiting > FEWEST_WAITING:
        assert fluid.step() <= 1.3 * true_s / (1 - load) + 2.0


def test_a_server_that_becomes_slower_is_noticed_within_a_window():
    fluid = Fluid(lambda _: 40.0, lambda now_s: 20.0 if now_s < 560.0 else 5.0)
    told_s = [fluid.step() for _ in range(int((60 + WINDOW_S + 1) / STEP_S))][-1]
    assert told_s == pytest.approx(fluid.waiting / 5.0, rel=0.05)


def test_where_nothing_starts_the_wait_has_no_end_once_that_is_certain():
    fluid = Fluid(lambda _: 10.0, lambda _: 0.0)
    told = [fluid.step() for _ in range(int(1.2 * WINDOW_S / STEP_S))]
    assert told[: int(0.8 * WINDOW_S / STEP_S)] == [0.0] * int(0.8 * WINDOW_S / STEP_S)
    assert told[-1] == inf


def test_little_is_said_of_little():
    wait = QueueWait()
    assert wait.wait_s(0.0) == 0.0
    wait.see(0.0, Notice(0.0, 0, 500, 0, 0))
    assert wait.wait_s(0.0) == 0.0
    wait.see(10.0, Notice(0.0, 0, FEWEST_WAITING - 1, 0, 5))
    assert wait.wait_s(10.0) == 0.0


def test_a_count_that_falls_is_no_negative_wait():
    wait = QueueWait()
    for second in range(10):
        wait.see(float(second), Notice(0.0, 0, 50, 0, 100 - second))
        assert wait.wait_s(float(second)) == 0.0


def test_it_keeps_no_more_than_a_window():
    fluid = Fluid(lambda _: 10.0, lambda _: 1.0)
    for _ in range(5000):
        fluid.step()
    assert len(fluid.wait._seen) <= WINDOW_S / LOOK_EVERY_S + 1
