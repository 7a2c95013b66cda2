"""`sloguard profile`: learn how long an engine's steps take, from probes or from a log that a server kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sloguard.cli.options import parse_engine_args
from sloguard.cli.progress import plain_console
from sloguard.engine.base import OnPhase
from sloguard.engine.profiles import Fitted, Profile, device_name, fit_steps, path_of, profile_key
from sloguard.engine.profiling import OnProfiling, Profiled, Profiling, profile_engine
from sloguard.engine.step_log import read_step_log
from sloguard.engine.vllm_install import find_vllm
from sloguard.errors import LogError, SpecError
from sloguard.perf.fit import Sample
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.report.profile import profile_report

LEAST_S = 5.0
MOST_S = 3600.0
STDOUT = Path("-")


def command(
    model: Annotated[str, typer.Option(help="Model name or path, as vLLM takes it.")],
    engine_python: Annotated[str | None, typer.Option(help="Python that has vLLM; this one if absent.")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Engine argument, as the server will be started.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help=f"Time for probes, {LEAST_S:g} to {MOST_S:g}; the engine's start comes on top.")
    ] = 75.0,
    gpu: Annotated[str | None, typer.Option(help="GPU, e.g. A100-40GB; detected if absent.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, and of which steps are held out.")] = 0,
    step_log: Annotated[
        Path | None,
        typer.Option(
            help="Fit the steps that a server logged; start none. --engine-arg says what it was started with."
        ),
    ] = None,
    engine_version: Annotated[
        str | None, typer.Option(help="vLLM's, for --step-log; that of --engine-python if absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Save the profile here, not in the user's data directory.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Save the figures as JSON; - prints them.")] = None,
) -> int:
    """Starts vLLM with sloguard's scheduler, probes it, and fits how long a step takes from what is in it.

    The profile is saved for `sloguard serve`, which finds it by GPU, model, version and engine arguments. Exit code: 0
    saved, 2 bad input or an engine that failed.

    Example: `sloguard profile --model meta-llama/Llama-3.1-8B --engine-arg max_model_len=8192`
    """
    if not LEAST_S <= seconds <= MOST_S:
        raise SpecError("--seconds", seconds, "not enough, or too long", f"Give {LEAST_S:g} to {MOST_S:g}.")
    arguments = parse_engine_args(engine_arg or ())
    for field, path in (("--out", out), ("--json", json_file)):
        if path is not None and path != STDOUT:
            check_writable(field, path)
    began_s = time.monotonic()
    profiled = None
    if step_log is None:
        if engine_version is not None:
            raise SpecError("--engine-version", engine_version, "goes with --step-log", "Drop it.")
        install = find_vllm(engine_python)
        key = profile_key(model, device_name(gpu, install.device), install.version, arguments)
        with _progress(seconds) as (on_phase, on_profiling):
            profiled = profile_engine(
                model,
                python=engine_python,
                fixed=arguments,
                gpu=gpu,
                seconds=seconds,
                seed=seed,
                on_phase=on_phase,
                on_profiling=on_profiling,
            )
        samples, effective = profiled.samples, profiled.effective
    else:
        key = profile_key(model, *_stated(gpu, engine_version, engine_python), arguments)
        samples, effective = tuple(read_step_log(step_log)), {}
    profile = Profile(key, _fitted(samples, seed, step_log), effective, datetime.now(UTC).isoformat(timespec="seconds"))
    path = _save(profile, out)
    figures = _figures(profile, profiled, path, time.monotonic() - began_s)
    if json_file is not None:
        text = json.dumps(figures, indent=2)
        if json_file == STDOUT:
            typer.echo(text)
            return 0
        write_text_atomic(json_file, text + "\n")
    console = plain_console()
    console.print(profile_report(figures))
    if out is not None:
        typer.echo(f"Saved in {path}; serve by it with --profile {path}")
    else:
        typer.echo(f"Saved in {path}, where `sloguard serve` finds it for {_engine(profile)}")
    return 0


def _stated(gpu: str | None, version: str | None, python: str | None) -> tuple[str, str]:
    """(device, engine version) of a log that came from elsewhere, perhaps. Raises SpecError where one is missing."""
    if gpu is None:
        fix = "Say where the log was made, e.g. --gpu H100, or --gpu cpu for this machine's CPU."
        raise SpecError("--gpu", None, "is needed with --step-log", fix)
    if version is None and python is None:
        fix = "Give the version of vLLM that made the log, e.g. --engine-version 0.32.0, or its --engine-python."
        raise SpecError("--engine-version", None, "is needed with --step-log", fix)
    device = device_name(None, "cpu") if gpu.lower() == "cpu" else device_name(gpu, "cuda")
    return device, version or find_vllm(python).version


@contextmanager
def _progress(seconds: float) -> Iterator[tuple[OnPhase, OnProfiling]]:
    """Callbacks for phases and figures. Writes to stderr; the bar shows only on a terminal, the phases always."""
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    task = bar.add_task("", total=seconds)

    def on_phase(phase: str) -> None:
        bar.update(task, description=phase)
        if not console.is_terminal:
            console.print(phase)

    def on_profiling(now: Profiling) -> None:
        counts = ", ".join(f"{kind} {n}" for kind, n in now.steps.items())
        off = "" if now.off is None else f" | foreseen to {now.off:.0%}"
        bar.update(task, description=f"steps: {counts}{off}", completed=min(now.elapsed_s, seconds))

    with bar:
        yield on_phase, on_profiling


def _fitted(samples: tuple[Sample, ...], seed: int, step_log: Path | None) -> Fitted:
    try:
        return fit_steps(samples, seed)
    except ValueError as error:
        what = str(step_log) if step_log else "the engine's step log"
        raise LogError(f"{what}: {error}. Give it more time.") from error


def _save(profile: Profile, out: Path | None) -> Path:
    path = out
    if path is None:
        path = path_of(profile.key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "Give a file with --out."
            raise SpecError("--out", str(path), f"can't be made ({error.strerror})", fix) from error
    write_text_atomic(path, profile.to_text())
    return path


def _engine(profile: Profile) -> str:
    arguments = " ".join(f"--engine-arg {name}={value}" for name, value in profile.key.config)
    return f"this model, GPU and version with {arguments or 'no engine arguments'}"


def _figures(profile: Profile, profiled: Profiled | None, path: Path, wall_s: float) -> dict[str, Any]:
    fitted = profile.fitted
    figures: dict[str, Any] = {
        **asdict(profile.key),
        "config": dict(profile.key.config),
        "samples": fitted.samples,
        "slow_steps": fitted.slow_steps,
        "held_out": {kind: asdict(found) for kind, found in fitted.held_out.items()},
        "saved_in": str(path),
        "wall_s": wall_s,
    }
    if profiled is not None:
        figures |= {
            "startup_s": profiled.startup_s,
            "probing_s": profiled.probing_s,
            "probes": dict(profiled.probes),
            "unanswered": profiled.unanswered,
            "warmup_steps": profiled.warmup_steps,
        }
    return figures
