"""`sloguard tune`: find the engine configuration that keeps the SLOs at the highest request rate."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sloguard import __version__
from sloguard.cli.options import api_key_from, parse_engine_args
from sloguard.cli.progress import StudyProgress, counted, plain_console
from sloguard.engine.gpu_detect import visible_gpus
from sloguard.engine.lend import scheduler_arguments
from sloguard.engine.ray_cluster import cluster, places
from sloguard.errors import SpecError
from sloguard.plugins.options import Promise
from sloguard.report.files import write_text_atomic
from sloguard.report.tables import study_report
from sloguard.space.flags import to_yaml
from sloguard.space.layout import LAYOUT, Layout
from sloguard.space.policies import of_policy
from sloguard.study import failures
from sloguard.study.build import build_study, engine_policy, informed
from sloguard.study.lanes import Lane, Work, await_workers, close_all, gpu_lanes
from sloguard.study.log import LOG_NAME, StudyLog
from sloguard.study.parallel import run_parallel
from sloguard.study.prior import NONE, SIMULATION, can_simulate, earlier_trials
from sloguard.study.ray_lanes import ray_lanes
from sloguard.study.results import Results
from sloguard.study.runner import Study, run_study
from sloguard.study.spec import ATTAINMENT, StudySpec, digest_of
from sloguard.trial import Value

EXIT_INFEASIBLE = 3
RESULT_FILES = ("study.jsonl", "summary.json", "best.yaml", "trials")
FLAGS = {
    "slo_p99_s": "--slo-*-p99 (in seconds)",
    "slo_s": "--slo-* (in seconds)",
    "engine_args": "--engine-arg",
    "try_default": "--default",
    "rechecks": "--confirm",
    "budget_s": "--budget-minutes (in seconds)",
    "priors": "--prior",
}


def command(
    model: Annotated[str, typer.Option(help="Model name or path, as the engine takes it.")],
    out: Annotated[str, typer.Option(help="Directory of the study: log, summary, best config, engine logs.")],
    engine: Annotated[str, typer.Option(help="vllm | sim | endpoint, or your own as package.module:Class.")] = "vllm",
    gpu: Annotated[str | None, typer.Option(help="GPU, e.g. A100-40GB. Needed by sim; detected for vllm.")] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="GPUs the model is split over; 1 if absent.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of a trial; how the model uses them is tuned.")] = None,
    optimizer: Annotated[
        str, typer.Option(help="guided | random | tpe | tba | tba-tpe | constrained-bo, or your own.")
    ] = "guided",
    budget: Annotated[int, typer.Option(help="Configs to try; each is one engine start.")] = 15,
    budget_minutes: Annotated[float | None, typer.Option(help="Try no more after so many minutes of trials.")] = None,
    budget_gpu_hours: Annotated[float | None, typer.Option(help="The same in hours times GPUs of a trial.")] = None,
    confirm: Annotated[int, typer.Option(help="Fresh starts of each candidate for the best, at the end.")] = 2,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="sim|DIR|none",
            help="Begin with what a simulation (where there can be one, if absent) or a study found.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, prompts and proposals.")] = 0,
    slo_ttft: Annotated[float | None, typer.Option(help="Promise to each request: time to first token, ms.")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="Promise to each: mean time per output token, ms.")] = None,
    slo_latency: Annotated[float | None, typer.Option(help="Promise to each: end-to-end latency, ms.")] = None,
    attainment: Annotated[float, typer.Option(help="Share of requests that have to get what they are promised.")] = (
        ATTAINMENT
    ),
    slo_ttft_p99: Annotated[float | None, typer.Option(help="Limit on p99 time to first token, ms.")] = None,
    slo_itl_p99: Annotated[float | None, typer.Option(help="Limit on p99 inter-token latency, ms.")] = None,
    slo_tpot_p99: Annotated[float | None, typer.Option(help="Limit on p99 time per output token, ms.")] = None,
    slo_latency_p99: Annotated[float | None, typer.Option(help="Limit on p99 end-to-end latency, ms.")] = None,
    objective: Annotated[
        str, typer.Option(help="capacity (largest rate that keeps the SLOs) | goodput | latency, at --request-rate.")
    ] = "capacity",
    race: Annotated[
        bool, typer.Option(show_default=False, help="Drop a config that fails at the best rate so far (it does).")
    ] = True,
    space: Annotated[str, typer.Option(help="vllm | paper8 | a TOML file of knobs.")] = "vllm",
    workload: Annotated[str, typer.Option(help="interactive | batch | bursty | a trace file.")] = "interactive",
    request_rate: Annotated[
        float | None, typer.Option(help="Requests/s offered, or where the search begins; the workload's own if absent.")
    ] = None,
    num_requests: Annotated[int | None, typer.Option(help="Requests of a load; the workload's own if absent.")] = None,
    trace_scaling: Annotated[str, typer.Option(help="How a trace is brought to the rate: stretch | thin.")] = "stretch",
    engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Engine argument pinned in every trial.")
    ] = None,
    engine_python: Annotated[str | None, typer.Option(help="Python that has vLLM; this one if absent.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Running server, for --engine endpoint.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME[:key=value]", help="Tune with sloguard's scheduler inside, its knobs in the space."),
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Tune what may change answers too, such as an FP8 KV cache.")
    ] = False,
    quality: Annotated[
        float, typer.Option(help="With --allow-lossy: share of the default's answers that has to come unchanged.")
    ] = 0.9,
    default: Annotated[bool, typer.Option(show_default=False, help="Try the engine's default first (it does).")] = True,
    parallel: Annotated[int, typer.Option(min=1, help="Trials at a time, each on GPUs of its own.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run trials on this Ray cluster: HOST:PORT, or auto.")
    ] = None,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Try again what never started here in earlier studies.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Restarts the engine with candidate configs, learns from crashes, ends with the best that keeps the SLOs.

    Exit code: 0 with a feasible config, 3 with none, 2 on bad input.

    Example: `sloguard tune --engine sim --gpu A100-40GB --model Qwen/Qwen2-1.5B --slo-ttft-p99 500 --out study`
    """
    if gpus is not None and tensor_parallel is not None:
        raise SpecError("--gpus", gpus, "lays the GPUs out, as --tensor-parallel does", "Give one of them.")
    limits_ms = {"ttft": slo_ttft_p99, "itl": slo_itl_p99, "tpot": slo_tpot_p99, "e2el": slo_latency_p99}
    own_ms = {"ttft": slo_ttft, "tpot": slo_tpot, "e2el": slo_latency}
    spec = StudySpec(
        engine=engine,
        model=model,
        optimizer=optimizer,
        budget=budget,
        seed=seed,
        slo_p99_s={name: ms / 1000 for name, ms in limits_ms.items() if ms is not None},
        objective=objective,
        space=space,
        workload=workload,
        request_rate=request_rate,
        num_requests=num_requests,
        gpu=gpu,
        tensor_parallel=tensor_parallel or 1,
        gpus=gpus,
        base_url=base_url,
        engine_python=engine_python,
        engine_args=parse_engine_args(engine_arg or ()),
        try_default=default,
        trace_scaling=trace_scaling,
        policy=policy,
        slo_s={name: ms / 1000 for name, ms in own_ms.items() if ms is not None},
        attainment=attainment,
        race=race,
        rechecks=confirm,
        budget_s=_budget_s(budget_minutes, budget_gpu_hours, gpus or tensor_parallel or 1),
        priors=_priors(prior),
        allow_lossy=allow_lossy,
        quality=quality,
        inputs=_inputs(space, workload, *(str(Path(name) / LOG_NAME) for name in prior or ())),
    )
    if not out.strip():
        raise SpecError("--out", out, "is empty", "Name a directory; it is made if it doesn't exist.")
    log = StudyLog(Path(out))
    _check_target(log, resume)
    api_key = api_key_from(api_key_env)
    study = build_study(spec, api_key)
    if allow_lossy and study.quality is None:
        plain_console(stderr=True).print("what this engine answers can't be checked: --quality has no effect")
    if prior is None and spec.engine != "sim" and can_simulate(spec, study.engine.facts()):
        spec = replace(spec, priors=(SIMULATION,))
    started_s = time.monotonic()
    with log.writer(), ExitStack() as stack:
        if spec.priors:
            with counted("simulating beforehand") as on_trial:
                study = informed(study, spec, earlier_trials(spec, study, log.directory, on_trial))
        lanes = _lanes(spec, api_key, study, log.directory, parallel, ray_address, stack)
        remembers = study.engine.facts().crashes_last
        known = failures.recalled(study.engine.describe()) if remembers and not retry_failures else {}
        _open(log, spec, study, len(lanes), known)
        taken_down = failures.from_json(log.header().get("failures", []))  # what was known when the study began
        study = replace(study, guard=failures.guarded(study.guard, taken_down))
        try:
            with StudyProgress(spec.goal, spec.budget, log.trials()) as progress:
                if lanes:
                    trials = run_parallel(study, log, spec.budget, lanes, spec.engine == "sim", progress.starting)
                else:
                    trials = run_study(study, log, spec.budget, progress.starting, progress.phase)
                for trial in trials:
                    progress.finished(trial)
                    if remembers:
                        failures.remember(study.engine.describe(), trial)
        finally:  # what is known when a study is interrupted or the machine fails is as good as at its end
            results = Results(log.trials(), spec.goal, spec.try_default)
            summary = _write_results(log.directory, spec, study, results, time.monotonic() - started_s)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        console = plain_console()
        console.print(study_report(results, spec.engine == "sim"))
        if command := _command(study, results):
            typer.echo(f"Apply it: {shlex.join(command)}")  # as it stands, so that it can be copied whole
        made = [name for name in RESULT_FILES if (log.directory / name).exists()]
        typer.echo(f"Everything is in {out}/: {', '.join(made)}")
    return 0 if results.best else EXIT_INFEASIBLE


def _budget_s(minutes: float | None, gpu_hours: float | None, gpus: int) -> float | None:
    """The tighter of the two."""
    limits_s = [
        minutes * 60 if minutes is not None else None,
        gpu_hours * 3600 / gpus if gpu_hours is not None else None,
    ]
    return min((limit_s for limit_s in limits_s if limit_s is not None), default=None)


def _priors(given: Sequence[str] | None) -> tuple[str, ...]:
    """Raises SpecError for none and some."""
    if given and NONE in given and len(given) > 1:
        raise SpecError("--prior", " ".join(given), "none and some", "Give one or the other.")
    return tuple(name for name in given or () if name != NONE)


def _inputs(*paths: str) -> dict[str, str]:
    return {path: digest for path in paths if (digest := digest_of(path)) is not None}


def _check_target(log: StudyLog, resume: bool) -> None:
    """Before anything slow: an existing study is never overwritten, and a resumed one must be readable."""
    if log.directory.exists() and not log.directory.is_dir():
        raise SpecError("--out", str(log.directory), "is a file", "Give a directory; it is made if it doesn't exist.")
    if not log.exists() or not log.trials():
        return
    if not resume:
        fix = "Add --resume to go on with it, or choose another directory."
        raise SpecError("--out", str(log.directory), "already holds a study", fix)


def _lanes(
    spec: StudySpec,
    api_key: str | None,
    study: Study,
    directory: Path,
    parallel: int,
    ray_address: str | None,
    stack: ExitStack,
) -> list[Lane]:
    """So many, closed by `stack`; none where trials run here, one after another. Raises SpecError where there are too
    few GPUs.
    """
    if parallel == 1 and ray_address is None:
        return []
    each = 0 if spec.engine == "sim" else spec.gpus_each
    if each:
        _check_apart(study, parallel, ray_address)
    work = Work(spec, api_key, study.engine.describe(), os.getcwd())
    if ray_address is not None:
        ray = stack.enter_context(cluster(ray_address))
        if (there := places(ray, each)) < parallel:
            plain_console(stderr=True).print(
                f"the cluster has room for {there:.0f} of {parallel} trials at a time; the rest wait"
            )
        lanes = ray_lanes(ray, work, parallel, each)
    else:
        devices = visible_gpus() if each else []
        if len(devices) < parallel * each:
            problem = f"{parallel} x {each} GPUs are needed, and {len(devices)} are there"
            raise SpecError("--parallel", parallel, problem, "Give less.")
        await_workers(directory)
        lanes = gpu_lanes(replace(work, directory=directory), parallel, devices)
    stack.callback(close_all, lanes)
    return lanes


def _check_apart(study: Study, parallel: int, ray_address: str | None) -> None:
    """Raises SpecError where trials would measure each other."""
    facts = study.engine.facts()
    flag, value = ("--ray-address", ray_address) if ray_address else ("--parallel", parallel)
    if not facts.tunable or facts.device == "cpu":
        problem = "trials at a time would share one server" if not facts.tunable else "trials would share a CPU"
        raise SpecError(flag, value, f"{problem}, and measure each other", "Drop it.")


def _open(log: StudyLog, spec: StudySpec, study: Study, lanes: int, known: failures.Failures) -> None:
    """Writes the header of a new study; holds an old one's against `spec`. Raises SpecError where they differ.

    A header without a trial is what a start that failed at once left: there is nothing in it to go on with.
    """
    if not log.exists() or not log.trials():
        log.clear()
        header = {"spec": spec.to_json(), "spec_digest": spec.digest, "sloguard": __version__}
        if lanes:
            header["lanes"] = lanes
        if known:
            header["failures"] = failures.to_json(known)
        log.append_header({**header, "engine": study.engine.describe()})
        return
    header = log.header()
    recorded, engine = header["spec"], header["engine"]
    fix = "Resume with the same options, or start a new study in another directory."
    for name in spec.differs_from(recorded):
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        made = f"the study in {log.directory} was made with {recorded.get(name)!r}"
        raise SpecError(flag, spec.to_json()[name], made, fix)
    if (before := header.get("lanes", 0)) != lanes:
        how = f"with {before} at a time" if before else "one after another, in the command itself"
        raise SpecError("--parallel", max(lanes, 1), f"trials of the study in {log.directory} were made {how}", fix)
    for name, mine in study.engine.describe().items():
        if engine.get(name) != mine:
            raise SpecError(f"engine {name}", mine, f"the study in {log.directory} ran on {engine.get(name)!r}", fix)


def _command(study: Study, results: Results) -> list[str]:
    return study.engine.command_for(results.best.overrides) if results.best else []


def _write_results(out: Path, spec: StudySpec, study: Study, results: Results, wall_s: float) -> dict[str, object]:
    summary = results.to_json(wall_s)
    write_text_atomic(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if results.best and _command(study, results):
        config, options = of_policy(results.best.overrides)
        fixed = {"model": _anywhere(spec.model), **_fixed(spec, study), **_scheduling(spec, options)}
        write_text_atomic(out / "best.yaml", to_yaml(config, fixed))
    else:
        (out / "best.yaml").unlink(missing_ok=True)
    return summary


def _scheduling(spec: StudySpec, options: Mapping[str, Value]) -> dict[str, Value]:
    """Arguments for a vLLM beside which sloguard is installed: the policy, and the study's promise to every request."""
    policy = engine_policy(spec)
    if policy is None:
        return {}
    return scheduler_arguments(
        {
            "policy": policy.name,
            "policy_options": {**policy.options, **options},
            "slo_classes": {"default": Promise.of(policy.promise).model_dump(exclude_none=True)},
            "default_class": "default",
        }
    )


def _anywhere(model: str) -> str:
    """A model's path as it holds from any directory; a hub name as it stands."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _fixed(spec: StudySpec, study: Study) -> dict[str, Value]:
    laid_out = study.engine.facts().layouts
    split = {LAYOUT: laid_out[0]} if laid_out else Layout(spec.tensor_parallel).sizes
    return {**split, **spec.engine_args}
