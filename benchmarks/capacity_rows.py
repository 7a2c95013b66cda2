"""Which deployments the capacity studies compare.

A study is a list of deployments; tables find a deployment's capacity by making it again, so that what is compared is
said in one place. Its name holds all that tells it from others, so studies may share what they have measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sloguard.study.choice import read_choices
from sloguard.study.sim_spec import Drafting, Pools, SimSpec

GPU = "A100-40GB"
OPT, LLAMA, OPT_13B = "facebook/opt-6.7b", "meta-llama/Llama-3.1-8B", "facebook/opt-13b"
MODELS = (OPT, LLAMA)
SCENARIOS = ("chatbot", "coder", "summarizer", "tool-calling", "reasoning", "mixed")

OURS = "sloguard"
PAPERS_BASELINES = ("vllm-v0", "sarathi")
RATIOS = tuple(f"distserve {pools}" for pools in ("1:1", "2:1", "1:2"))
VLLM_2048 = "vllm:max_num_batched_tokens=2048"
POLICIES = (
    *(OURS, "slos-serve", "edf-sim", "qoserve", "scorpio", "edf", "srpf", *RATIOS),
    *("sarathi", "sarathi-slo", "vllm-v0", VLLM_2048, "vllm", "vllm-priority"),
)
TITLES = {VLLM_2048: "vllm, 2048 tokens", "vllm": "vllm, 8192 tokens"}  # where both stand side by side

REPLICAS = 4
REPLICA_POLICIES = (OURS, "slos-serve", "qoserve", "vllm")
ROUTERS = ("round-robin", "power-of-two", "least-tokens", "prefix-affinity", "slos-serve", "headroom")
PAPERS_SCALING = {"chatbot": 4.61, "tool-calling": 5.44, "coder": 6.2}  # total capacity, 4 replicas : 1
SCALED, BURSTY = tuple(PAPERS_SCALING), ("coder",)

SENSITIVE = ("slos-serve", OURS)
BELIEFS = (0.7, 0.85, 1.0, 1.2, 1.4)  # the policy's batch time over the true one
LEARNS = {False: "as told", True: "corrected online"}
LENGTHS = ("oracle", "quantile", "mean")


def deployment(scenario: str, policy: str, router: str = "round-robin", **options: Any) -> SimSpec:
    """`policy` as the command line has it, or "distserve P:D"; `options` are fields of `SimSpec`."""
    written, _, ratio = policy.partition(" ")
    pools = Pools(*map(int, ratio.split(":"))) if ratio else None
    choice, way = read_choices(written, "--policy")[0], read_choices(router, "--router")[0]
    options = {"model": OPT} | options
    spec = SimSpec(policy=choice, router=way, gpu=GPU, **options).for_row(scenario, choice, way, pools)
    name = ", ".join([policy, *(f"{key}={options[key]}" for key in sorted(options))])
    return replace(spec, policy=replace(spec.policy, text=name))


def title(policy: str) -> str:
    return TITLES.get(policy, policy)


def main_specs(model: str) -> list[SimSpec]:
    return [deployment(scenario, policy, model=model) for policy in POLICIES for scenario in SCENARIOS]


def bounded_specs() -> list[SimSpec]:
    """One for each model and scenario: a bound holds for every policy on that engine."""
    return [deployment(scenario, "vllm", model=model) for model in MODELS for scenario in SCENARIOS]


def bound_name(model: str, scenario: str) -> str:
    return f"{model} {scenario}"


def replica_specs() -> list[SimSpec]:
    many = [
        deployment(scenario, policy, router, replicas=REPLICAS)
        for policy in REPLICA_POLICIES
        for router in ROUTERS
        for scenario in SCALED
    ]
    return [*many, *(deployment(scenario, policy) for policy in REPLICA_POLICIES for scenario in SCALED)]


def ablation_specs() -> list[SimSpec]:
    return [spec for ablation in ABLATIONS for scenario in ablation.scenarios for spec in ablation.specs(scenario)]


def believing(scenario: str, policy: str, factor: float, learns: bool) -> SimSpec:
    """Right at the start is right for ever: the simulated steps take exactly their time."""
    if factor == 1:
        return deployment(scenario, policy)
    return deployment(scenario, policy, batch_time_scale=factor, learn_batch_time=learns)


def guessing(scenario: str, policy: str, lengths: str) -> SimSpec:
    return deployment(scenario, policy, **({} if lengths == "quantile" else {"lengths": lengths}))


def sensitivity_specs() -> list[SimSpec]:
    found: list[SimSpec] = []
    for policy in SENSITIVE:
        for scenario in SCENARIOS:
            found += [believing(scenario, policy, factor, learns) for learns in LEARNS for factor in BELIEFS]
            found += [guessing(scenario, policy, lengths) for lengths in LENGTHS]
    return found


@dataclass(frozen=True, slots=True)
class Ablation:
    """A feature on and off, as arguments of `deployment`. `paper` is the factor that SLOs-Serve says it is worth."""

    feature: str
    on: Mapping[str, Any]
    off: Mapping[str, Any]
    scenarios: tuple[str, ...] = SCENARIOS
    paper: float | None = None

    def specs(self, scenario: str) -> tuple[SimSpec, SimSpec]:
        return deployment(scenario, **self.on), deployment(scenario, **self.off)


_DRAFTS: Mapping[str, Any] = {"model": OPT_13B, "tensor_parallel": 2, "speculation": Drafting(0.7, 10, None)}
_MANY: Mapping[str, Any] = {"replicas": REPLICAS}
_SLOS, _OURS = {"policy": "slos-serve"}, {"policy": OURS}


def _less(policy: str, option: str) -> dict[str, str]:
    return {"policy": f"{policy}:{option}"}


ABLATIONS = (
    Ablation("drafts", _SLOS | _DRAFTS, _less("slos-serve", "speculation=false") | _DRAFTS, paper=1.66),
    Ablation("drafts", _OURS | _DRAFTS, _less(OURS, "speculation=false") | _DRAFTS, paper=1.66),
    Ablation("asking the next replica", _SLOS | _MANY | {"router": "slos-serve"}, _SLOS | _MANY, SCALED, 1.19),
    Ablation("router headroom", _OURS | _MANY | {"router": "headroom"}, _OURS | _MANY, SCALED, 1.19),
    Ablation("best effort", _SLOS, _less("slos-serve", "best_effort=false"), BURSTY),
    Ablation("batches by deadline, not of 512", _SLOS, _less("slos-serve", "fixed_batch=512"), BURSTY),
    Ablation("both", _SLOS, _less("slos-serve", "best_effort=false:fixed_batch=512"), BURSTY, 1.34),
    Ablation("exact admission, not greedy", _SLOS, _less("slos-serve", "admission=greedy")),
    Ablation("shedding", _OURS, _less(OURS, "shed=false")),
)
