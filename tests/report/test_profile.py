"""What is said of a profile, and that a poor one is called so."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from sloguard.report.profile import POOR, profile_report


def shown(mape: float) -> str:
    found = {"n": 10, "mape": mape, "p95_ape": 2 * mape, "r2": 0.5}
    figures: dict[str, Any] = {
        "model": "m",
        "device": "H100",
        "engine_version": "0.32.0",
        "samples": 50,
        "slow_steps": 0,
        "held_out": {"decode": found, "prefill": {**found, "mape": 0.01}},
    }
    console = Console(file=io.StringIO(), width=160)
    console.print(profile_report(figures))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("mape", "poor"), [(POOR - 0.01, False), (POOR + 0.01, True)])
def test_a_profile_that_foresees_little_says_so(mape: float, poor: bool):
    text = shown(mape)
    assert ("POOR: decode steps" in text) is poor
    assert "prefill steps" not in text
