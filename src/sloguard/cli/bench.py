"""`sloguard bench`: measure a running server honestly, under an open-loop load."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from sloguard import __version__
from sloguard.cli.options import api_key_from, read_slo
from sloguard.errors import SpecError
from sloguard.load.drive import offer
from sloguard.load.own_results import read_own
from sloguard.load.promises import promise_fields
from sloguard.load.prompts import no_extra
from sloguard.load.target import Api, Target
from sloguard.metrics import summarise
from sloguard.page.load import load_page
from sloguard.page.page import render
from sloguard.report.bench import bench_report, client_limited_text, to_json
from sloguard.report.files import check_writable, write_text_atomic
from sloguard.report.live import live_progress
from sloguard.report.vllm_json import to_vllm_json
from sloguard.request import Request
from sloguard.slo import NO_SLO, TpotRule
from sloguard.workload.arrivals import Constant, Gamma
from sloguard.workload.scenarios import SloClass, build_requests

EXIT_NOTHING_COMPLETED = 1
STDOUT = Path("-")


def command(
    base_url: Annotated[str, typer.Option(help="Server, e.g. http://localhost:8000.")],
    model: Annotated[str, typer.Option(help="Model name, as the server calls it.")],
    request_rate: Annotated[
        float | None, typer.Option(help="Requests per second, or inf for all at once; the workload's own if absent.")
    ] = None,
    num_requests: Annotated[int | None, typer.Option(help="Requests in all; the workload's own if absent.")] = None,
    workload: Annotated[
        str, typer.Option(help="interactive | batch | bursty | a trace or lengths file.")
    ] = "interactive",
    input_len: Annotated[int | None, typer.Option(min=1, help="Prompt tokens of every request.")] = None,
    output_len: Annotated[int | None, typer.Option(min=1, help="Output tokens of every request.")] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Gamma arrivals: 1 is Poisson, below burstier, inf evenly spaced.")
    ] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=MS", help="Promise to every request: ttft, tpot or e2el.")
    ] = None,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:SHARE:METRIC=MS,...", help="Promise to a share of the requests; shares sum to 1."),
    ] = None,
    send_slos: Annotated[
        bool,
        typer.Option(
            "--send-slos", help="Tell the server each request's own ttft and tpot, for its scheduler to keep."
        ),
    ] = False,
    tpot_rule: Annotated[TpotRule, typer.Option(help="How a token pace is judged.")] = TpotRule.MEAN,
    api: Annotated[str, typer.Option(help="completions | chat.")] = "completions",
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and prompts.")] = 0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent first and not measured.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 60.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Save everything as JSON; - prints it.")] = None,
    save_vllm_json: Annotated[
        Path | None, typer.Option(help="Save in the fields of `vllm bench serve --save-detailed`.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, as sloguard report.")] = None,
) -> int:
    """Sends requests when they are due, whatever became of the ones before, and measures from when they were due.

    Exit code: 0 measured, 1 no request completed, 2 bad input.

    Example: `sloguard bench --base-url http://localhost:8000 --model M --request-rate 4 --slo ttft=500 --slo tpot=50`
    """
    if not 0 < timeout < math.inf:
        raise SpecError("--timeout", timeout, "not a positive number of seconds", "Give e.g. --timeout 60.")
    target = Target(base_url, model, cast(Api, api), api_key_from(api_key_env))
    requests = _requests(
        workload,
        request_rate,
        num_requests,
        seed=seed,
        classes=_classes(slo or (), slo_class or ()),
        burstiness=burstiness,
        input_len=input_len,
        output_len=output_len,
    )
    _check_files(json_file, save_vllm_json, report)
    promised = any(stage.slo != NO_SLO for request in requests for stage in request.stages)
    if send_slos:
        _check_sendable(requests, promised=promised)
    to_stdout = STDOUT in (json_file, save_vllm_json)
    progress_console = Console(stderr=True, quiet=to_stdout)
    started = datetime.now()
    with live_progress(progress_console, tpot_rule, promised=promised) as on_progress:
        offered = offer(
            target,
            requests,
            seed=seed,
            request_timeout_s=timeout,
            warmup=warmup,
            extra=promise_fields if send_slos else no_extra,
            on_progress=None if to_stdout else on_progress,
        )
    summary = summarise(offered.timelines, tpot_rule)
    if not to_stdout:
        due_s = [timeline.due_s for timeline in offered.timelines]
        Console().print(bench_report(summary, offered.notes, max(due_s) - min(due_s), promised=promised))
    elif summary.client_limited:
        typer.echo(client_limited_text(summary), err=True)
    settings: dict[str, Any] = {
        "sloguard": __version__,
        "started": started.isoformat(timespec="seconds"),
        "base_url": base_url,
        "model": model,
        "api": api,
        "workload": workload,
        "request_rate": _rate_json(request_rate),
        "num_requests": len(requests),
        "input_len": input_len,
        "output_len": output_len,
        "burstiness": _rate_json(burstiness),
        "slo": slo or [],
        "slo_class": slo_class or [],
        "promised": promised,
        "send_slos": send_slos,
        "tpot_rule": tpot_rule.value,
        "seed": seed,
        "warmup": warmup,
        "timeout_s": timeout,
    }
    saved = to_json(offered.timelines, summary, offered.notes, settings)
    if json_file is not None:
        _save(json_file, saved)
    if save_vllm_json is not None:
        fields = to_vllm_json(
            offered.timelines,
            summary,
            api=api,
            model=model,
            request_rate=request_rate,
            burstiness=1.0 if burstiness is None else burstiness,
            started=started,
        )
        _save(save_vllm_json, fields)
    if report is not None:  # last: whatever happens to a drawing, what was measured is saved
        write_text_atomic(report, render(load_page(read_own(str(json_file or report), [saved]))))
    return 0 if summary.completed else EXIT_NOTHING_COMPLETED


def _check_sendable(requests: Sequence[Request], *, promised: bool) -> None:
    """Raises SpecError where there is no promise to send, or one that can't be."""
    if not promised:
        raise SpecError("--send-slos", "nothing", "no request is promised anything", "Add --slo or --slo-class.")
    for request in requests:
        for stage in range(len(request.stages)):
            promise_fields(request, stage)


def _check_files(json_file: Path | None, save_vllm_json: Path | None, report: Path | None) -> None:
    """Before anything is sent: a run takes long, and what it measured must not be lost for a mistyped path."""
    asked = {"--json": json_file, "--save-vllm-json": save_vllm_json, "--report": report}
    given = {field: path for field, path in asked.items() if path is not None}
    for one, other in combinations(given, 2):
        if given[one] == given[other]:
            raise SpecError(other, str(given[other]), f"is the file of {one}, too", "Give two files.")
    if report == STDOUT:
        raise SpecError("--report", str(report), "a page is a file", "Name one, e.g. --report load.html.")
    for field, path in given.items():
        if path != STDOUT:
            check_writable(field, path)


def _save(path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, allow_nan=False)
    if path == STDOUT:
        typer.echo(text)
    else:
        write_text_atomic(path, text + "\n")


def _rate_json(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "inf" if value == math.inf else value


def _requests(
    workload: str,
    rate: float | None,
    num_requests: int | None,
    *,
    seed: int,
    classes: Sequence[SloClass],
    burstiness: float | None,
    input_len: int | None,
    output_len: int | None,
) -> list[Request]:
    if burstiness is not None and rate is None:
        raise SpecError("--burstiness", burstiness, "needs a rate to be bursty about", "Add --request-rate.")
    arrivals = None
    if burstiness is not None:
        arrivals = Constant(1.0) if burstiness == math.inf else Gamma(1.0, burstiness)
    requests = build_requests(
        workload, rate=rate, num_requests=num_requests, seed=seed, classes=classes, arrivals=arrivals
    )
    return [_with_lengths(request, input_len, output_len) for request in requests]


def _with_lengths(request: Request, input_len: int | None, output_len: int | None) -> Request:
    stages = tuple(
        replace(stage, prompt_tokens=input_len or stage.prompt_tokens, output_tokens=output_len or stage.output_tokens)
        for stage in request.stages
    )
    return replace(request, stages=stages)


def _classes(slos: Sequence[str], classes: Sequence[str]) -> tuple[SloClass, ...]:
    """Raises SpecError for what is not METRIC=MS or NAME:SHARE:METRIC=MS,..."""
    if slos and classes:
        raise SpecError("--slo", " ".join(slos), "and --slo-class exclude each other", "Give one of them.")
    if slos:
        return (SloClass("default", 1.0, read_slo("--slo", ",".join(slos))),)
    return tuple(_class(text) for text in classes)


def _class(text: str) -> SloClass:
    name, _, rest = text.partition(":")
    share_text, _, limits = rest.partition(":")
    fix = "Write NAME:SHARE:METRIC=MS,..., e.g. chat:0.8:ttft=500,tpot=50."
    try:
        share = float(share_text)
    except ValueError:
        raise SpecError("--slo-class", text, "has no share", fix) from None
    if not name:
        raise SpecError("--slo-class", text, "has no name", fix)
    return SloClass(name, share, read_slo("--slo-class", limits) if limits else NO_SLO)
