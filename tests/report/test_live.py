from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from sloguard.load.drive import Progress
from sloguard.report.live import live_progress, progress_text
from sloguard.request import End, Request, Stage, Timeline
from sloguard.slo import StageSLO, TpotRule

SLO = StageSLO(ttft_s=0.1)
RECENT = [
    Timeline(Request(str(i), 0.0, (Stage(1, 2, SLO),)), 0.0, 0.0, np.array([ttft, ttft + 0.02]), End.COMPLETED)
    for i, ttft in enumerate((0.05, 0.15))
]
PROGRESS = Progress(10.0, 600, 200, 150, {End.COMPLETED: 48, End.FAILED: 1, End.REFUSED: 1}, RECENT)


def test_the_line_tells_rate_flight_losses_latency_and_attainment():
    text = progress_text(PROGRESS, TpotRule.MEAN, promised=True)
    for words in (
        "200/600 sent (20.0/s)",
        "150 in flight",
        "48 done",
        "2 lost",
        "TTFT p50 100 p99 149 ms",
        "TPOT p50 20",
    ):
        assert words in text
    assert text.endswith("50% met")


def test_before_anything_is_known_nothing_is_claimed():
    text = progress_text(Progress(0.0, 600, 0, 0, {}, []), TpotRule.MEAN, promised=True)
    assert "TTFT" not in text
    assert "met" not in text


def test_it_is_drawn_on_a_terminal_only():
    for terminal in (True, False):
        out = io.StringIO()
        with live_progress(
            Console(file=out, force_terminal=terminal, width=200), TpotRule.MEAN, promised=False
        ) as draw:
            assert (draw is not None) is terminal
            if draw is not None:
                draw(PROGRESS)
        assert ("150 in flight" in out.getvalue()) is terminal
