"""How an engine with a server offers the load of a trial: the same way for every one, so that runs compare."""

from __future__ import annotations

from collections.abc import Callable

from sloguard.engine.base import Load, OnPhase, Timeouts
from sloguard.load.drive import Offered, Progress, offer
from sloguard.load.prompts import Extra, no_extra
from sloguard.load.target import Target
from sloguard.request import End

WARMUP_REQUESTS = 4  # first requests meet kernels that are still being compiled; they are sent and left out


def offer_load(
    target: Target,
    load: Load,
    *,
    warmup: int,
    timeouts: Timeouts,
    on_phase: OnPhase,
    abort_when: Callable[[], bool] | None = None,
    extra: Extra = no_extra,
) -> Offered:
    """Offers `load` and tells `on_phase` how it goes. No request is cut off before its own timeout."""
    at = "" if load.rate is None else f" at {load.rate:.3g} req/s"
    on_phase(f"loading{at}")
    last_due_s = max((request.arrival_s for request in load.requests), default=0.0)
    return offer(
        target,
        load.requests,
        seed=load.seed,
        request_timeout_s=timeouts.request_s,
        deadline_s=max(timeouts.trial_s, last_due_s + timeouts.request_s),
        warmup=warmup,
        on_progress=lambda progress: on_phase(phase_text(progress, at)),
        abort_when=abort_when,
        stop_when=load.stop_when,
        extra=extra,
    )


def phase_text(progress: Progress, at: str = "") -> str:
    """E.g. `loading at 4 req/s: 12/600 done, 3 in flight, 1 lost`."""
    ends = progress.ends
    lost = sum(count for end, count in ends.items() if end is not End.COMPLETED)
    done = f"loading{at}: {ends.get(End.COMPLETED, 0)}/{progress.offered} done, {progress.in_flight} in flight"
    return done + (f", {lost} lost" if lost else "")
