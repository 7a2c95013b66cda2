"""What stands on the axes: round values of a knob, marks by status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.page.figures import TICKS, ticks, value_text
from sloguard.space.knobs import Float, Int


@pytest.mark.parametrize(
    ("knob", "expected"),
    [
        (Int("n", 8, 1024, log=True), [8, 32, 128, 512]),
        (Int("n", 300, 4800, log=True), [512, 1024, 2048, 4096]),
        (Int("n", 0, 2048), [0, 1000, 2000]),
        (Float("x", 0.8, 0.96), [0.8, 0.85, 0.9, 0.95]),
        (Float("x", 0.001, 10.0, log=True), [0.001, 0.01, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round(knob: Int | Float, expected: list[float]) -> None:
    assert ticks(knob) == expected


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_ticks_lie_inside_and_are_few(low: float, width: float, log: bool) -> None:
    found = ticks(Float("x", low, low + width, log))
    assert len(found) <= 2 * TICKS
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in found)
    assert found == sorted(found)


def test_values_are_written_as_a_file_of_configs_has_them() -> None:
    assert [value_text(v) for v in (True, False, None, 0.0, 0.9295, 16, "fcfs")] == [
        *("true", "false", "none", "0", "0.9295", "16", "fcfs")
    ]
