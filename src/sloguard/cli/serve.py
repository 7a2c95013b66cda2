"""`sloguard serve`: an OpenAI-compatible endpoint that keeps each request's own promise."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sloguard.cli.options import api_key_from, parse_engine_args, read_slo
from sloguard.cli.serve_fleet import EXIT_CRASHED, EXIT_REJECTED, FleetOptions, serve_fleet
from sloguard.crash import diagnose
from sloguard.engine.emulated import Emulated
from sloguard.engine.emulator_server import serve_emulator
from sloguard.engine.processes import end_with_parent
from sloguard.engine.serving import ServeSetup, VllmServing, check_port
from sloguard.engine.slo_classes import SloClasses, read_slo_classes
from sloguard.errors import EngineCrash, SpecError
from sloguard.plugins.options import CONTROL_TOKEN, DoorOptions, Promise
from sloguard.sched.policy import POLICIES
from sloguard.study.choice import Choice, read_choice
from sloguard.trial import Value

ENGINES = ("vllm", "emulator")
SERVED_NAME = "served_model_name"
DEFAULT = "default"  # the class of --default-slo
LOCAL = ("127.0.0.1", "::1", "localhost")


def command(
    model: Annotated[str, typer.Option(help="Model name or path, as vLLM takes it.")],
    engine: Annotated[
        str, typer.Option(help="vllm | emulator (a simulated GPU behind the same API, in real time).")
    ] = "vllm",
    policy: Annotated[
        str,
        typer.Option(metavar="NAME[:key=value]", help="Scheduler: sloguard, slos-serve, vllm, ... or your own class."),
    ] = "sloguard",
    slo_classes: Annotated[Path | None, typer.Option(help="TOML file of named promises; see docs/serving.md.")] = None,
    default_slo: Annotated[
        str | None,
        typer.Option(metavar="METRIC=MS,...", help="Promise (ttft, tpot) to requests that come without one."),
    ] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Engine argument, repeatable.")] = None,
    engine_python: Annotated[str | None, typer.Option(help="Python that has vLLM; this one if absent.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU, e.g. H100; detected if absent, needed by the emulator.")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share each layer.")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key to ask for.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(help="Seconds of queue from which on best-effort requests get 429.")
    ] = 60.0,
    max_requests: Annotated[int, typer.Option(min=1, help="HTTP requests under way from which on all get 429.")] = 4096,
    start_timeout: Annotated[float, typer.Option(help="Seconds that the engine may take to start.")] = 900.0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that requests get to finish on SIGTERM.")] = 30.0,
    step_log: Annotated[Path | None, typer.Option(help="Log of every step, for `sloguard profile --step-log`.")] = None,
    think_end_token_id: Annotated[
        int | None, typer.Option(help="Token that ends a reasoning model's thoughts; see docs/serving.md.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Model name that clients give; --model if absent.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Step times that `sloguard profile --out` saved; else those it finds by engine.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Engines behind one endpoint.")] = 1,
    backend: Annotated[
        str | None, typer.Option(help="Who runs several replicas: ray (Ray Serve) | local (this machine, without Ray).")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With ray: so many at most, by predicted headroom.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, or auto; started here if absent.")
    ] = None,
    emit_serve_config: Annotated[
        Path | None, typer.Option(help="Write a Ray Serve config for `serve deploy` and KubeRay, and start nothing.")
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(metavar="NAME[:key=value]", help="Which replica gets a request: headroom if absent."),
    ] = None,
) -> int:
    """Serves a model so that each request keeps the promise it came with, or that of its class.

    Exit code: 0 after an orderly end (SIGTERM, Ctrl-C), 1 where the engine failed, 2 bad input, also where only the
    engine could tell.

    Example: `sloguard serve --model meta-llama/Llama-3.1-8B --slo-classes classes.toml --replicas 4 --backend local`
    """
    end_with_parent()
    if engine not in ENGINES:
        raise SpecError("--engine", engine, "no such engine", f"Use {' or '.join(ENGINES)}.")
    for flag, seconds in (
        ("--max-wait", max_wait),
        ("--start-timeout", start_timeout),
        ("--drain-timeout", drain_timeout),
    ):
        if not 0 < seconds < float("inf"):
            raise SpecError(flag, seconds, "not a positive number of seconds", "Give e.g. 60.")
    chosen = read_choice(policy, "--policy")
    chosen.make(POLICIES, "--policy", "plan")
    api_key = api_key_from(api_key_env)
    classes = _classes(slo_classes, default_slo)
    arguments = parse_engine_args(engine_arg or ())
    if served_name is not None:
        arguments = {**arguments, SERVED_NAME: served_name}
    if api_key is None and host not in LOCAL:
        _say(f"anybody who reaches {host}:{port} may use the model: give a key with --api-key-env")
    door = DoorOptions(
        slo_classes=classes.classes,
        default_class=classes.default,
        max_requests=max_requests * (max_replicas or replicas),
        max_wait_s=max_wait,
        api_key=api_key,
        control_token=os.environ.get(CONTROL_TOKEN) or None,
    )
    emulated: Emulated | None = None
    if engine == "emulator":
        _refuse("--engine-python", engine_python, "--step-log", step_log, "--think-end-token-id", think_end_token_id)
        _refuse("--profile", profile)
        emulated = _emulated(model, gpu, tensor_parallel, chosen, arguments)
    if backend is not None or replicas > 1 or max_replicas is not None or emit_serve_config is not None:
        if step_log is not None:
            raise SpecError("--step-log", str(step_log), "is of one engine", "Drop it, or serve one replica.")
        fleet = FleetOptions(
            replicas=replicas,
            backend="ray" if backend is None else backend,
            router=router or "headroom",
            host=host,
            port=port,
            drain_timeout_s=drain_timeout,
            start_timeout_s=start_timeout,
            api_key_env=api_key_env,
            max_replicas=max_replicas,
            ray_address=ray_address,
            emit=emit_serve_config,
        )
        flags = {
            "--model": model,
            "--engine": engine,
            "--policy": policy,
            "--slo-classes": slo_classes and slo_classes.absolute(),
            "--default-slo": default_slo,
            "--engine-arg": engine_arg,
            "--engine-python": engine_python,
            "--gpu": gpu,
            "--tensor-parallel": tensor_parallel,
            "--max-wait": max_wait,
            "--max-requests": max_requests,
            "--start-timeout": start_timeout,
            "--drain-timeout": drain_timeout,
            "--think-end-token-id": think_end_token_id,
            "--served-name": served_name,
            "--profile": profile and profile.absolute(),
        }
        return serve_fleet(fleet, flags, emulated, door, _say)
    for flag, value in (("--ray-address", ray_address), ("--router", router)):
        if value is not None:
            raise SpecError(flag, value, "is for several replicas", "Add --replicas or --backend.")
    if emulated is not None:
        check_port(host, port)
        serve_emulator(emulated, str(arguments.get(SERVED_NAME, model)), door, host, port, drain_timeout, _say)
        _say("ended")
        return 0
    setup = ServeSetup(
        model,
        python=engine_python,
        gpu=gpu,
        tensor_parallel=tensor_parallel,
        host=host,
        port=port,
        arguments=arguments,
        policy=chosen.name,
        policy_options={key: value for key, value in chosen.options if value is not None},
        classes=classes,
        api_key=api_key,
        max_wait_s=max_wait,
        max_requests=max_requests,
        start_timeout_s=start_timeout,
        drain_timeout_s=drain_timeout,
        step_log=str(step_log.absolute()) if step_log else None,
        think_end_token_id=think_end_token_id,
        profile=profile,
    )
    return _serve(setup)


def _classes(file: Path | None, default_slo: str | None) -> SloClasses:
    classes = read_slo_classes(file) if file else SloClasses()
    if default_slo is None:
        return classes
    if classes.default is not None:
        raise SpecError("--default-slo", default_slo, f"{file} has a default class", "Give one of them.")
    slo = read_slo("--default-slo", default_slo, ("ttft", "tpot"))  # by no other can a scheduler plan
    if DEFAULT in classes.classes:
        raise SpecError(
            "--default-slo", default_slo, f"{file} has a class {DEFAULT!r}", f"Write default = {DEFAULT!r} in it."
        )
    return SloClasses(default=DEFAULT, classes={**classes.classes, DEFAULT: Promise.of(slo)})


def _serve(setup: ServeSetup) -> int:
    serving = VllmServing(setup)
    if serving.profile is None:
        _say("no profile of this engine: step times are learnt as it serves. `sloguard profile` makes one")
    else:
        _say(f"step times from {serving.profile_path}, made {serving.profile.made_at[:10]}")
    try:
        serving.run(_say, sys.stdout.buffer)
    except EngineCrash as crash:
        why = diagnose(crash.evidence)
        _say(f"the engine failed during {why.phase}: {why.category} ({why.cause}): {why.line}")
        _say(why.hint)
        return EXIT_REJECTED if why.cause == "config_invalid" else EXIT_CRASHED
    _say("ended")
    return 0


def _emulated(
    model: str, gpu: str | None, tensor_parallel: int, policy: Choice, arguments: Mapping[str, Value]
) -> Emulated:
    if gpu is None:
        raise SpecError("--gpu", None, "the emulator needs one to emulate", "Give e.g. --gpu H100.")
    told = {name: value for name, value in arguments.items() if name != SERVED_NAME}
    return Emulated(model, gpu, tensor_parallel, policy.name, dict(policy.options), told)


def _refuse(*flags: object) -> None:
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if value is not None:
            raise SpecError(str(flag), str(value), "the emulator has no use for it", "Drop it.")


def _say(text: str) -> None:
    typer.echo(f"sloguard: {text}", err=True)
