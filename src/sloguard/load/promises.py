"""What a request tells the server of its own promise: body fields that `sched/asked.py` reads inside vLLM."""

from __future__ import annotations

from typing import Any

from sloguard.errors import SpecError
from sloguard.request import Request
from sloguard.slo import BEST_EFFORT, NO_SLO

FIELD = "vllm_xargs"  # vLLM hands it to its scheduler; a scheduler that knows nothing of promises ignores it


def promise_fields(request: Request, stage: int) -> dict[str, Any]:
    """Of stage number `stage`: its limits in milliseconds, or, where nothing is promised, that it is best effort: else
    the server's default class would hold.

    Raises SpecError for a promise that has no field.
    """
    slo = request.stages[stage].slo
    if slo.e2el_s is not None or slo.ttft_slowdown is not None:
        limit = "e2el" if slo.e2el_s is not None else "a multiple of the time to first token"
        raise SpecError("--send-slos", limit, "can't be told to a server", "Promise ttft, tpot or both.")
    if slo == NO_SLO:
        return {FIELD: {"slo_class": BEST_EFFORT}}
    limits_s = {"slo_ttft_ms": slo.ttft_s, "slo_tpot_ms": slo.tpot_s}
    return {FIELD: {name: limit_s * 1000 for name, limit_s in limits_s.items() if limit_s is not None}}
