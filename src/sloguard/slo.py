"""What one stage of one request was promised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

BEST_EFFORT = "best-effort"  # the class of what is promised nothing


class Judgement(StrEnum):
    """Outcome of holding a measurement against a promise. `UNKNOWN` is never a pass."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "unknown"


def worst(judgements: Iterable[Judgement]) -> Judgement:
    """Missed if any is missed, else unknown if any is unknown, else met."""
    found = set(judgements)
    return next((j for j in (Judgement.MISSED, Judgement.UNKNOWN) if j in found), Judgement.MET)


class TpotRule(StrEnum):
    """How a stage's token pace is judged; papers differ, so every report names the rule it used.

    - `mean`: (last token - first token) / (tokens - 1), as `vllm bench serve` does.
    - `max_gap`: the longest gap between two consecutive tokens.
    - `deadline`: token k by max(due + TTFT limit, first token) + k x TPOT limit, checked every 10 tokens with 5 %
      tolerance (SLOs-Serve, arXiv 2504.08784).
    """

    MEAN = "mean"
    MAX_GAP = "max_gap"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class StageSLO:
    """A per-request promise. `None` means no limit; the stage is met when every limit that is set is met.

    `ttft_slowdown` is a multiple of the request's zero-load prefill time; whoever knows that time turns it into
    `ttft_s` before the request is sent (`resolve`), so that judging needs no performance model.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None
    ttft_slowdown: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2el_s", "ttft_slowdown"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise ValueError(f"{name} must be a positive number or None, not {limit!r}")
        if self.ttft_s is not None and self.ttft_slowdown is not None:
            raise ValueError("give ttft_s or ttft_slowdown, not both")

    @property
    def text(self) -> str:
        """E.g. `TTFT 500 ms, TPOT 50 ms`; `nothing` without a limit."""
        slowdown = "" if self.ttft_slowdown is None else f"TTFT {self.ttft_slowdown:g}x that of an idle engine"
        limits_s = {"TTFT": self.ttft_s, "TPOT": self.tpot_s, "E2EL": self.e2el_s}
        told = [f"{name} {limit_s * 1000:g} ms" for name, limit_s in limits_s.items() if limit_s is not None]
        return ", ".join([*filter(None, [slowdown]), *told]) or "nothing"

    def resolve(self, zero_load_ttft_s: float) -> StageSLO:
        """The same promise with `ttft_slowdown` replaced by the seconds it stands for."""
        if self.ttft_slowdown is None:
            return self
        return StageSLO(self.ttft_slowdown * zero_load_ttft_s, self.tpot_s, self.e2el_s)


NO_SLO = StageSLO()
