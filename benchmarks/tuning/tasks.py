"""Simulated tasks to tune on: what is served where, what is promised, and how far the truth is from the simulator.

Every task has the space `vllm` and asks for the largest rate at which 95 % of the requests keep both of their promises.
Much of the crash share is set by `others_gib` (memory that nobody knows is taken) and by the GPU and model: with little
room beside the weights only a high utilisation starts, and what others hold makes that crash.

What they are like (survey.py: 400 random configs that the guard lets pass; the best of 70 trials without noise).
`default` is the default's true capacity over the best, "-" where it never starts:

    task             crash  default        task             crash  default        task             crash  default
    a6000-14b-fixed    1 %     0.98        a6000-7b-bursty   16 %     0.31        l4-8b-bursty      44 %     0.29
    a40-8b-fixed       2 %     0.99        3090-4b-bursty    16 %     0.42        l4-3b-long        48 %        -
    a6000-8b-fixed     4 %     0.98        l40s-13b-mha      17 %     0.29        a100-7b-bursty    56 %        -
    h100-14b-bursty    7 %     0.53        a100-30b-moe      20 %     0.67        a100-14b-edge     80 %        -
    a100-8b-long      12 %     0.90        l40s-8b-tight     20 %     0.53        a10g-8b-long      85 %        -
    a100-8b-chat      14 %     0.91        l4-3b-chat        21 %     0.59 (1)    5090-14b-long     89 %        -
                                           a100-14b-chat     22 %     0.79        4090-7b-edge      96 %        -
                                           l4-7b-chat        24 %     0.39
                                           4090-8b-chat      39 %     0.63        (1) starts 15 % of the time
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sloguard.contract import Contract
from sloguard.request import Request
from sloguard.slo import StageSLO
from sloguard.trial import Config
from sloguard.workload.arrivals import Poisson
from sloguard.workload.scenarios import SloClass, build_requests

ATTAINMENT = 0.95
LONG = "long"  # summaries one by one: the lengths of the workload `batch` (prompts about 2,800 tokens) at random


@dataclass(frozen=True, slots=True)
class Task:
    """`near` is where the search for a capacity begins [requests/s], `noise` the spread of step times, `distortion` how
    far the truth is from what the tuner's simulator believes (0: they are one).
    """

    name: str
    gpu: str
    model: str
    workload: str
    ttft_ms: float
    tpot_ms: float
    noise: float
    others_gib: float
    max_len: int
    near: float = 4.0
    distortion: float = 1.0
    pinned: Config = field(default_factory=Config)

    @property
    def fixed(self) -> Config:
        """Arguments that every start has."""
        return self.pinned.replace(max_model_len=self.max_len)

    @property
    def contract(self) -> Contract:
        return Contract(attainment=ATTAINMENT)

    @property
    def requests(self) -> Callable[[float, int, int], Sequence[Request]]:
        """Those of a rate, a number and a seed."""
        promised = (SloClass("default", 1.0, StageSLO(self.ttft_ms / 1000, self.tpot_ms / 1000)),)
        workload, arrivals = ("batch", Poisson(1.0)) if self.workload == LONG else (self.workload, None)

        def of(rate: float, count: int, seed: int) -> Sequence[Request]:
            return build_requests(
                workload, rate=rate, num_requests=count, seed=seed, classes=promised, arrivals=arrivals
            )

        return of


# A simulator that is nearly right, and a user who fixed how steps are filled and run: little to gain over the default.
_FIXED: Any = {
    "distortion": 0.2,
    "pinned": Config(
        {
            "max_num_batched_tokens": 2048,
            "enable_chunked_prefill": True,
            "long_prefill_token_threshold": 0,
            "enforce_eager": False,
            "async_scheduling": True,
            "max_cudagraph_capture_size": 512,
            "block_size": 16,
        }
    ),
}

_TASKS = (
    Task("l4-3b-chat", "L4", "meta-llama/Llama-3.2-3B", "interactive", 1000, 50, 0.02, 1.0, 8192),
    Task("a100-8b-chat", "A100-40GB", "meta-llama/Llama-3.1-8B", "interactive", 500, 25, 0.05, 1.8, 8192),
    Task("4090-8b-chat", "RTX-4090", "Qwen/Qwen3-8B", "interactive", 1000, 50, 0.02, 0.5, 8192),
    Task("a100-14b-chat", "A100-40GB", "Qwen/Qwen2.5-14B", "interactive", 1500, 60, 0.05, 0.5, 8192),
    Task("a100-14b-edge", "A100-40GB", "Qwen/Qwen2.5-14B", "interactive", 1500, 60, 0.05, 3.0, 16384),
    Task("l40s-8b-tight", "L40S", "meta-llama/Llama-3.1-8B", "interactive", 300, 30, 0.02, 2.6, 16384),
    Task("a100-30b-moe", "A100-80GB", "Qwen/Qwen3-30B-A3B", "interactive", 1500, 60, 0.05, 4.0, 32768),
    Task("l40s-13b-mha", "L40S", "meta-llama/Llama-2-13b-hf", "interactive", 2000, 90, 0.05, 2.8, 4096),
    Task("4090-7b-edge", "RTX-4090", "Qwen/Qwen2-7B", "interactive", 800, 40, 0.10, 5.4, 16384, near=2.0),
    Task("a40-8b-fixed", "A40", "Qwen/Qwen3-8B", "interactive", 5000, 200, 0.02, 1.0, 8192, **_FIXED),
    Task("l4-7b-chat", "L4", "mistralai/Mistral-7B-v0.3", "interactive", 3000, 150, 0.0, 0.8, 8192),
    Task("a6000-8b-fixed", "RTX-A6000", "meta-llama/Llama-3.1-8B", "interactive", 5000, 200, 0.0, 2.0, 8192, **_FIXED),
    Task("a6000-14b-fixed", "RTX-A6000", "Qwen/Qwen2.5-14B", "interactive", 6000, 250, 0.05, 1.0, 4096, **_FIXED),
    Task("3090-4b-bursty", "RTX-3090", "Qwen/Qwen3-4B", "bursty", 1000, 60, 0.05, 0.9, 8192),
    Task("l4-8b-bursty", "L4", "meta-llama/Llama-3.1-8B", "bursty", 2500, 150, 0.02, 0.5, 8192),
    Task("a100-7b-bursty", "A100-40GB", "Qwen/Qwen2-7B", "bursty", 400, 30, 0.10, 5.0, 16384),
    Task("h100-14b-bursty", "H100", "Qwen/Qwen2.5-14B", "bursty", 600, 40, 0.0, 3.5, 8192),
    Task("a6000-7b-bursty", "RTX-A6000", "meta-llama/Llama-2-7b-hf", "bursty", 1500, 80, 0.10, 3.0, 4096),
    Task("a100-8b-long", "A100-40GB", "meta-llama/Llama-3.1-8B", "long", 2000, 60, 0.05, 1.0, 16384, near=2.0),
    Task("l4-3b-long", "L4", "Qwen/Qwen2.5-3B", "long", 3000, 80, 0.02, 2.0, 16384, near=2.0),
    Task("5090-14b-long", "RTX-5090", "Qwen/Qwen2.5-14B", "long", 3000, 80, 0.02, 0.5, 8192, near=1.0),
    Task("a10g-8b-long", "A10G", "meta-llama/Llama-3.1-8B", "long", 6000, 150, 0.02, 2.5, 8192, near=1.0),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

# By crash share, as they stand above: the first, the second, and from there on every second.
DOZEN = (
    "a6000-14b-fixed",
    "a40-8b-fixed",
    "h100-14b-bursty",
    "a100-8b-chat",
    "3090-4b-bursty",
    "a100-30b-moe",
    "l4-3b-chat",
    "l4-7b-chat",
    "l4-8b-bursty",
    "a100-7b-bursty",
    "a10g-8b-long",
    "4090-7b-edge",
)
