"""What the scheduler keeps about requests, from their coming to their end."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from sloguard.plugins.ledger import PLANNED_SHARE, Ledger
from sloguard.plugins.meters import Meters
from sloguard.plugins.options import Options
from sloguard.sched.job import Tier

CLASSES = {"slo_classes": {"chat": {"ttft_ms": 500, "tpot_ms": 50}}, "default_class": "chat"}
THINKS = {"slo_class": "chat", "slo_think_tpot_ms": 20}


def ledger(router_proof: str | None = None, **options: object) -> tuple[Ledger, CollectorRegistry]:
    registry = CollectorRegistry()
    return Ledger(Options.model_validate(CLASSES | options), Meters(registry), router_proof), registry


def ended(registry: CollectorRegistry, slo_class: str, outcome: str) -> float:
    return registry.get_sample_value("sloguard_requests_total", {"slo_class": slo_class, "outcome": outcome}) or 0.0


def test_a_request_is_planned_with_a_little_less_than_it_was_promised():
    kept, _ = ledger()
    kept.enter("a", 10.0, 100, 50, 3, {"slo_ttft_ms": 200, "slo_stages_left": 2, "slo_conversation": "c"})
    job = kept.jobs["a"]
    assert (job.ttft_s, job.tpot_s) == (pytest.approx(0.2 * PLANNED_SHARE), None)
    assert (job.arrival_s, job.prompt_tokens, job.output_tokens, job.priority) == (10.0, 100, 50, 3)
    assert (job.app, job.stages_left, job.conversation, job.tier) == ("custom", 2, "c", Tier.NEW)


def test_what_can_not_be_read_is_of_the_default_class_and_counted():
    kept, registry = ledger()
    kept.enter("a", 0.0, 100, 50, extra={"slo_ttft_ms": "soon"})
    assert kept.jobs["a"].app == "chat"
    assert registry.get_sample_value("sloguard_bad_slos_total") == 1


OF_ROUTER = {"slo_hops_left": 2, "slo_ticket": "t", "slo_waited_ms": 3000}


@pytest.mark.parametrize(
    ("proof", "more", "believed"),
    [("p", {"slo_router": "p"}, True), ("p", {"slo_router": "q"}, False), ("p", {}, False), (None, {}, False)],
)
def test_only_its_own_router_is_believed(proof: str | None, more: dict[str, str], believed: bool):
    kept, _ = ledger(proof)
    kept.enter("a", 10.0, 100, 50, extra={**OF_ROUTER, **more})
    job = kept.jobs["a"]
    assert (job.hops_left, list(kept.tickets), job.arrival_s) == ((2, ["t"], 7.0) if believed else (0, [], 10.0))


@pytest.mark.parametrize(
    ("late_s", "completed", "outcome"), [(0.0, True, "met"), (0.2, True, "missed"), (0.0, False, "aborted")]
)
def test_an_end_is_judged_by_what_was_promised(late_s: float, completed: bool, outcome: str):
    kept, registry = ledger()
    kept.enter("a", 0.0, 100, 50, extra={"slo_class": "chat"})
    kept.note_tokens("a", 1, [7], 0.499 + late_s)  # more than is planned with, and within what was promised
    kept.note_tokens("a", 11, [7] * 11, 0.9 + late_s)
    kept.leave("a", 11, completed, 0.9 + late_s)
    assert ended(registry, "chat", outcome) == 1
    assert not kept.jobs
    assert kept.started == 1


def test_one_that_ends_with_its_first_token_has_started():
    kept, registry = ledger()
    kept.enter("a", 0.0, 100, 1, extra={"slo_class": "chat"})
    kept.leave("a", 1, True, 0.3)
    assert kept.started == 1
    assert ended(registry, "chat", "met") == 1


def test_the_pace_is_another_once_the_thoughts_end():
    kept, _ = ledger(think_end_token_id=99)
    kept.enter("a", 0.0, 100, 50, extra=THINKS)
    job = kept.jobs["a"]
    assert job.tpot_s == pytest.approx(0.02 * PLANNED_SHARE)
    kept.note_tokens("a", 1, [5], 0.4)
    kept.note_tokens("a", 9, [5] * 9, 0.5)
    assert job.paced_from == (0.4, 1)
    kept.note_tokens("a", 10, [*[5] * 8, 99, 6], 0.6)
    assert job.tpot_s == pytest.approx(0.05 * PLANNED_SHARE)
    assert job.paced_from == (0.6, 10)


def test_without_a_token_that_ends_thoughts_there_are_none():
    kept, _ = ledger()
    kept.enter("a", 0.0, 100, 50, extra=THINKS)
    assert kept.jobs["a"].tpot_s == pytest.approx(0.05 * PLANNED_SHARE)


def test_nobody_is_known_after_the_end():
    kept, _ = ledger()
    kept.note_tokens("a", 3, [1, 2, 3], 0.0)
    kept.leave("a", 3, True, 0.0)
    assert kept.started == 0
