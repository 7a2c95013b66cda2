"""From what was asked for (`StudySpec`) to the parts that do it (`Study`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import isfinite

from sloguard.engine import ENGINES
from sloguard.engine.base import Engine, EnginePolicy, EngineSetup, Facts
from sloguard.errors import SpecError
from sloguard.optim import OPTIMIZERS
from sloguard.optim.base import Earlier, Optimizer, Problem
from sloguard.perf.gpus import GIB
from sloguard.registry import load
from sloguard.request import Request
from sloguard.sched.policy import POLICIES
from sloguard.slo import NO_SLO, StageSLO
from sloguard.space.flags import count_of
from sloguard.space.knobs import Categorical
from sloguard.space.layout import LAYOUT, SIZES
from sloguard.space.memory import fits
from sloguard.space.policies import PREFIX, policy_knobs
from sloguard.space.repair import RepairContext, Repaired, refusal, repair
from sloguard.space.space import Space
from sloguard.space.vllm import space_for
from sloguard.study.asking import CapacitySearch, FixedLoad, Question, arrivals_seed, turn_of
from sloguard.study.choice import read_choice
from sloguard.study.runner import Study
from sloguard.study.spec import StudySpec
from sloguard.trial import Config
from sloguard.workload.arrivals import Scaling
from sloguard.workload.scenarios import WORKLOADS, build_requests, recorded

# Where one of these is tuned, what a GPU holds of the weights differs from config to config.
WEIGHT_KNOBS = {"quantization", "tensor_parallel_size", "pipeline_parallel_size", "cpu_offload_gb"}

# Arguments by which a user chooses how tokens are proposed, so that it is not tuned.
SPECULATION = {"speculative_config", "spec_method", "spec_model", "spec_tokens"}


def build_study(spec: StudySpec, api_key: str | None = None) -> Study:
    """Builds engine, space, guard and optimizer; starts no engine. Raises SpecError or MissingExtra."""
    policy = engine_policy(spec)
    _check_layout(spec, "--engine-arg", spec.engine_args)
    requests = _of_turn(spec, 0)
    load(OPTIMIZERS, spec.optimizer, "--optimizer", "propose")  # a wrong name is said before anything slow
    engine: Engine = load(ENGINES, spec.engine, "--engine", "from_setup").from_setup(_setup(spec, api_key, policy))
    facts = engine.facts()
    space = _space(spec, facts, policy)
    engine.check_space(space)
    _check_fits(spec, facts, space)
    for turn in range(1 + spec.rechecks):
        _check_lengths(spec, facts, _of_turn(spec, turn))
    context = _repair_context(spec, facts, requests)

    def repaired(config: Config) -> Repaired:
        return repair(config, space, context)

    return Study(
        engine=engine,
        optimizer=_optimizer(spec, space, repaired),
        space=space,
        repair=repaired,
        guard=lambda config: refusal(config, space, context),
        question=_question(spec, requests),
        goal=spec.goal,
        seed=spec.seed,
        try_default=spec.try_default,
        race=spec.race,
        rechecks=spec.rechecks,
        budget_s=spec.budget_s,
        quality=spec.quality if spec.allow_lossy and facts.answers else None,
        recheck_note=_seen_before(spec, len(requests)),
    )


def informed(study: Study, spec: StudySpec, earlier: tuple[Earlier, ...]) -> Study:
    """The study with an optimizer that knows the trials of `earlier` ones."""
    return replace(study, optimizer=_optimizer(spec, study.space, study.repair, earlier))


def _optimizer(
    spec: StudySpec, space: Space, repaired: Callable[[Config], Repaired], earlier: tuple[Earlier, ...] = ()
) -> Optimizer:
    timed = spec.budget_s is not None
    problem = Problem(space, spec.goal, spec.budget, lambda config: repaired(config).config, earlier, timed)
    return load(OPTIMIZERS, spec.optimizer, "--optimizer", "propose")(problem)


def _requests(spec: StudySpec, rate: float | None, count: int | None, seed: int) -> list[Request]:
    """With what the study promises each; those of a trace that says so itself keep their own."""
    requests = build_requests(
        spec.workload,
        rate=rate,
        num_requests=count,
        seed=seed,
        scaling=_scaling(spec.trace_scaling),
        begin=turn_of(seed, spec.seed) / (1 + spec.rechecks),  # of a trace, each turn has a part of its own
    )
    return _promised(requests, spec.own_slo if spec.policy is None else spec.promise)


def _of_turn(spec: StudySpec, turn: int) -> list[Request]:
    return _requests(spec, spec.request_rate, spec.num_requests, arrivals_seed(spec.seed, turn))


def _seen_before(spec: StudySpec, count: int) -> str | None:
    """What is to be said where a trace is too short for every turn to have `count` requests of its own."""
    there = recorded(spec.workload)
    if there is None or spec.trace_scaling == Scaling.THIN or count * (1 + spec.rechecks) <= there:
        return None
    most = there // (1 + spec.rechecks)
    how = f"--num-requests {most} would hold out the rest" if most else "it is too short to hold out any"
    return f"measured again on requests of which the search had seen some or all: the trace has {there}; {how}"


def _question(spec: StudySpec, requests: Sequence[Request]) -> Question:
    if spec.objective != "capacity":
        return FixedLoad(
            lambda seed: _requests(spec, spec.request_rate, spec.num_requests, seed), spec.contract, spec.seed
        )
    if spec.trace_scaling == Scaling.THIN:
        fix = "Let it stretch, or give --objective goodput."
        raise SpecError("--trace-scaling", spec.trace_scaling, "a capacity may lie beyond the recorded rate", fix)
    most = None if spec.workload in WORKLOADS else len(requests)  # a file has no more

    def at_rate(rate: float, count: int, seed: int) -> list[Request]:
        return _requests(spec, rate, count if most is None else min(count, most), seed)

    near = _near(spec, requests)
    return CapacitySearch(at_rate, spec.contract, spec.seed, near, len(requests), leg_s=spec.load_s)


def _near(spec: StudySpec, requests: Sequence[Request]) -> float:
    """Where to begin [requests/s]: the rate that was given, else the workload's own, else one."""
    if spec.request_rate is not None and isfinite(spec.request_rate):
        return spec.request_rate
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return (len(requests) - 1) / span_s if span_s > 0 else 1.0


def _scaling(name: str) -> Scaling:
    try:
        return Scaling(name)
    except ValueError:
        choices = ", ".join(Scaling)
        raise SpecError("--trace-scaling", name, "no such way to scale a trace", f"Choose one of {choices}.") from None


def engine_policy(spec: StudySpec) -> EnginePolicy | None:
    """Raises SpecError for a policy that there isn't, or options that it doesn't take."""
    if spec.policy is None:
        return None
    read_choice(spec.policy, "--policy").make(POLICIES, "--policy", "plan")
    if spec.promise == NO_SLO:
        fix = "Add --slo-ttft, --slo-tpot, --slo-ttft-p99, --slo-tpot-p99 or --slo-itl-p99."
        raise SpecError("--policy", spec.policy, "an end-to-end limit alone is none it can plan by", fix)
    return asked_policy(spec)


def asked_policy(spec: StudySpec) -> EnginePolicy | None:
    """By name: its code need not be here, where a study is only read."""
    if spec.policy is None:
        return None
    choice = read_choice(spec.policy, "--policy")
    return EnginePolicy(choice.name, dict(choice.options), spec.promise)


def _promised(requests: Sequence[Request], slo: StageSLO) -> list[Request]:
    """Requests without a promise of their own get the study's, so that the policy knows what it is held to."""
    return [
        replace(
            request, stages=tuple(replace(stage, slo=slo) if stage.slo == NO_SLO else stage for stage in request.stages)
        )
        for request in requests
    ]


def _setup(spec: StudySpec, api_key: str | None, policy: EnginePolicy | None) -> EngineSetup:
    return EngineSetup(
        model=spec.model,
        gpu=spec.gpu,
        tensor_parallel=spec.tensor_parallel,
        gpus=spec.gpus,
        seed=spec.seed,
        fixed=spec.engine_args,
        python=spec.engine_python,
        base_url=spec.base_url,
        api_key=api_key,
        policy=policy,
    )


def _space(spec: StudySpec, facts: Facts, policy: EnginePolicy | None) -> Space:
    """The space asked for, fitted to where it runs, less what the user pinned; a policy's own knobs beside vLLM's."""
    if not facts.tunable:
        return Space(())
    if spec.gpus is not None and not facts.layouts:
        raise SpecError("--gpus", spec.gpus, "the engine does not lay them out", "Give --tensor-parallel.")
    space = space_for(
        spec.space,
        version=facts.version,
        offered=facts.offered,
        device=facts.device,
        gpu=facts.gpu,
        max_len=_max_len(spec, facts),
        allow_lossy=spec.allow_lossy,
    )
    _check_layout(spec, "--space", space.names)
    if facts.layouts:
        space = Space((*space.knobs, Categorical(LAYOUT, facts.layouts)))
    pinned = dict(spec.engine_args)
    if SPECULATION & set(pinned):
        pinned["speculative"] = None
    if policy is not None:
        pinned |= {"scheduling_policy": "fcfs", **{f"{PREFIX}{name}": value for name, value in policy.options.items()}}
        if not spec.space.endswith(".toml"):  # whoever names knobs names all of them
            space = Space((*space.knobs, *policy_knobs(policy.name)))
    elif own := [name for name in space.names if name.startswith(PREFIX)]:
        raise SpecError("--space", own[0], "is a knob of a policy, and none is asked for", "Add --policy.")
    return space.without({name: value for name, value in pinned.items() if name in space.names})


def _check_layout(spec: StudySpec, flag: str, names: Iterable[str]) -> None:
    """Raises SpecError where `flag` says what `--gpus` is to say."""
    taken = {LAYOUT, *SIZES} if spec.gpus is not None else {LAYOUT}
    if both := sorted(taken & set(names)):
        raise SpecError(flag, both[0], "is what --gpus tunes", "Drop it, or give sizes and no --gpus.")


def _check_fits(spec: StudySpec, facts: Facts, space: Space) -> None:
    """Weights that no config can make fit are said at once, by the guard's own reckoning."""
    gpu, model = facts.gpu, facts.model
    if gpu is None or model is None or WEIGHT_KNOBS & set(space.names):
        return

    def weight_bytes(laid_out: Config) -> int:
        fit = fits(laid_out, model, gpu, spec.tensor_parallel, fixed=spec.engine_args, version=facts.version)
        return fit.needed_bytes.get("weights", 0)

    share_bytes = min(map(weight_bytes, [Config({LAYOUT: name}) for name in facts.layouts] or [Config()]))
    if share_bytes >= gpu.vram_bytes:
        problem = f"{share_bytes / GIB:.0f} GiB of weights on each GPU, but {gpu.name} has {gpu.vram_bytes / GIB:.0f}"
        fix = "Split the model over more GPUs, or take a larger one."
        raise SpecError("--gpus" if facts.layouts else "--tensor-parallel", spec.gpus_each, problem, fix)


def _check_lengths(spec: StudySpec, facts: Facts, requests: Sequence[Request]) -> None:
    """Requests that every config would refuse are said before an engine is started for them."""
    longest = _max_len(spec, facts)
    over = [r for r in requests if longest is not None and r.prompt_tokens + r.output_tokens > longest]
    if over:
        problem = f"{len(over)} of {len(requests)} requests are longer than the {longest} tokens that are served"
        fix = "Shorten them, or raise --engine-arg max_model_len where the model allows it."
        raise SpecError("--workload", spec.workload, problem, fix)


def _max_len(spec: StudySpec, facts: Facts) -> int | None:
    """The longest sequence [tokens] that can be served, None where it isn't known."""
    return count_of(spec.engine_args.get("max_model_len")) or (facts.model.max_position if facts.model else None)


def _repair_context(spec: StudySpec, facts: Facts, requests: Sequence[Request]) -> RepairContext:
    return RepairContext(
        version=facts.version,
        model=facts.model,
        gpu=facts.gpu,
        tp=spec.tensor_parallel,
        fixed=Config(spec.engine_args),
        expected_tokens=sum(r.prompt_tokens + r.output_tokens for r in requests) // len(requests),
        paper=spec.space == "paper8",
    )
