"""How a study was made, so that it can be made again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from sloguard.page.page import Block, Cell, Code, Column, Section, Table
from sloguard.study.log import LOG_NAME
from sloguard.study.prior import NONE
from sloguard.study.record import Record
from sloguard.study.spec import StudySpec

# Fields of a spec that are a flag of the same meaning; the others are below.
FLAGS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("engine", "model", "gpu", "gpus", "tensor_parallel", "base_url")
    },
    **{name: f"--{name.replace('_', '-')}" for name in ("engine_python", "workload", "request_rate", "num_requests")},
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("trace_scaling", "space", "policy", "quality", "budget", "seed")
    },
    **{name: f"--{name}" for name in ("attainment", "objective", "optimizer")},
    "load_s": "--load-seconds",
    "rechecks": "--confirm",
}
SWITCHES = {"try_default": "--no-default", "race": "--no-race", "allow_lossy": "--allow-lossy"}
AGAIN = "again"  # where the study is lies one already
METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "latency"}
NAMES = {"step_times": "step times", "memory_guard": "memory guard", "tensor_parallel": "tensor parallel"}


def made_section(record: Record) -> Section:
    spec = record.spec
    engine = record.header.engine
    rows = {
        **{NAMES.get(name, name): value for name, value in engine.items() if value},
        "optimizer": spec.optimizer,
        "seed": str(spec.seed),
        "spec digest": spec.digest,
        "study made by": f"sloguard {record.header.sloguard or 'of no known version'}",
        LOG_NAME: f"SHA-256 {record.digest}",
    }
    table = Table(
        "Where it ran", (Column("what"), Column("value")), tuple((Cell(k), Cell(v, code=True)) for k, v in rows.items())
    )
    blocks: tuple[Block, ...] = (Code("The same study again", _on_lines(command_of(record))), table)
    lead = (
        "All figures of this page come from the study's log. They are defined in sloguard's docs/measuring.md; "
        "docs/reports.md says how to read the page."
    )
    return Section("made", "How it was made", lead, blocks)


def _on_lines(words: list[str]) -> str:
    """For a shell, an option a line."""
    breaks = (f" \\\n  {shlex.quote(w)}" if w.startswith("--") else f" {shlex.quote(w)}" for w in words)
    return "".join(breaks).strip()


def command_of(record: Record) -> list[str]:
    """`sloguard tune` with all that is not its default; makes an equal spec."""
    spec, lanes = record.spec, record.header.lanes
    words = ["sloguard", "tune"]
    for one in fields(StudySpec):
        words += _words(one.name, getattr(spec, one.name), one.default if one.default is not MISSING else None)
    if not spec.priors and not record.simulated:  # else `tune` would take a simulation for one
        words += ["--prior", NONE]
    return [*words, *(["--parallel", str(lanes)] if lanes > 1 else []), "--out", AGAIN]


def _words(name: str, value: Any, default: Any) -> list[str]:
    """The words of one field; none where it has its default, or is a record of what was read."""
    match name:
        case "slo_s" | "slo_p99_s":
            suffix = "-p99" if name == "slo_p99_s" else ""
            return _pairs({f"--slo-{METRICS.get(k, k)}{suffix}": f"{v * 1000:.12g}" for k, v in value.items()})
        case "engine_args":
            return [word for k, v in value.items() for word in ("--engine-arg", f"{k}={v}")]
        case "priors":
            return [word for prior in value for word in ("--prior", prior)]
        case "budget_s":
            return [] if value is None else ["--budget-minutes", f"{value / 60:.12g}"]
        case "inputs":
            return []
        case _ if value == default:
            return []
        case _ if name in SWITCHES:
            return [SWITCHES[name]]
        case _:
            return [FLAGS[name], f"{value:.12g}" if isinstance(value, float) else str(value)]


def _pairs(flags: Mapping[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]
