"""What `sloguard simulate` and `capacity` were asked for: plain data, so that it can be sent to a process, written down
and compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from sloguard.errors import SpecError
from sloguard.slo import StageSLO, TpotRule
from sloguard.study.choice import Choice
from sloguard.trial import Value

DISTSERVE = "distserve"  # a deployment rather than a policy: vLLM's, on engines that prefill and engines that decode
MAX_ENGINES = 1024
MAX_REQUESTS = 10_000_000  # of a run: they are all held in memory
LEAST_STALE_MS = 0.001  # far below a step; an instant too short to tell from now would never pass
LENGTHS = ("quantile", "oracle", "mean")

# Options of a policy that are the engine's: `vllm:max_num_batched_tokens=2048` is vLLM's policy on an engine that
# batches so many. So rows of one table may differ in them.
ENGINE_OPTIONS = ("max_num_batched_tokens", "max_num_seqs", "lengths")


@dataclass(frozen=True, slots=True)
class Pools:
    """Replicas that only prefill, and replicas that only decode (DistServe)."""

    prefill: int
    decode: int

    @property
    def engines(self) -> int:
        return self.prefill + self.decode

    def __str__(self) -> str:
        return f"{self.prefill}:{self.decode}"


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafting model: each drafted token is accepted with this probability if all before it were.

    `step_s` is its time for one token; None is what the batch time's own row says of it, or a tenth of a decode step.
    """

    acceptance: float
    max_draft_tokens: int
    step_s: float | None


@dataclass(frozen=True, slots=True)
class SimSpec:
    """One deployment under one load. Rates are not part of it: `capacity` looks for one.

    Where both `scenario` and `trace` are given, the trace says what comes and when, and the scenario what is promised.
    `slo` is what every request is promised instead, in each of its stages.
    `max_model_len`, `max_num_seqs`, `num_requests`: None is a default that follows from model, GPU and load.
    """

    policy: Choice
    router: Choice
    model: str
    gpu: str
    scenario: str | None = None
    trace: str | None = None
    slo: StageSLO | None = None
    num_requests: int | None = None
    best_effort_share: float = 0.0
    tpot_rule: TpotRule = TpotRule.DEADLINE
    tensor_parallel: int = 1
    replicas: int = 1
    pools: Pools | None = None  # of the policy `distserve`, instead of replicas behind a router
    link_bytes_s: float = 300e9  # between the pools, one way: NVLink of an A100, which is kind to DistServe
    max_num_batched_tokens: int = 8192
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    lengths: str = "quantile"
    speculation: Drafting | None = None
    stale_s: float = 0.0
    async_lag: bool = False
    charge_planner: bool = False
    noise: float = 0.0
    batch_time_scale: float = 1.0
    learn_batch_time: bool = True

    @property
    def workload(self) -> str:
        """How tables call what is served."""
        return self.trace or self.scenario or ""

    @property
    def engines(self) -> int:
        return self.pools.engines if self.pools else self.replicas

    @property
    def gpus(self) -> int:
        return self.engines * self.tensor_parallel

    @property
    def name(self) -> str:
        """Of the row: what tells it from others of one table."""
        return f"{self.workload} {self.policy.text} {self.router.text}"

    def for_row(self, scenario: str | None, policy: Choice, router: Choice, pools: Pools | None) -> SimSpec:
        """The same with another workload, policy and router; options of the policy that are the engine's apply."""
        own, engine = policy.without(ENGINE_OPTIONS)
        if pools:
            own = replace(own, text=f"{own.text} {pools}", written=own.text)
        plain = replace(self, scenario=scenario, policy=own, router=router, pools=pools)
        row = replace(plain, **_typed(policy, engine))
        try:
            row.check()
        except SpecError as error:
            if not engine:
                raise
            plain.check()  # if the flags are right by themselves, it is the policy's options that are not
            problem = f"{error.field.removeprefix('--').replace('-', '_')} = {error.value!r}: {error.problem}"
            raise SpecError("--policy", policy.text, problem, error.fix) from error
        return row

    def check(self) -> None:
        """Raises SpecError for the first field that is out of its range."""
        if (self.scenario or self.trace) is None:
            raise SpecError("--scenario", None, "nothing to serve", "Name a scenario, or give a --trace FILE.")
        for field, value, low, high, takes in (
            ("--num-requests", self.num_requests, 1, MAX_REQUESTS, f"a number from 1 to {MAX_REQUESTS}"),
            ("--replicas", self.replicas, 1, MAX_ENGINES, f"a number from 1 to {MAX_ENGINES}"),
            ("--tensor-parallel", self.tensor_parallel, 1, inf, "a positive number of GPUs"),
            ("--max-num-batched-tokens", self.max_num_batched_tokens, 1, inf, "a positive number"),
            ("--max-num-seqs", self.max_num_seqs, 1, inf, "a positive number"),
            ("--max-model-len", self.max_model_len, 2, inf, "a number of tokens from 2"),
            ("--best-effort-share", self.best_effort_share, 0, 1, "a share from 0 to 1"),
            ("--noise", self.noise, 0, 0.5, "a share from 0 to 0.5"),
            ("--stale-ms", self.stale_s * 1000 or LEAST_STALE_MS, LEAST_STALE_MS, 1e9, "0, or from 0.001 ms"),
            ("--link-gb-s", self.link_bytes_s / 1e9, 1e-3, 1e6, "a positive number of GB/s"),
            ("--batch-time-scale", self.batch_time_scale, 0.01, 100, "a factor from 0.01 to 100"),
        ):
            if value is not None and not low <= value <= high:
                raise SpecError(field, value, f"not {takes}", "Correct it.")
        if self.pools and self.pools.engines > MAX_ENGINES:
            raise SpecError("--pools", str(self.pools), f"over {MAX_ENGINES} engines", "Give fewer.")
        if self.max_num_batched_tokens < (self.max_num_seqs or 1):
            problem = f"vLLM refuses fewer than --max-num-seqs, which is {self.max_num_seqs}"
            raise SpecError("--max-num-batched-tokens", self.max_num_batched_tokens, problem, "Give as many.")
        if self.lengths not in LENGTHS:
            raise SpecError("--lengths", self.lengths, "no such estimate", f"Choose one of {', '.join(LENGTHS)}.")
        if self.slo is not None and self.trace and self.scenario:
            problem = f"{self.scenario} says what the requests of {self.trace} are promised"
            raise SpecError("--slo", self.slo.text, problem, "Give one of --slo and --scenario.")
        if self.trace and self.best_effort_share:
            fix = "Drop one of them."
            raise SpecError("--best-effort-share", self.best_effort_share, "a --trace says itself who comes", fix)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "policy": self.policy.text,
            "router": self.router.text,
            "tpot_rule": self.tpot_rule.value,
            "pools": str(self.pools) if self.pools else None,
        }


def _typed(policy: Choice, options: dict[str, Value]) -> dict[str, Any]:
    for key, value in options.items():
        wanted = str if key == "lengths" else int
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise SpecError("--policy", policy.text, f"{key} takes no {value!r}", "Correct the option.")
    return dict(options)
