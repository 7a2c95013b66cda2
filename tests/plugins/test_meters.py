from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from paths import REPO
from sloguard.fleet.meters import GatewayMeters
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.online import OnlineTime
from sloguard.plugins.meters import Meters, outcome, refusals
from sloguard.sched.job import Job, Tier

ENGINE = """
import sys
from sloguard.fleet.meters import GatewayMeters
from sloguard.plugins.meters import Meters
from sloguard.sched.job import Job, Tier
jobs, due_s = int(sys.argv[1]), float(sys.argv[2])
Meters().holds(0.0, [Job(str(i), 0.0, 1, 1, ttft_s=due_s, tier=Tier.PROMISED) for i in range(jobs)], [], 0.5)
"""


def ended(
    tokens: int = 11,
    first_s: float | None = 1.0,
    ttft_s: float | None = 1.0,
    tpot_s: float | None = 0.1,
    paced_from: tuple[float, int] | None = None,
) -> Job:
    """Arrived at 0."""
    job = Job("a", 0.0, 5, 100, ttft_s=ttft_s, tpot_s=tpot_s, app="chat", generated_tokens=tokens)
    job.first_token_s, job.paced_from = first_s, paced_from
    return job


@pytest.mark.parametrize(
    ("job", "last_s", "completed", "expected"),
    [
        (ended(), 2.0, True, "met"),
        (ended(), 2.1, True, "missed"),
        (ended(first_s=1.1), 2.0, True, "missed"),
        (ended(tpot_s=None), 99.0, True, "met"),
        (ended(ttft_s=None, first_s=50.0), 51.0, True, "met"),
        (ended(ttft_s=None, tpot_s=None), 99.0, True, "best-effort"),
        (ended(), 2.0, False, "aborted"),
        (ended(ttft_s=None, tpot_s=None), 2.0, False, "aborted"),
        (ended(tokens=1), 1.0, True, "met"),
        (ended(tokens=0, first_s=None), 1.0, True, "missed"),
        (ended(paced_from=(5.0, 6)), 5.5, True, "met"),
        (ended(paced_from=(5.0, 6)), 5.6, True, "missed"),
        (ended(paced_from=(5.0, 11)), 9.0, True, "met"),
    ],
)
def test_a_promise_is_kept_or_not(job: Job, last_s: float, completed: bool, expected: str):
    assert outcome(job, last_s, completed) == expected


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def meters(registry: CollectorRegistry) -> Meters:
    return Meters(registry)


def test_what_ended_is_counted_by_class(registry: CollectorRegistry, meters: Meters):
    evicted = ended()
    evicted.evictions, evicted.tier = 2, Tier.PROMISED
    meters.finished(evicted, 2.0, completed=True)
    meters.finished(ended(), 3.0, completed=True)
    meters.finished(ended(tokens=0, first_s=None), 3.0, completed=False)

    def of(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"sloguard_{name}", labels)

    for result in ("met", "missed", "aborted"):
        assert of("requests_total", slo_class="chat", outcome=result) == 1
    assert of("tiers_total", tier="promised") == 1
    assert of("tiers_total", tier="new") == 2
    assert of("preemptions_total") == 2
    assert of("ttft_seconds_sum", slo_class="chat") == 2.0
    assert of("tpot_seconds_count", slo_class="chat") == 2
    assert of("tpot_seconds_sum", slo_class="chat") == pytest.approx(0.3)


def test_what_is_in_the_engine(registry: CollectorRegistry, meters: Meters):
    promised = Job("a", 1.0, 5, 100, ttft_s=2.0, tier=Tier.PROMISED)
    later = Job("b", 2.0, 5, 100, ttft_s=2.0, tier=Tier.PROMISED)
    new, spare = Job("c", 0.0, 5, 100, ttft_s=0.1), Job("d", 0.0, 5, 100, tier=Tier.BEST_EFFORT)
    meters.holds(1.5, [promised, spare], [later, new, spare], 0.7)
    states = {
        ("running", "promised"): 1,
        ("running", "best-effort"): 1,
        ("running", "new"): 0,
        ("waiting", "promised"): 1,
        ("waiting", "best-effort"): 1,
        ("waiting", "new"): 1,
    }
    for (state, tier), jobs in states.items():
        assert registry.get_sample_value("sloguard_jobs", {"state": state, "tier": tier}) == jobs
    assert registry.get_sample_value("sloguard_headroom_seconds") == 1.5
    assert registry.get_sample_value("sloguard_draft_acceptance") == 0.7
    meters.holds(1.5, (), (), None)
    assert registry.get_sample_value("sloguard_jobs", {"state": "running", "tier": "promised"}) == 0
    assert registry.get_sample_value("sloguard_headroom_seconds") == float("inf")


def test_steps(registry: CollectorRegistry, meters: Meters):
    meters.planned(0.001)
    meters.kept_order(3)
    for why in ("fault", "overrun", "rest", "rest"):
        meters.fell_back(why)
    meters.stepped(0.03, 0.02, OnlineTime(BatchTime((Piece(0.01, 0.0, 0.0, 0.0, 0.0),))))
    meters.stepped(0.01, 0.02, OnlineTime(BatchTime((Piece(0.01, 0.0, 0.0, 0.0, 0.0),))))
    meters.bad_slo()
    for order, steps in {"policy": 4, "fault": 1, "overrun": 1, "rest": 2}.items():
        assert registry.get_sample_value("sloguard_steps_total", {"order": order}) == steps
    assert registry.get_sample_value("sloguard_planner_seconds_sum") == 0.001
    assert registry.get_sample_value("sloguard_step_seconds_total") == pytest.approx(0.04)
    assert registry.get_sample_value("sloguard_step_error_seconds_total") == pytest.approx(0.02)
    assert registry.get_sample_value("sloguard_batch_time_bias") == 1.0
    assert registry.get_sample_value("sloguard_bad_slos_total") == 1


def test_engines_of_one_server_add_up(tmp_path: Path, registry: CollectorRegistry):
    for jobs, due_s in (("3", "0.5"), ("4", "0.25")):
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", ENGINE, jobs, due_s], env=environment, check=True)
    MultiProcessCollector(registry, str(tmp_path))
    assert registry.get_sample_value("sloguard_jobs", {"state": "running", "tier": "promised"}) == 7
    assert registry.get_sample_value("sloguard_headroom_seconds") == 0.25
    assert registry.get_sample_value("sloguard_draft_acceptance") == 0.5


QUERIED = {"counter": "_total", "histogram": "_bucket", "gauge": ""}


@pytest.mark.usefixtures("meters")
def test_the_dashboard_shows_each_and_nothing_else(registry: CollectorRegistry):
    dashboard = (REPO / "dashboards" / "sloguard.json").read_text()
    refusals(registry)
    GatewayMeters(registry)
    assert set(re.findall(r"sloguard_\w+", dashboard)) == {
        metric.name + QUERIED[metric.type] for metric in registry.collect()
    }


def test_the_dashboard_knows_the_labels(registry: CollectorRegistry, meters: Meters):
    meters.finished(ended(), 2.0, completed=True)
    meters.planned(0.001)
    meters.holds(0.0, (), (), 0.5)
    refusals(registry).labels("key").inc()
    gateway = GatewayMeters(registry)
    gateway.are({"r0": True})
    gateway.lost(begun=True)
    labels = {"le", "instance"} | {
        name for metric in registry.collect() for sample in metric.samples for name in sample.labels
    }
    dashboard = json.loads((REPO / "dashboards" / "sloguard.json").read_text())
    asked = {
        name.strip()
        for query in strings_in(dashboard)
        if "sloguard_" in query
        for group in (*re.findall(r"by \(([^)]*)\)", query), *re.findall(r"(\w+)=~?\"", query))
        for name in group.split(",")
    }
    assert {"slo_class", "outcome", "tier"} <= asked <= labels


def strings_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_in(part)
