"""From what was asked for (`StudySpec`) to the parts that do it (`Study`)."""

from __future__ import annotations

from collections.abc import Sequence

from sloguard.engine import ENGINES
from sloguard.engine.base import Engine, EngineSetup, Facts
from sloguard.errors import SpecError
from sloguard.optim import OPTIMIZERS
from sloguard.optim.base import Goal, Problem
from sloguard.perf.gpus import GIB
from sloguard.registry import load
from sloguard.request import Request
from sloguard.space.flags import count_of
from sloguard.space.memory import fits
from sloguard.space.repair import RepairContext, refusal, repair
from sloguard.space.space import Space
from sloguard.space.vllm import space_for
from sloguard.study.runner import Study
from sloguard.study.spec import StudySpec
from sloguard.trial import Config
from sloguard.workload.arrivals import Scaling
from sloguard.workload.scenarios import build_requests

# Where one of these is tuned, what a GPU holds of the weights differs from config to config.
WEIGHT_KNOBS = {"quantization", "tensor_parallel_size", "pipeline_parallel_size", "cpu_offload_gb"}


def build_study(spec: StudySpec, api_key: str | None = None) -> Study:
    """Builds engine, space, guard and optimizer; starts no engine. Raises SpecError or MissingExtra."""
    requests = build_requests(
        spec.workload,
        rate=spec.request_rate,
        num_requests=spec.num_requests,
        seed=spec.seed,
        scaling=_scaling(spec.trace_scaling),
    )
    optimizer_class = load(OPTIMIZERS, spec.optimizer, "--optimizer", "propose")
    engine: Engine = load(ENGINES, spec.engine, "--engine", "from_setup").from_setup(_setup(spec, api_key))
    facts = engine.facts()
    space = _space(spec, facts)
    engine.check_space(space)
    _check_fits(spec, facts, space)
    _check_lengths(spec, facts, requests)
    context = _repair_context(spec, facts, requests)
    problem = Problem(space, Goal(spec.objective), spec.budget, lambda config: repair(config, space, context).config)
    return Study(
        engine=engine,
        optimizer=optimizer_class(problem),
        space=space,
        repair=lambda config: repair(config, space, context),
        guard=lambda config: refusal(config, space, context),
        requests=requests,
        contract=spec.contract,
        seed=spec.seed,
        try_default=spec.try_default,
    )


def _scaling(name: str) -> Scaling:
    try:
        return Scaling(name)
    except ValueError:
        choices = ", ".join(Scaling)
        raise SpecError("--trace-scaling", name, "no such way to scale a trace", f"Choose one of {choices}.") from None


def _setup(spec: StudySpec, api_key: str | None) -> EngineSetup:
    return EngineSetup(
        model=spec.model,
        gpu=spec.gpu,
        tensor_parallel=spec.tensor_parallel,
        seed=spec.seed,
        fixed=spec.engine_args,
        python=spec.engine_python,
        base_url=spec.base_url,
        api_key=api_key,
    )


def _space(spec: StudySpec, facts: Facts) -> Space:
    """The space asked for, fitted to where it runs, less what the user pinned."""
    if not facts.tunable:
        return Space(())
    space = space_for(
        spec.space,
        version=facts.version,
        offered=facts.offered,
        device=facts.device,
        gpu=facts.gpu,
        max_len=_max_len(spec, facts),
    )
    return space.without({name: value for name, value in spec.engine_args.items() if name in space.names})


def _check_fits(spec: StudySpec, facts: Facts, space: Space) -> None:
    """Weights that no config can make fit are said at once, by the guard's own reckoning."""
    if facts.gpu is None or facts.model is None or WEIGHT_KNOBS & set(space.names):
        return
    fit = fits({}, facts.model, facts.gpu, spec.tensor_parallel, fixed=spec.engine_args, version=facts.version)
    share_bytes = fit.needed_bytes.get("weights", 0)
    if share_bytes >= facts.gpu.vram_bytes:
        problem = f"{share_bytes / GIB:.0f} GiB of weights on each GPU, but {facts.gpu.name} has "
        fix = "Split the model over more GPUs, or take a larger one."
        raise SpecError("--tensor-parallel", spec.tensor_parallel, f"{problem}{facts.gpu.vram_bytes / GIB:.0f}", fix)


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
