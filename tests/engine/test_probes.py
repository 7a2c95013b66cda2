"""The plan of a profile, carried out by a model of the engine instead of an engine."""

from __future__ import annotations

from itertools import islice

import pytest

from sloguard.engine.probes import DECODING_TOKENS, EngineLimits, Probe, probe_plan, warm_up
from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch, BatchTime, Piece

CPU = EngineLimits(max_model_len=2048, max_num_seqs=128, max_num_batched_tokens=2048, kv_tokens=32_768)
GPU = EngineLimits(max_model_len=131_072, max_num_seqs=1024, max_num_batched_tokens=8192, kv_tokens=400_000)
TIGHT = EngineLimits(max_model_len=512, max_num_seqs=256, max_num_batched_tokens=256, kv_tokens=1024)
SLOW = BatchTime((Piece(10e-3, 370e-6, 400e-6, 1e-6, 50e-9),))
FAST = BatchTime((Piece(6e-3, 30e-6, 30e-6, 40e-9, 1e-9),))
MOST_S = 2.5

ENGINES = pytest.mark.parametrize(
    ("limits", "time"), [(CPU, SLOW), (GPU, FAST), (TIGHT, SLOW)], ids=["cpu", "gpu", "tight"]
)


def plan(limits: EngineLimits, time: BatchTime, seconds: float = 60.0) -> list[Probe]:
    """As many probes as `seconds` hold."""
    made: list[Probe] = []
    for probe in probe_plan(limits, time, MOST_S):
        if sum(p.cost_s for p in made) >= seconds:
            break
        made.append(probe)
    return made


@ENGINES
def test_every_request_can_be_served(limits: EngineLimits, time: BatchTime) -> None:
    for probe in plan(limits, time):
        assert 1 <= len(probe.requests) <= limits.max_num_seqs
        needed = [one.prompt_tokens + one.output_tokens for one in probe.requests]
        assert max(needed) <= limits.max_model_len
        assert sum(needed) <= limits.kv_tokens
        assert all(one.due_s >= 0 and one.prompt_tokens >= 1 and one.output_tokens >= 1 for one in probe.requests)


@ENGINES
def test_no_probe_takes_long_and_kinds_share_the_time(limits: EngineLimits, time: BatchTime) -> None:
    made = plan(limits, time)
    spent_s = {kind: sum(p.cost_s for p in made if p.kind == kind) for kind in ("prefill", "decode", "mixed")}
    assert max(p.cost_s for p in made) < 2 * MOST_S
    assert min(spent_s.values()) > 0.2 * sum(spent_s.values())


@pytest.mark.parametrize(("limits", "time", "longest"), [(CPU, SLOW, 2000), (GPU, FAST, 30_000)], ids=["cpu", "gpu"])
def test_a_minute_covers_lengths_and_batch_sizes(limits: EngineLimits, time: BatchTime, longest: int) -> None:
    made = plan(limits, time)
    alone = [one.prompt_tokens for p in made if p.kind == "prefill" for one in p.requests]
    assert min(alone) < 10
    assert max(alone) > longest
    sizes = sorted(len(p.requests) for p in made if p.kind == "decode")
    assert sizes[0] <= 2
    assert sizes[-1] >= 0.5 * limits.max_num_seqs


def test_more_time_holds_more_probes() -> None:
    assert len(plan(CPU, SLOW, 20)) < len(plan(CPU, SLOW, 60)) / 2
    assert plan(CPU, SLOW, 60)[:10] == plan(CPU, SLOW, 20)[:10]


def test_prompts_arrive_while_a_batch_decodes() -> None:
    for probe in (p for p in plan(CPU, SLOW) if p.kind == "mixed"):
        batch = [one for one in probe.requests if not one.due_s]
        arriving = [one for one in probe.requests if one.due_s]
        assert len(arriving) == 4
        assert all(one.output_tokens == 1 for one in arriving)
        *earlier, last = arriving
        steps_s = [SLOW.seconds(Batch(((one.prompt_tokens, 0),))) for one in (*batch, *earlier)]
        ends_s = sum(steps_s) + batch[0].output_tokens * SLOW.seconds(Batch((), len(batch), 0))
        assert ends_s > last.due_s or batch[0].output_tokens == DECODING_TOKENS


@pytest.mark.parametrize("limits", [CPU, GPU, TIGHT])
def test_the_warm_up_is_small(limits: EngineLimits) -> None:
    asked = warm_up(limits)
    assert all(one.prompt_tokens + one.output_tokens <= limits.max_model_len for one in asked)
    assert sum(one.prompt_tokens for one in asked) < 4000


def test_limits_are_the_engines_own_words_before_its_defaults() -> None:
    defaults = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "max_model_len": 4096}
    said = {"max_model_len": 512, "kv_cache_tokens": 8192, "max_num_seqs": "1k"}
    assert EngineLimits.read(said, defaults) == EngineLimits(512, 1000, 2048, 8192)
    assert EngineLimits.read({}, defaults).kv_tokens == 4096


@pytest.mark.parametrize("length", [{}, {"max_model_len": 32}], ids=["unknown", "too short"])
def test_limits_that_leave_nothing_to_probe(length: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="max_model_len"):
        EngineLimits.read(length, {"max_num_seqs": 128, "max_num_batched_tokens": 2048})


def test_the_plan_follows_what_is_learnt_meanwhile() -> None:
    class Doubling:
        """Twice as slow from the second look on."""

        factor = 1.0

        def seconds(self, batch: Batch) -> float:
            return self.factor * SLOW.seconds(batch)

    learning = Doubling()
    probes = probe_plan(CPU, learning, MOST_S)  # type: ignore[arg-type]
    before = list(islice(probes, 30))
    learning.factor = 50.0
    after = list(islice(probes, 30))
    tokens = [max(sum(one.prompt_tokens for one in p.requests) for p in part) for part in (before, after)]
    assert tokens[1] < tokens[0] / 5
