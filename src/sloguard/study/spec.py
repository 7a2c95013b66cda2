"""What a study is asked to do, in words that can be written down, hashed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sloguard.contract import Contract, Limit, Metric
from sloguard.errors import SpecError
from sloguard.optim.base import Goal
from sloguard.optim.objective import OBJECTIVES
from sloguard.slo import StageSLO
from sloguard.trial import Value

ATTAINMENT = 0.95  # of requests that keep their own SLOs, where nobody says otherwise
LOAD_S = 30.0  # a load lasts so long at the least: a queue needs time to build up


@dataclass(frozen=True, slots=True)
class StudySpec:
    """Everything that decides which trials a study makes. `slo_p99_s` maps a metric to its p99 limit in seconds,
    `slo_s` to what each request is promised, which the share `attainment` of them has to get. `inputs` maps the files
    that were read to the digest of what they held. `policy` is that of sloguard's scheduler inside the engine, None the
    engine's own. `load_s` is how long a load lasts at the least where a rate is searched for. `race`, `rechecks` and
    `budget_s` are as in `runner.Study`; `priors` name what is known beforehand: "sim", or directories of studies.
    `gpus` are those of a trial, whose use is tuned; None where each is split over `tensor_parallel`. With `allow_lossy`
    configs may change answers, which then have to agree with the default's to `quality`.

    Equal specs give equal studies. A study can be resumed with a larger `budget`; the optimizers plan by it, so that is
    then not the study that the larger budget would have made from the start.
    """

    engine: str
    model: str
    optimizer: str
    budget: int
    seed: int
    slo_p99_s: Mapping[str, float]
    objective: str = "capacity"
    space: str = "vllm"
    workload: str = "interactive"
    request_rate: float | None = None
    num_requests: int | None = None
    load_s: float = LOAD_S
    gpu: str | None = None
    tensor_parallel: int = 1
    gpus: int | None = None
    base_url: str | None = None
    engine_python: str | None = None
    engine_args: Mapping[str, Value] = field(default_factory=dict[str, Value])
    try_default: bool = True
    trace_scaling: str = "stretch"
    policy: str | None = None
    slo_s: Mapping[str, float] = field(default_factory=dict[str, float])
    attainment: float = ATTAINMENT
    race: bool = True
    rechecks: int = 2
    budget_s: float | None = None
    priors: tuple[str, ...] = ()
    allow_lossy: bool = False
    quality: float = 0.9
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise SpecError("--budget", self.budget, "a study needs at least one trial", "Give a whole number >= 1.")
        if self.seed < 0:
            raise SpecError("--seed", self.seed, "a seed is not negative", "Give a whole number >= 0.")
        if self.objective not in OBJECTIVES:
            raise SpecError(
                "--objective", self.objective, "no such objective", f"Choose one of {', '.join(OBJECTIVES)}."
            )
        if not self.slo_p99_s and not self.slo_s:
            fix = "Give at least one limit, e.g. --slo-ttft 500 or --slo-ttft-p99 500 (milliseconds)."
            raise SpecError("--slo-*", None, "a study needs a promise to keep", fix)
        for name, limit_s in [*((f"{name}-p99", s) for name, s in self.slo_p99_s.items()), *self.slo_s.items()]:
            if not 0 < limit_s < float("inf"):
                flag = f"--slo-{name.replace('e2el', 'latency')}"
                raise SpecError(flag, limit_s * 1000, "a limit is a positive number of milliseconds", "E.g. 500.")
        if not 0 < self.attainment < 1:
            raise SpecError("--attainment", self.attainment, "not a share between 0 and 1", "Give e.g. 0.95.")
        if not 0 < self.quality <= 1:
            raise SpecError("--quality", self.quality, "not a share up to 1", "Give e.g. 0.9.")
        if not 0 < self.load_s < float("inf"):
            raise SpecError("--load-seconds", self.load_s, "not a positive time", "Give e.g. 30.")
        if self.rechecks < 0:
            raise SpecError("--confirm", self.rechecks, "not a number of rounds", "Give 0 or more.")
        if self.budget_s is not None and not 0 < self.budget_s < float("inf"):
            raise SpecError("--budget-minutes", self.budget_s / 60, "not a positive time", "Give e.g. 60.")

    @property
    def gpus_each(self) -> int:
        """GPUs of one trial, as far as sloguard says."""
        return self.gpus or self.tensor_parallel

    @property
    def contract(self) -> Contract:
        limits = (Limit(Metric(name), 99, limit_s) for name, limit_s in sorted(self.slo_p99_s.items()))
        return Contract(tuple(limits), self.attainment if self.slo_s else None)

    @property
    def goal(self) -> Goal:
        return Goal(self.objective)

    @property
    def own_slo(self) -> StageSLO:
        """What each request is promised for itself."""
        return StageSLO(self.slo_s.get("ttft"), self.slo_s.get("tpot"), self.slo_s.get("e2el"))

    @property
    def promise(self) -> StageSLO:
        """The same, with the limits on the population where there is none, as far as a scheduler can plan by them."""
        paces_s = [self.slo_p99_s[name] for name in ("tpot", "itl") if name in self.slo_p99_s]
        ttft_s, tpot_s = self.slo_s.get("ttft"), self.slo_s.get("tpot")
        if ttft_s is None:
            ttft_s = self.slo_p99_s.get("ttft")
        return StageSLO(ttft_s, min(paces_s, default=None) if tpot_s is None else tpot_s)

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types; an infinite rate is written "inf"."""
        rate = "inf" if self.request_rate == float("inf") else self.request_rate
        return {**asdict(self), "request_rate": rate, "priors": list(self.priors)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> StudySpec:
        """The inverse of `to_json`; what this version has no field for is left out. Raises SpecError, TypeError or
        ValueError where `data` is no such record.
        """
        known = {one.name: data[one.name] for one in fields(StudySpec) if one.name in data}
        rate = known.get("request_rate")
        priors = tuple(known.get("priors", ()))
        return StudySpec(**{**known, "request_rate": None if rate is None else float(rate), "priors": priors})

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
