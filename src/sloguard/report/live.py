"""The line that moves while a load runs. Drawn by the thread that sends, so it is kept to one cheap line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sloguard.contract import Metric, judge_request, percentile, samples_s
from sloguard.load.drive import OnProgress, Progress
from sloguard.request import End
from sloguard.slo import Judgement, TpotRule


@contextmanager
def live_progress(console: Console, rule: TpotRule, *, promised: bool) -> Iterator[OnProgress | None]:
    """Gives the callback that draws; None where `console` is no terminal. The line is gone at the end."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(Text(progress_text(progress, rule, promised=promised)), refresh=True)


def progress_text(progress: Progress, rule: TpotRule, *, promised: bool) -> str:
    """E.g. `12.0 s  240/600 sent (20.0/s)  16 in flight  224 done  0 lost  TTFT p50 31 p99 55 ms ...`; the
    latencies and the attainment are of the last finished requests.
    """
    done = progress.ends.get(End.COMPLETED, 0)
    rate = progress.sent / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
    parts = [
        f"{progress.elapsed_s:.1f} s",
        f"{progress.sent}/{progress.offered} sent ({rate:.1f}/s)",
        f"{progress.in_flight} in flight",
        f"{done} done",
        f"{sum(progress.ends.values()) - done} lost",
    ]
    for metric in (Metric.TTFT, Metric.TPOT):
        values = np.sort(samples_s(progress.recent, metric)) * 1000
        if len(values):
            p50, p99 = percentile(values, 50), percentile(values, 99)
            parts.append(f"{metric.upper()} p50 {p50:.3g} p99 {p99:.3g} ms")
    if promised and progress.recent:
        met = sum(judge_request(t, rule) is Judgement.MET for t in progress.recent)
        parts.append(f"{met / len(progress.recent):.0%} met")
    return "  ".join(parts)
