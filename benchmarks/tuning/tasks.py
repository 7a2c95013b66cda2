"""Simulated tasks to tune on: what is served where, what is promised, and how far the truth is from the simulator.

Every task has the space `vllm` and asks for the largest rate at which 95 % of the requests keep both of their promises.
Much of the crash share is set by `others_gib` (memory that nobody knows is taken) and by the GPU and model: with little
room beside the weights only a high utilisation starts, and what others hold makes that crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


_TASKS = (
    Task("l4-3b-chat", "L4", "meta-llama/Llama-3.2-3B", "interactive", 1000, 50, 0.02, 1.0, 8192),
    Task("a100-8b-chat", "A100-40GB", "meta-llama/Llama-3.1-8B", "interactive", 1000, 40, 0.05, 2.0, 8192),
    Task("4090-8b-chat", "RTX-4090", "Qwen/Qwen3-8B", "interactive", 1000, 50, 0.02, 2.0, 8192),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
