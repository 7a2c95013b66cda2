"""Stand-ins for what can't run in a fast test: an engine whose behaviour is a formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sloguard.crash import Evidence
from sloguard.engine.base import Facts, LoadPlan, OnPhase, Run, follow, ignore_phase
from sloguard.errors import EngineCrash
from sloguard.request import End, Request, Stage, Timeline
from sloguard.space.space import Space
from sloguard.trial import Answers, Config

OOM = Evidence("startup", exit_code=1, log_tail="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
PORT_TAKEN = Evidence("startup", exit_code=1, log_tail="OSError: [Errno 98] Address already in use")


def some_requests(n: int = 20, gap_s: float = 0.1) -> list[Request]:
    return [Request(f"r{i}", i * gap_s, (Stage(100, 10),)) for i in range(n)]


def served(requests: Sequence[Request], ttft_s: float, tpot_s: float) -> list[Timeline]:
    """Every request completed with the same first-token and per-token times."""
    return [
        Timeline(
            request=r,
            due_s=r.arrival_s,
            sent_s=r.arrival_s,
            token_s=r.arrival_s + ttft_s + tpot_s * np.arange(r.output_tokens),
            end=End.COMPLETED,
        )
        for r in requests
    ]


@dataclass
class FakeEngine:
    """`respond` gives (TTFT, TPOT) in seconds for a config, or the evidence of its crash; `answer` what it answers."""

    respond: Callable[[Config], tuple[float, float] | Evidence]
    calls: list[Config] = field(default_factory=list)
    default: Config = field(default_factory=Config)
    answer: Callable[[Config], Answers] = lambda _: ()

    def default_config(self) -> Config:
        return self.default

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        self.calls.append(config)
        assert not list(trial_dir.iterdir()), "a trial's directory starts empty"
        (trial_dir / "engine.log").write_text("started\n")
        response = self.respond(config)
        if isinstance(response, Evidence):
            raise EngineCrash(response, cost_s=3.0)
        answers = self.answer(config) if plan.questions else ()
        if plan.questions and not plan.questions.passed_by(answers):
            return Run((), startup_s=5.0, cost_s=6.0, answers=answers)
        loads = follow(plan, lambda load: served(load.requests, *response))
        return Run(loads, startup_s=5.0, cost_s=10.0, answers=answers)

    def command_for(self, config: Config) -> list[str]:
        return ["fake", *map(str, config.values())]

    def facts(self) -> Facts:
        return Facts()

    def check_space(self, space: Space) -> None:
        return None

    def describe(self) -> dict[str, str]:
        return {"engine": "fake"}
