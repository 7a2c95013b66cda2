"""Timelines for tests: one by hand, and hypothesis strategies for any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from sloguard.request import End, Request, Stage, Timeline
from sloguard.slo import NO_SLO, StageSLO


def timeline(
    token_s: Sequence[float] = (0.1, 0.2, 0.3),
    *,
    slo: StageSLO = NO_SLO,
    due_s: float = 0.0,
    sent_s: float | None = 0.0,
    end: End = End.COMPLETED,
    slo_class: str = "default",
    prompt_tokens: int = 10,
    output_tokens: int | None = None,
    error: str = "",
    id: str = "r0",
    ended_s: float | None = None,
    chunk_tokens: Sequence[int] | None = None,
) -> Timeline:
    """A request of one stage that was due at `due_s` and whose tokens came at `token_s`."""
    stage = Stage(prompt_tokens, output_tokens or max(1, len(token_s)), slo)
    request = Request(id, due_s, (stage,), slo_class)
    return Timeline(
        request,
        due_s,
        sent_s,
        np.array(token_s, dtype=np.float64),
        end,
        error,
        ended_s=ended_s,
        chunk_tokens=None if chunk_tokens is None else np.array(chunk_tokens, dtype=np.int32),
    )


SECONDS = st.floats(1e-4, 100)
LIMITS = st.none() | SECONDS
SLOS = st.builds(StageSLO, ttft_s=LIMITS, tpot_s=LIMITS, e2el_s=LIMITS)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    due_s = draw(st.floats(0, 1000))
    gaps_s = draw(st.lists(st.just(0.0) | st.floats(1e-4, 10), max_size=25))
    token_s = due_s + np.cumsum(gaps_s) if gaps_s else np.empty(0)
    end = draw(st.sampled_from(End)) if gaps_s else draw(st.sampled_from([e for e in End if e is not End.COMPLETED]))
    return timeline(
        token_s.tolist(),
        slo=draw(SLOS),
        due_s=due_s,
        sent_s=draw(st.none() | st.floats(0, 0.02).map(lambda lag: due_s + lag)),
        end=end,
        slo_class=draw(st.sampled_from(["default", "tight", "loose"])),
        output_tokens=draw(st.integers(1, 30)),
        error=draw(st.sampled_from(["", "503", "timeout"])),
        ended_s=draw(st.none() | st.floats(0, 60).map(lambda after_s: max([due_s, *token_s]) + after_s)),
    )


RUNS = st.lists(timelines(), min_size=1, max_size=25)
