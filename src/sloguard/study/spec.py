"""What a study is asked to do, in words that can be written down, hashed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sloguard.contract import Contract, Limit, Metric
from sloguard.errors import SpecError
from sloguard.slo import StageSLO
from sloguard.trial import Value

OBJECTIVES = ("goodput", "latency")


@dataclass(frozen=True, slots=True)
class StudySpec:
    """Everything that decides which trials a study makes. `slo_p99_s` maps a metric to its p99 limit in seconds,
    `inputs` the files that were read to the digest of what they held. `policy` is that of sloguard's scheduler inside
    the engine, None the engine's own.

    Equal specs give equal studies. A study can be resumed with a larger `budget`; the optimizers plan by it, so that is
    then not the study that the larger budget would have made from the start.
    """

    engine: str
    model: str
    optimizer: str
    budget: int
    seed: int
    slo_p99_s: Mapping[str, float]
    objective: str = "goodput"
    space: str = "vllm"
    workload: str = "interactive"
    request_rate: float | None = None
    num_requests: int | None = None
    gpu: str | None = None
    tensor_parallel: int = 1
    base_url: str | None = None
    engine_python: str | None = None
    engine_args: Mapping[str, Value] = field(default_factory=dict[str, Value])
    try_default: bool = True
    trace_scaling: str = "stretch"
    policy: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise SpecError("--budget", self.budget, "a study needs at least one trial", "Give a whole number >= 1.")
        if self.seed < 0:
            raise SpecError("--seed", self.seed, "a seed is not negative", "Give a whole number >= 0.")
        if self.objective not in OBJECTIVES:
            raise SpecError("--objective", self.objective, "no such objective", f"Choose one of {OBJECTIVES}.")
        if not self.slo_p99_s:
            fix = "Give at least one limit, e.g. --slo-ttft-p99 500 (milliseconds)."
            raise SpecError("--slo-*-p99", None, "a study needs a promise to keep", fix)
        for name, limit_s in self.slo_p99_s.items():
            if not 0 < limit_s < float("inf"):
                flag = f"--slo-{name}-p99"
                raise SpecError(flag, limit_s * 1000, "a limit is a positive number of milliseconds", "E.g. 500.")

    @property
    def contract(self) -> Contract:
        return Contract(tuple(Limit(Metric(name), 99, limit_s) for name, limit_s in sorted(self.slo_p99_s.items())))

    @property
    def promise(self) -> StageSLO:
        """What the limits are for each single request, as far as a scheduler can plan by them."""
        paces_s = [self.slo_p99_s[name] for name in ("tpot", "itl") if name in self.slo_p99_s]
        return StageSLO(self.slo_p99_s.get("ttft"), min(paces_s, default=None))

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types; an infinite rate is written "inf"."""
        rate = "inf" if self.request_rate == float("inf") else self.request_rate
        return {**asdict(self), "request_rate": rate}

    @property
    def digest(self) -> str:
        """Of everything but the budget."""
        told = {k: v for k, v in self.to_json().items() if k != "budget"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def differs_from(self, recorded: Mapping[str, Any]) -> list[str]:
        """Names of fields, budget aside, in which this spec is not the `recorded` one."""
        mine = self.to_json()
        return [k for k in mine if k != "budget" and mine[k] != recorded.get(k)]


def digest_of(path: str) -> str | None:
    """SHA-256 of the file at `path`, None where there is none (then it is a name)."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
