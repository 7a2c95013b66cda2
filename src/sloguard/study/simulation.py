"""From what was asked for (`SimSpec`) to simulated engines, their load, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from statistics import fmean
from time import perf_counter

from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import SimulatedEngine
from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch, BatchTime
from sloguard.perf.coefficients import batch_time, coefficients_for
from sloguard.perf.gpus import gpu_named
from sloguard.perf.online import OnlineTime
from sloguard.request import Request, Timeline
from sloguard.rng import stream
from sloguard.route.base import ROUTERS, Router
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Lengths, Mean, Oracle, Quantile
from sloguard.sched.plan_check import make_checked
from sloguard.sched.policy import POLICIES, Policy, Speculation
from sloguard.sim.cluster import MakeReplica
from sloguard.sim.kernel import Kernel
from sloguard.sim.memory import Memory, gib, memory_of
from sloguard.sim.noise import jitter
from sloguard.sim.pools import Link, Pools, whole_prompts
from sloguard.sim.replica import OnDecline, OnTokens, Planner, Replica
from sloguard.sim.serve import Run, serve, simulate_cluster
from sloguard.sim.settings import Settings, read_settings
from sloguard.slo import BEST_EFFORT, NO_SLO, StageSLO, TpotRule
from sloguard.study.choice import Choice
from sloguard.study.sim_spec import DISTSERVE, ENGINE_OPTIONS, SimSpec
from sloguard.workload.scenarios import (
    RATE_FLAG,
    Traced,
    resolve_slos,
    scenario_named,
    scenario_requests,
    trace_requests,
)

ANY_RATE = 1.0  # requests/s, where it doesn't matter when requests come; lengths alone have no rate of their own
MAX_MODEL_LEN = 8192  # where the user says nothing: no scenario asks for more
FEWEST_REQUESTS = 500  # an engine: at 90 % attainment a standard error of 1.3 points, a seed
SHORTEST_S = 200.0  # of virtual time at the first guess: many times what an engine takes to fill up, several bursts
GUESS_BATCH = 64  # decodes a step, for the first guess
GUESS_SHARE = 0.5  # of the service rate: promises bind before throughput does
DRAFT_SHARE = 0.1  # a drafting step, of a decode step: 0.07 and 0.11 in SLOs-Serve's published coefficients

NAMES = {**POLICIES, DISTSERVE: POLICIES["vllm"]}
LENGTHS: dict[str, Callable[[], Lengths]] = {"quantile": Quantile, "mean": Mean, "oracle": Oracle}


@dataclass(frozen=True, slots=True)
class Machine:
    """One engine of the deployment."""

    time: BatchTime
    settings: Settings
    kv_blocks: int
    kv_token_bytes: float
    source: str


class FixedTime(OnlineTime):
    """Believes what it was told, whatever it sees."""

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learns nothing."""


@lru_cache(maxsize=64)
def machine_of(spec: SimSpec) -> Machine:
    """Raises SpecError for a model or GPU that isn't known, or where one sequence does not fit."""
    model, gpu, tp = find_model_shape(spec.model), gpu_named(spec.gpu), spec.tensor_parallel
    if model.heads % tp:
        problem = f"{model.heads} attention heads of {model.name} can't be split so"
        raise SpecError("--tensor-parallel", tp, problem, "Give a divisor of them.")
    longest = min(model.max_position, spec.max_model_len or MAX_MODEL_LEN)
    if spec.max_model_len and spec.max_model_len > longest:
        raise SpecError("--max-model-len", spec.max_model_len, f"{model.name} takes {longest} tokens", "Give fewer.")
    fixed = {"max_model_len": longest, "max_num_batched_tokens": spec.max_num_batched_tokens}
    fixed |= {"max_num_seqs": spec.max_num_seqs} if spec.max_num_seqs else {}
    settings = read_settings(SimulatedEngine(model, gpu, tp, fixed=fixed).default_config())
    if spec.max_num_seqs is None:  # vLLM caps its own default too (EngineArgs, 0.32)
        settings = replace(settings, max_num_seqs=min(settings.max_num_seqs, settings.max_num_batched_tokens))
    memory = memory_of(settings, model, gpu, tp, 0)
    if memory.kv_longest > memory.kv:
        raise SpecError("--model", model.name, *_too_small(memory, settings, f"{tp} x {gpu.name}"))
    time = batch_time(
        model,
        gpu,
        tp,
        eager=settings.enforce_eager,
        graph_sizes=settings.graph_sizes,
        synchronous=not settings.async_scheduling,
    )
    return Machine(
        _with_drafts(time, spec),
        settings,
        memory.kv_blocks,
        memory.kv_block / settings.block_size,
        coefficients_for(model, gpu, tp).source,
    )


def _too_small(memory: Memory, settings: Settings, gpus: str) -> tuple[str, str]:
    """What fills a GPU's memory, and what to do."""
    larger = "Take a larger GPU or --tensor-parallel"
    if memory.weights >= memory.budget:
        problem = f"its weights alone take {gib(memory.weights)} GiB a GPU on {gpus}, of {gib(memory.budget)} usable"
        return problem, f"{larger}."
    if memory.kv <= 0:
        step = f"{settings.max_num_batched_tokens} tokens and {settings.max_num_seqs} sequences"
        left = memory.budget - memory.weights
        taken = f"a step of {step}, graphs and workspaces take {gib(left - memory.kv)} GiB"
        problem = f"{taken} on {gpus}, where its weights leave {gib(left)}"
        return problem, f"{larger}, or fewer --max-num-batched-tokens or --max-num-seqs."
    room = f"{gib(memory.kv)} GiB of KV memory on {gpus}"
    return f"{room} can't hold one sequence of {settings.max_model_len} tokens", f"{larger}, or a --max-model-len."


def _with_drafts(time: BatchTime, spec: SimSpec) -> BatchTime:
    if spec.speculation is None:
        return time
    stated = spec.speculation.step_s
    known = time.draft_step_s or DRAFT_SHARE * time.seconds(Batch(decodes=1, kv_tokens=1))
    return replace(time, draft_step_s=known if stated is None else stated)


def requests_of(spec: SimSpec, rate: float | None, seed: int) -> Traced:
    """What is asked at `rate` requests/s over all GPUs: the same requests at every rate, faster or slower.

    None is the workload's own rate. A scenario makes as many requests as `num_requests` says, or enough for figures to
    mean something; a trace is taken whole. What is longer than the engine takes is left out, and counted of a trace.
    Promises of a slow-down become seconds by this deployment's zero-load prefill time: one step for the whole prompt,
    whatever the engine's batch limit.
    """
    asked = _asked(spec, rate, seed, spec.num_requests or (None if spec.trace else enough_requests(spec)))
    time = machine_of(spec).time

    def zero_load_s(prompt_tokens: int, cached_tokens: int) -> float:
        return time.seconds(Batch(((prompt_tokens - cached_tokens, cached_tokens),)))

    return Traced(resolve_slos(asked.requests, zero_load_s), asked.dropped)


def _asked(spec: SimSpec, rate: float | None, seed: int, count: int | None) -> Traced:
    longest = machine_of(spec).settings.max_model_len
    if spec.trace:
        return trace_requests(
            spec.trace,
            rate=rate,
            num_requests=count,
            seed=seed,
            slo=spec.slo or spec.scenario,
            max_total_tokens=longest,
        )
    assert spec.scenario is not None, "SimSpec.check"
    assert count is not None, "only a trace says itself how long it is"
    requests = scenario_requests(
        spec.scenario,
        rate=rate,
        num_requests=count,
        seed=seed,
        max_total_tokens=longest,
        best_effort_share=spec.best_effort_share,
    )
    return Traced(requests if spec.slo is None else [_promised(each, spec.slo) for each in requests], 0)


def _promised(request: Request, slo: StageSLO) -> Request:
    if request.slo_class == BEST_EFFORT:
        return request
    return replace(request, stages=tuple(replace(stage, slo=slo) for stage in request.stages))


def enough_requests(spec: SimSpec) -> int:
    """A number a run, in hundreds: see `FEWEST_REQUESTS` and `SHORTEST_S`."""
    gpus = spec.gpus
    wanted = max(FEWEST_REQUESTS * gpus // spec.tensor_parallel, SHORTEST_S * first_guess(spec) * gpus)
    return 100 * ceil(wanted / 100)


@lru_cache(maxsize=64)
def first_guess(spec: SimSpec) -> float:
    """Requests/s a GPU to begin a search at: a share of what one engine serves in steps of `GUESS_BATCH` decodes."""
    time = machine_of(spec).time
    seconds: list[float] = []
    for request in _asked(spec, ANY_RATE, 0, spec.num_requests if spec.trace else FEWEST_REQUESTS).requests:
        context = 0
        busy_s = 0.0
        for stage in request.stages:
            busy_s += time.seconds(Batch(((stage.prompt_tokens, context),)))
            context += stage.prompt_tokens + stage.output_tokens
            decodes = Batch(decodes=GUESS_BATCH, kv_tokens=GUESS_BATCH * context)
            busy_s += stage.output_tokens * time.seconds(decodes) / GUESS_BATCH
        seconds.append(busy_s)
    return GUESS_SHARE / fmean(seconds) / spec.tensor_parallel


def run(
    spec: SimSpec,
    requests: Sequence[Request],
    seed: int,
    *,
    stop_when: Callable[[Timeline], bool] | None = None,
    timed: bool = False,
) -> Run:
    """Serves the requests. `timed` measures how long each decision takes, which no result depends on unless
    `spec.charge_planner`.
    """
    machine = machine_of(spec)

    def replica(number: int, only_prefill: bool = False) -> MakeReplica:
        return _replica(spec, machine, seed, number, timed=timed, only_prefill=only_prefill)

    if pools := spec.pools:
        prefill = [replica(number, only_prefill=True) for number in range(pools.prefill)]
        decode = [replica(pools.prefill + number) for number in range(pools.decode)]
        link = Link(machine.kv_token_bytes, spec.link_bytes_s)
        return serve(requests, lambda k, on_tokens: Pools(k, prefill, decode, link, on_tokens), stop_when=stop_when)
    router: Router = spec.router.make(ROUTERS, "--router", "choose", {"rng": stream(seed, "router")})
    replicas = [replica(number) for number in range(spec.replicas)]
    return simulate_cluster(requests, replicas, router, stale_s=spec.stale_s, stop_when=stop_when)


def check(spec: SimSpec, rate: float | None = None) -> None:
    """Makes everything once and serves one request. Raises SpecError for what the user can mend."""
    run(spec, requests_of(spec, rate, 0).requests[:1], 0)


def check_search(spec: SimSpec) -> None:
    """As `check`, where the rate is what is looked for."""
    try:
        check(spec, ANY_RATE)
    except SpecError as error:
        if error.field != RATE_FLAG:
            raise
        problem = "it offers all at once, so there is no rate to search"
        raise SpecError("--trace", spec.trace, problem, "Give a trace that lasts, or lengths alone.") from error
    if (spec.scenario is None or spec.best_effort_share) and _promises_nothing(requests_of(spec, ANY_RATE, 0)):
        problem = "promises nothing, so every rate passes"
        if spec.trace:
            raise SpecError(
                "--trace", spec.trace, problem, "Add --scenario S for S's promises, or --slo, e.g. --slo ttft=500."
            )
        raise SpecError("--best-effort-share", spec.best_effort_share, problem, "Give less.")


def step_times(spec: SimSpec) -> str:
    """Where they come from."""
    return machine_of(spec).source


def notes_on(specs: Sequence[SimSpec], rate: float | None = None) -> list[str]:
    """What a reader of the figures has to know of how they came about."""
    notes = ["Simulated engines: figures are a model's, times are virtual."]
    notes += [f"Step times: {step_times(spec)}." for spec in specs]
    notes += [f"Promised by {text}." for spec in specs if (text := _promise_text(spec))]
    for spec in specs:
        asked = requests_of(spec, rate, 0)
        if asked.dropped:
            longest = machine_of(spec).settings.max_model_len
            dropped = f"{asked.dropped} of {spec.trace} (over {longest} tokens)"
            notes.append(f"Requests that are too long and left out: {dropped}.")
        if _promises_nothing(asked):
            notes.append(f"No request of {spec.workload} is promised anything: each that completes counts as kept.")
    return list(dict.fromkeys(notes))


def _promise_text(spec: SimSpec) -> str:
    """Of a trace the promises are its own."""
    if spec.slo is not None:
        return f"--slo: {spec.slo.text}"
    return "; ".join(app.promised for app in scenario_named(spec.scenario).applications) if spec.scenario else ""


def _promises_nothing(asked: Traced) -> bool:
    return all(stage.slo == NO_SLO for request in asked.requests for stage in request.stages)


def _policy(choice: Choice) -> Policy:
    """One of the table as it is, or the user's own under watch: its plans raise PolicyError where they break a rule."""

    def make() -> Policy:
        return choice.make(NAMES, "--policy", "plan", elsewhere=ENGINE_OPTIONS)

    if choice.name in NAMES:
        return make()
    return make_checked(make, choice.name.partition(":")[0], f"--policy {choice.text}")


def _replica(
    spec: SimSpec, machine: Machine, seed: int, number: int, *, timed: bool, only_prefill: bool
) -> MakeReplica:
    policy = _policy(spec.policy)
    settings, drafting = machine.settings, spec.speculation
    kv = KvCache(machine.kv_blocks, settings.block_size, settings.enable_prefix_caching)

    limits = settings.limits(kv.blocks)
    if only_prefill:
        limits = whole_prompts(limits)

    def replica(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        return Replica(
            kernel,
            policy,
            limits,
            kv,
            machine.time,
            on_tokens,
            on_decline,
            predicted=_predicted(spec, machine.time),
            lengths=LENGTHS[spec.lengths](),
            step_scale=jitter(stream(seed, "noise", number), spec.noise) if spec.noise else None,
            speculation=Speculation(drafting.max_draft_tokens, drafting.acceptance) if drafting else None,
            drafts_rng=stream(seed, "drafts", number),
            planner=Planner(
                perf_counter if timed or spec.charge_planner else None, spec.charge_planner, spec.async_lag
            ),
            pace_from_first=spec.tpot_rule is not TpotRule.DEADLINE,
        )

    return replica


def _predicted(spec: SimSpec, time: BatchTime) -> OnlineTime | None:
    """What policies are told of step times; None is the truth."""
    if spec.noise == 0 and spec.batch_time_scale == 1:
        return None
    return (OnlineTime if spec.learn_batch_time else FixedTime)(time.scaled(spec.batch_time_scale))
