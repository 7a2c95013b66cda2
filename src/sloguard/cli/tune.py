"""`sloguard tune`: find the engine configuration that keeps the SLOs at the highest request rate."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sloguard import __version__
from sloguard.cli.options import api_key_from, parse_engine_args
from sloguard.cli.progress import StudyProgress, counted, plain_console
from sloguard.cli.report import PAGE_NAME, leave_page
from sloguard.cli.tune_lanes import lanes_of
from sloguard.cli.tune_results import serve_command_of, write_results
from sloguard.errors import SpecError
from sloguard.report.tables import study_report
from sloguard.study import failures
from sloguard.study.build import build_study, informed
from sloguard.study.header import read_header
from sloguard.study.log import LOG_NAME, StudyLog
from sloguard.study.parallel import run_parallel
from sloguard.study.prior import NONE, SIMULATION, can_simulate, earlier_trials
from sloguard.study.results import Results
from sloguard.study.runner import Study, run_study
from sloguard.study.spec import ATTAINMENT, LOAD_S, StudySpec, digest_of

EXIT_INFEASIBLE = 3
RESULT_FILES = (PAGE_NAME, "study.jsonl", "summary.json", "best.yaml", "trials")
FLAGS = {
    "slo_p99_s": "--slo-*-p99 (in seconds)",
    "slo_s": "--slo-* (in seconds)",
    "engine_args": "--engine-arg",
    "try_default": "--default",
    "rechecks": "--confirm",
    "budget_s": "--budget-minutes (in seconds)",
    "load_s": "--load-seconds",
    "priors": "--prior",
}

# A panel of the help each; what belongs to none, such as what has to be given, comes before them.
_promise = partial(typer.Option, rich_help_panel="What is promised")
_offer = partial(typer.Option, rich_help_panel="What is offered")
_place = partial(typer.Option, rich_help_panel="Where it runs")
_tuned = partial(typer.Option, rich_help_panel="What is tuned")
_search = partial(typer.Option, rich_help_panel="How it is searched")


def command(
    model: Annotated[str, typer.Option(help="Model name or path, as the engine takes it.")],
    out: Annotated[str, typer.Option(help="Directory of the study: log, summary, best config, engine logs.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    slo_ttft: Annotated[float | None, _promise(help="Promise to each request: time to first token, ms.")] = None,
    slo_tpot: Annotated[float | None, _promise(help="Promise to each: mean time per output token, ms.")] = None,
    slo_latency: Annotated[float | None, _promise(help="Promise to each: end-to-end latency, ms.")] = None,
    attainment: Annotated[float, _promise(help="Share of requests that have to get what they are promised.")] = (
        ATTAINMENT
    ),
    slo_ttft_p99: Annotated[float | None, _promise(help="Limit on p99 time to first token, ms.")] = None,
    slo_tpot_p99: Annotated[float | None, _promise(help="Limit on p99 time per output token, ms.")] = None,
    slo_itl_p99: Annotated[float | None, _promise(help="Limit on p99 inter-token latency, ms.")] = None,
    slo_latency_p99: Annotated[float | None, _promise(help="Limit on p99 end-to-end latency, ms.")] = None,
    workload: Annotated[str, _offer(help="interactive | batch | bursty | a trace file.")] = "interactive",
    request_rate: Annotated[
        float | None, _offer(help="Requests/s offered, or where the search begins; the workload's own if absent.")
    ] = None,
    num_requests: Annotated[int | None, _offer(help="Requests of a load; the workload's own if absent.")] = None,
    load_seconds: Annotated[
        float, _offer(help="A load of the search for a capacity lasts so long at the least.")
    ] = LOAD_S,
    trace_scaling: Annotated[str, _offer(help="How a trace is brought to the rate: stretch | thin.")] = "stretch",
    engine: Annotated[str, _place(help="vllm | sim | endpoint, or your own as package.module:Class.")] = "vllm",
    gpu: Annotated[str | None, _place(help="GPU, e.g. A100-40GB. Needed by sim; detected for vllm.")] = None,
    gpus: Annotated[int | None, _place(min=1, help="GPUs of a trial; how the model uses them is tuned.")] = None,
    tensor_parallel: Annotated[int | None, _place(min=1, help="GPUs the model is split over; 1 if absent.")] = None,
    parallel: Annotated[int, _place(min=1, help="Trials at a time, each on GPUs of its own.")] = 1,
    ray_address: Annotated[
        str | None, _place(metavar="ADDRESS", help="Run trials on this Ray cluster: HOST:PORT, or auto.")
    ] = None,
    engine_python: Annotated[str | None, _place(help="Python that has vLLM; this one if absent.")] = None,
    base_url: Annotated[str | None, _place(help="Running server, for --engine endpoint.")] = None,
    api_key_env: Annotated[str | None, _place(help="Environment variable that holds the API key.")] = None,
    space: Annotated[str, _tuned(help="vllm | paper8 | a TOML file of knobs.")] = "vllm",
    engine_arg: Annotated[
        list[str] | None, _tuned(metavar="K=V", help="Engine argument pinned in every trial.")
    ] = None,
    policy: Annotated[
        str | None,
        _tuned(metavar="NAME[:key=value]", help="Tune with sloguard's scheduler inside, its knobs in the space."),
    ] = None,
    allow_lossy: Annotated[
        bool, _tuned("--allow-lossy", help="Tune what may change answers too, such as an FP8 KV cache.")
    ] = False,
    quality: Annotated[
        float, _tuned(help="With --allow-lossy: share of the default's answers that has to come unchanged.")
    ] = 0.9,
    budget: Annotated[int, _search(help="Configs to try; each is one engine start.")] = 15,
    budget_minutes: Annotated[float | None, _search(help="Try no more after so many minutes of trials.")] = None,
    budget_gpu_hours: Annotated[float | None, _search(help="The same in hours times GPUs of a trial.")] = None,
    prior: Annotated[
        list[str] | None,
        _search(
            metavar="sim|DIR|none",
            help="Begin with what a simulation (where there can be one, if absent) or a study found.",
        ),
    ] = None,
    objective: Annotated[
        str, _search(help="capacity (largest rate that keeps the SLOs) | goodput | latency, at --request-rate.")
    ] = "capacity",
    confirm: Annotated[int, _search(help="Fresh starts of each candidate for the best, at the end.")] = 2,
    optimizer: Annotated[
        str, _search(help="guided | random | tpe | tba | tba-tpe | constrained-bo, or your own.")
    ] = "guided",
    default: Annotated[bool, _search(show_default=False, help="Try the engine's default first (it does).")] = True,
    race: Annotated[
        bool, _search(show_default=False, help="Drop a config that fails at the best rate so far (it does).")
    ] = True,
    retry_failures: Annotated[
        bool, _search("--retry-failures", help="Try again what never started here in earlier studies.")
    ] = False,
    seed: Annotated[int, _search(help="Of arrivals, prompts and proposals.")] = 0,
) -> int:
    """Restarts the engine with candidate configs, learns from crashes, ends with the best that keeps the SLOs.

    Exit code: 0 with a feasible config, 3 with none, 2 on bad input.

    Example: `sloguard tune --engine sim --gpu A100-40GB --model Qwen/Qwen2-1.5B --slo-ttft 500 --out study`
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
        load_s=load_seconds,
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
    if resume and not log.exists():
        typer.echo(f"{out} holds no study yet: a new one begins", err=True)
    api_key = api_key_from(api_key_env)
    study = build_study(spec, api_key)
    if allow_lossy and study.quality is None:
        plain_console(stderr=True).print("what this engine answers can't be checked: --quality has no effect")
    if prior is None and spec.engine != "sim" and can_simulate(spec, study.engine.facts()):
        spec = replace(spec, priors=(SIMULATION,))
    started_s = time.monotonic()
    at_a_time = parallel if parallel > 1 or ray_address is not None else 0
    with log.writer(), ExitStack() as stack:
        begun = log.exists() and bool(log.trials())
        if begun:
            _check_same(log, spec, study, at_a_time)
        if spec.priors:
            with counted("simulating beforehand") as on_trial:
                study = informed(study, spec, earlier_trials(spec, study, log.directory, on_trial))
        lanes = lanes_of(spec, api_key, study, log.directory, parallel, ray_address, stack)
        remembers = study.engine.facts().crashes_last
        known = failures.recalled(study.engine.describe()) if remembers and not retry_failures else {}
        if not begun:
            _begin(log, spec, study, at_a_time, known)
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
            summary = write_results(log, study, results, time.monotonic() - started_s)
            if results.trials and sys.exc_info()[0] is not None:
                _leave_page(log.directory)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        _leave_page(log.directory)
    else:
        console = plain_console()
        console.print(study_report(read_header(log), results))
        if command := serve_command_of(study, results):
            typer.echo(f"Apply it: {shlex.join(command)}")  # as it stands, so that it can be copied whole
        _leave_page(log.directory)
        made = [name for name in RESULT_FILES if (log.directory / name).exists()]
        typer.echo(f"Everything is in {out}/: {', '.join(made)}")
    return 0 if results.best else EXIT_INFEASIBLE


def _leave_page(directory: Path) -> None:
    typer.echo(f"report: {leave_page(directory)}", err=True)


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


def _begin(log: StudyLog, spec: StudySpec, study: Study, lanes: int, known: failures.Failures) -> None:
    """Writes the header. One without a trial is what a start that failed at once left: there is nothing in it to go on
    with.
    """
    log.clear()
    model = Path(spec.model)
    header = {"spec": spec.to_json(), "spec_digest": spec.digest, "sloguard": __version__}
    header["model"] = str(model.resolve()) if model.is_dir() else spec.model  # as it is found from any directory
    if lanes:
        header["lanes"] = lanes
    if known:
        header["failures"] = failures.to_json(known)
    log.append_header({**header, "engine": study.engine.describe()})


def _check_same(log: StudyLog, spec: StudySpec, study: Study, lanes: int) -> None:
    """Raises SpecError where the study on disk is another than `spec`'s."""
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
