"""`sloguard export`: a study as other tools read it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from sloguard.errors import SpecError
from sloguard.report.files import check_writable, write_bytes_atomic, write_text_atomic
from sloguard.report.trials_csv import to_csv
from sloguard.study.header import read_header
from sloguard.study.log import LOG_NAME, StudyLog
from sloguard.study.optuna_storage import write_optuna
from sloguard.study.results import Results
from sloguard.study.serve_yaml import serve_yaml
from sloguard.study.spec import StudySpec
from sloguard.trial import Trial

YAML, CSV, OPTUNA = FORMATS = ("vllm-yaml", "csv", "optuna")


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a study.")],
    format_: Annotated[str, typer.Option("--format", help=f"{' | '.join(FORMATS)}.")] = YAML,
    trial: Annotated[int | None, typer.Option(help="For vllm-yaml: this trial's config; the best if absent.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to this file; needed by optuna.")
    ] = None,
) -> int:
    """Writes a study as a file for `vllm serve --config`, as CSV, or as an Optuna storage for optuna-dashboard.

    Example: `sloguard export study --format optuna -o study.db && optuna-dashboard sqlite:///study.db`
    """
    if format_ not in FORMATS:
        raise SpecError("--format", format_, "no such format", f"Choose one of {', '.join(FORMATS)}.")
    if trial is not None and format_ != YAML:
        raise SpecError("--trial", trial, f"{format_} has all trials", f"Drop it, or use --format {YAML}.")
    log = StudyLog(directory)
    if not log.exists():
        raise SpecError("DIR", str(directory), "holds no study", f"Name the --out of `sloguard tune` ({LOG_NAME}).")
    if out is not None:
        check_writable("--output", out)
    header = read_header(log)
    spec = header.spec
    trials = log.trials()
    if format_ == OPTUNA:
        about = {"sloguard": header.sloguard, "spec": spec.to_json(), "engine": dict(header.engine)}
        new = _new(out)
        with TemporaryDirectory() as aside:
            made = Path(aside) / "study.db"
            write_optuna(made, directory.resolve().name, trials, spec.goal, about)
            write_bytes_atomic(new, made.read_bytes())
        return 0
    if format_ == YAML and header.engine.get("engine") == "endpoint":
        raise SpecError("DIR", str(directory), "measured a server that somebody else runs", "Use --format csv.")
    text = to_csv(trials, spec.goal) if format_ == CSV else serve_yaml(header, _chosen(trials, spec, trial))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text_atomic(out, text)
    return 0


def _new(out: Path | None) -> Path:
    """An existing storage is never added to, or replaced: it may hold other studies."""
    if out is None:
        raise SpecError("--output", None, "an Optuna storage is a file", "Name one, e.g. -o study.db.")
    if out.exists():
        raise SpecError("--output", str(out), "is there already", "Name another file, or remove that one.")
    return out


def _chosen(trials: list[Trial], spec: StudySpec, number: int | None) -> Trial:
    if number is None:
        best = Results(trials, spec.goal, spec.try_default).best
        if best is None:
            raise SpecError("DIR", LOG_NAME, "no config of it keeps the promises", "Choose one with --trial.")
        return best
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        raise SpecError("--trial", number, "there is no such trial", f"They go from 1 to {len(trials)}.")
    return found
