"""Real vLLM servers under test, the load that all of them get, and one run of it. Used by serve_pairs.py and
serve_saturation.py.

All servers run at once and keep running: an idle one takes no processor time, and no figure holds a start-up.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sloguard.crash import diagnose
from sloguard.engine.http_probe import ask
from sloguard.engine.lend import scheduler_arguments
from sloguard.engine.profiles import read_profile
from sloguard.engine.vllm_install import VllmInstall, find_vllm
from sloguard.engine.vllm_server import Died, VllmServer, free_port
from sloguard.load.drive import Offered, offer
from sloguard.load.promises import promise_fields
from sloguard.load.prompts import Extra
from sloguard.load.target import Target
from sloguard.plugins.options import StepTimes
from sloguard.request import Request, Stage
from sloguard.rng import stream
from sloguard.slo import NO_SLO, StageSLO
from sloguard.space.flags import to_flags
from sloguard.workload.arrivals import Poisson

REPO = Path(__file__).resolve().parents[1]
STOCK_BUDGETS = (128, 256, 512, 2048)  # --max-num-batched-tokens; 2048 is what vLLM takes by itself
PLUGIN_BUDGET = 2048
OUTPUT_TOKENS = (32, 64)  # the least and the most of an answer
START_LIMIT_S, EMPTY_LIMIT_S, PREFLIGHT_S = 600.0, 120.0, 60.0
REQUEST_TIMEOUT_S = 600.0  # a run's own deadline comes first
NEVER_MS = 2**31 - 1  # the priority of what is promised nothing
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
SAMPLE = re.compile(r"^((?:vllm:|sloguard_)\w*(?:\{[^}]*\})?) (\S+)", re.MULTILINE)
COMMON: Mapping[str, Any] = {
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": "512M",  # of demo-slo 32,768 tokens, the same in every run on every machine
    "enable_prefix_caching": False,
}


@dataclass(frozen=True, slots=True)
class Class:
    """A share (0 to 1) of the requests. Prompts have one length, answers `OUTPUT_TOKENS`."""

    name: str
    share: float
    prompt_tokens: int
    slo: StageSLO


CLASSES = (
    Class("tight", 0.4, 128, StageSLO(ttft_s=0.4, tpot_s=0.05)),
    Class("loose", 0.4, 1024, StageSLO(ttft_s=4.0, tpot_s=0.12)),
    Class("best-effort", 0.2, 1500, NO_SLO),
)


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to serve. Those `by_priority` are sent each request's deadline as its priority, the others are not."""

    name: str
    flags: Mapping[str, Any]
    by_priority: bool = False

    def extra(self, request: Request, stage: int) -> Mapping[str, Any]:
        """Every server is told the promises, so that all get the same; only the plugin makes use of them."""
        told = promise_fields(request, stage)
        return {**told, "priority": deadline_ms(request)} if self.by_priority else told


def plugin(policy: str, budget: int = PLUGIN_BUDGET, profile: Path | None = None, step_log: Path | None = None) -> Arm:
    """`profile` is what `sloguard profile --out` saved of this engine; without one it learns as it serves."""
    told: dict[str, Any] = {"policy": policy}
    if step_log is not None:
        told["step_log"] = str(step_log.absolute())
    if profile is not None:
        told["batch_time"] = StepTimes.of(read_profile(profile).fitted.batch_time).model_dump()
    flags = {"max_num_batched_tokens": budget, **scheduler_arguments(told)}
    return Arm(f"plugin {policy}" + ("" if budget == PLUGIN_BUDGET else f" {budget}"), flags)


def stock(budget: int) -> Arm:
    return Arm(f"stock {budget}", {"max_num_batched_tokens": budget})


def priority(budget: int) -> Arm:
    flags = {"max_num_batched_tokens": budget, "scheduling_policy": "priority"}
    return Arm(f"priority {budget}", flags, by_priority=True)


def deadline_ms(request: Request) -> int:
    """Of the first token, from the start of the run."""
    ttft_s = request.stages[0].slo.ttft_s
    return NEVER_MS if ttft_s is None else round((request.arrival_s + ttft_s) * 1000)


def mixed_requests(rate: float, seconds: float, seed: int, promises: float = 1.0) -> list[Request]:
    """Poisson arrivals for `seconds`, the classes in exactly their shares and random order; each rate draws anew.
    `promises` is a factor of all limits.
    """
    names = (seed, f"{rate:g}")
    n = max(len(CLASSES), round(rate * seconds))
    times_s = Poisson(rate).times(stream(names[0], "arrivals", names[1]), n).tolist()
    bounds = [sum(kind.share for kind in CLASSES[: i + 1]) for i in range(len(CLASSES))]
    dealt = [next(kind for kind, most in zip(CLASSES, bounds, strict=True) if (i + 0.5) / n < most) for i in range(n)]
    order = stream(names[0], "classes", names[1]).permutation(n).tolist()
    low, high = OUTPUT_TOKENS
    outputs = stream(names[0], "lengths", names[1]).integers(low, high + 1, n).tolist()
    return [
        Request(f"r{i}", times_s[i], (Stage(kind.prompt_tokens, outputs[i], scaled(kind.slo, promises)),), kind.name)
        for i, kind in enumerate(dealt[at] for at in order)
    ]


def scaled(slo: StageSLO, factor: float) -> StageSLO:
    return StageSLO(slo.ttft_s and factor * slo.ttft_s, slo.tpot_s and factor * slo.tpot_s)


@dataclass(slots=True)
class Servers:
    """Started when first asked for, ended together."""

    install: VllmInstall
    model: str
    logs: Path
    flags: Mapping[str, Any]  # of every arm
    environment: Mapping[str, str]
    _held: ExitStack = field(default_factory=ExitStack)
    _running: dict[str, VllmServer] = field(default_factory=dict)
    _name: str = ""

    def start(self, arms: Sequence[Arm]) -> None:
        """Those that don't run yet, all at once. Raises Died."""
        new = [arm for arm in arms if arm.name not in self._running]
        for arm in new:
            place = self.logs / arm.name.replace(" ", "-").replace("/", "-").replace(":", "-")
            metrics = place / "metrics"
            metrics.mkdir(parents=True, exist_ok=True)
            for left in metrics.iterdir():
                left.unlink()
            argv = [*self.install.server_argv(self.model), *to_flags({**self.flags, **arm.flags})]
            server = VllmServer.start(argv, self._environment(metrics), free_port(), place / "engine.log", PREFLIGHT_S)
            self._held.callback(server.process.stop, 10.0)
            self._running[arm.name] = server
        for arm in new:
            self._name = self._running[arm.name].await_ready(START_LIMIT_S)
        for arm in new:  # whatever is slow once: first uses, and what the plugin has to see before it knows
            self.offer(arm, mixed_requests(2.0, 6.0, 0), 0, arm.extra, REQUEST_TIMEOUT_S)

    def _environment(self, metrics: Path) -> dict[str, str]:
        """`metrics` is the directory through which a scheduler's own figures come to /metrics."""
        paths = os.pathsep.join(filter(None, (str(REPO / "src"), os.environ.get("PYTHONPATH"))))
        offline = {"HF_HUB_OFFLINE": "1"} if Path(self.model).exists() else {}
        return {
            **os.environ,
            **offline,
            **self.environment,
            "PYTHONPATH": paths,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "VLLM_NO_USAGE_STATS": "1",
        }

    def offer(self, arm: Arm, requests: Sequence[Request], seed: int, extra: Extra, deadline_s: float) -> Offered:
        """Raises Died where the server did."""
        server = self._running[arm.name]
        self.await_empty(arm)
        offered = offer(
            Target(server.base_url, self._name),
            requests,
            seed=seed,
            request_timeout_s=REQUEST_TIMEOUT_S,
            deadline_s=deadline_s,
            extra=extra,
            abort_when=server.has_exited,
        )
        server.check_after_load(self._name, offered.timelines)
        self.await_empty(arm)
        return offered

    def memory_bytes(self, arm: Arm) -> int:
        """Of all processes of a server, resident."""
        return sum(process.memory_info().rss for process in self._running[arm.name].process.members())

    def address(self, arm: Arm) -> tuple[str, str]:
        """Its URL, and the model's name for requests."""
        return self._running[arm.name].base_url, self._name

    def await_empty(self, arm: Arm) -> None:
        give_up_s = time.monotonic() + EMPTY_LIMIT_S
        while any(value for name, value in self.samples(arm).items() if name.startswith(BUSY)):
            if time.monotonic() > give_up_s:
                raise self._running[arm.name].died("load", timed_out=True)
            time.sleep(0.1)

    def samples(self, arm: Arm) -> dict[str, float]:
        """Of its /metrics, by name with labels."""
        text = str(ask(self._running[arm.name].base_url, "/metrics", timeout_s=PREFLIGHT_S).body)
        return {name: float(value) for name, value in SAMPLE.findall(text)}


@contextmanager
def serving(
    python: str, model: str, logs: Path, compiled: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Servers]:
    flags = COMMON if compiled else {**COMMON, "enforce_eager": True}
    with ExitStack() as held:
        yield Servers(find_vllm(python), model, logs.absolute(), flags, environment or {}, held)


def why(error: Died) -> str:
    crash = diagnose(error.evidence)
    return f"a server died ({crash.phase}, {crash.category}): {crash.cause}\n{crash.line}"
