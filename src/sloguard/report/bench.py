"""What `sloguard bench` shows and saves: a table for a person, JSON for a machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sloguard.metrics import Dist, Summary
from sloguard.request import End, Timeline

SCHEMA = 1
ERRORS_SHOWN = 5

LATENCIES = {
    "TTFT": "ttft_s",
    "TPOT": "tpot_s",
    "ITL": "itl_s",
    "E2EL": "e2el_s",
    "client lag": "queue_delay_s",
}
DEFINITIONS = (
    "From when a request was due: TTFT to its first token, E2EL to its last, client lag to its sending. "
    "TPOT: (last token - first) / (tokens - 1); ITL: gaps between chunks that carry tokens."
)


def bench_report(summary: Summary, notes: Sequence[str], due_within_s: float, *, promised: bool) -> RenderableType:
    """`due_within_s` lies between the first request due and the last; `promised`: whether any request has an SLO:
    without one every completed request would count as good.
    """
    parts: list[RenderableType] = [_rates(summary, due_within_s, promised=promised), _latencies(summary)]
    parts.append(Text(DEFINITIONS, "dim"))
    if len(summary.by_class) > 1:
        parts.append(_classes(summary))
    parts += [Text(f"note: {note}", "yellow") for note in notes]
    for error, count in _alike(summary.errors)[:ERRORS_SHOWN]:
        parts.append(Text(f"{count} x {error}", "red"))
    if summary.client_limited:
        parts.append(Text(client_limited_text(summary), "bold white on red"))
    return Group(*parts)


def _alike(errors: Mapping[str, int]) -> list[tuple[str, int]]:
    """Errors that differ only in their numbers as one, shown by its first; the most frequent first."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for error, count in errors.items():
        kind = re.sub(r"\d+", "#", error)
        counts[first.setdefault(kind, error)] += count
    return counts.most_common()


def client_limited_text(summary: Summary) -> str:
    lag_ms = (summary.queue_delay_s.p99 or 0.0) * 1000
    return (
        f"CLIENT-LIMITED: p99 client lag {lag_ms:.1f} ms. These figures measure this client as much as the server: "
        "lower the rate, or give the client a core of its own."
    )


def _rates(summary: Summary, due_within_s: float, *, promised: bool) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    lost = ", ".join(f"{n} {end}" for end, n in sorted(summary.ends.items()) if end != End.COMPLETED)
    paced = f": {summary.offered / due_within_s:.2f} req/s" if due_within_s else ""
    rows = {
        "requests": f"{summary.completed} of {summary.offered} completed" + (f" ({lost})" if lost else ""),
        "due within": f"{due_within_s:.2f} s{paced}",
        "over after": f"{summary.duration_s:.2f} s, by which the rates below are taken",
        "tokens": f"{summary.prompt_tokens} in, {summary.output_tokens} out",
        "throughput": f"{summary.request_throughput:.2f} req/s, {summary.output_throughput:.1f} output tok/s",
    }
    if promised:
        rule = f"TPOT rule: {summary.tpot_rule}"
        rows["goodput"] = f"{summary.request_goodput:.2f} req/s, {summary.token_goodput:.1f} output tok/s"
        rows["attainment"] = f"{summary.attainment:.1%} met every SLO ({summary.met} of {summary.offered}; {rule})"
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), value)
    return table


def _latencies(summary: Summary) -> Table:
    table = Table(title="Latency, ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    for name, attribute in LATENCIES.items():
        dist: Dist = getattr(summary, attribute)
        table.add_row(name, *map(_ms, (dist.mean, dist.p50, dist.p90, dist.p99, dist.max)))
    return table


def _classes(summary: Summary) -> Table:
    table = Table(title="SLO classes", title_justify="left")
    for name in ("class", "offered", "completed", "attainment", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, c in summary.by_class.items():
        pairs = [f"{_ms(dist.p50)} / {_ms(dist.p99)}" for dist in (c.ttft_s, c.tpot_s)]
        table.add_row(name, str(c.offered), str(c.completed), f"{c.attainment:.1%}", *pairs)
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def to_json(
    timelines: Sequence[Timeline], summary: Summary, notes: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole run: settings, figures, and a row for each request."""
    return {
        "schema": SCHEMA,
        "settings": dict(settings),
        "notes": list(notes),
        "summary": summary.to_json(),
        "requests": [_row(t) for t in timelines],
    }


def _row(t: Timeline) -> dict[str, Any]:
    return {
        "id": t.request.id,
        "slo_class": t.request.slo_class,
        "due_s": t.due_s,
        "sent_s": t.sent_s,
        "ttft_s": t.ttft_s,
        "tpot_s": t.tpot_s,
        "e2el_s": t.e2el_s,
        "prompt_tokens": t.prompt_tokens,
        "tokens": t.output_tokens,
        "ended_s": t.ended_s,
        "end": t.end.value,
        "error": t.error,
    }
