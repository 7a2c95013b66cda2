"""What `sloguard profile` shows: how well the time of a step is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

POOR = 0.2  # mean error; quiet machines come to 2 to 7 %


def profile_report(figures: Mapping[str, Any]) -> RenderableType:
    """A row for each kind of step: how far predictions are off on steps that the fit has not seen."""
    title = f"Step times of {figures['model']} on {figures['device']}, vLLM {figures['engine_version']}"
    table = Table()
    for name in ("steps", "held out", "mean error", "p95 error", "R²"):
        table.add_column(name, justify="left" if name == "steps" else "right")
    for kind, found in figures["held_out"].items():
        errors = [f"{found[name]:.1%}" for name in ("mape", "p95_ape")]
        table.add_row(kind, str(found["n"]), *errors, f"{found['r2']:.3f}")
    return Group(Text(title), table, *(Text(line) for line in _lines(figures)))


def _lines(figures: Mapping[str, Any]) -> list[str]:
    lines = [f"{figures['samples']} steps, {figures['slow_steps']} of them over twice as slow as predicted"]
    if "probes" in figures:
        lines[0] += f"; {figures['warmup_steps']} of the warm-up left out"
        probes = ", ".join(f"{n} {kind}" for kind, n in figures["probes"].items())
        lines.append(f"start {figures['startup_s']:.0f} s, probes {figures['probing_s']:.0f} s ({probes})")
    poor = [kind for kind, found in figures["held_out"].items() if found["mape"] > POOR]
    if poor:
        lines.append(
            f"POOR: {' and '.join(poor)} steps are foreseen to no better than {POOR:.0%}. Repeat it while the machine "
            "does nothing else, or give it more --seconds."
        )
    if figures.get("unanswered"):
        lines.append(f"{figures['unanswered']} requests of the probes were not answered")
    return lines
