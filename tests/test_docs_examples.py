"""What docs/writing-a-policy.md shows is what runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import REPO
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.registry import load
from sloguard.request import End, Request, Stage
from sloguard.sched.kv import KvCache
from sloguard.sched.plan import Plan
from sloguard.sched.policy import POLICIES, Limits, View
from sloguard.sim.replica import Replica
from sloguard.sim.serve import simulate
from sloguard.workload.scenarios import scenario_requests

EXAMPLES = REPO / "docs" / "examples"
PAGE = (REPO / "docs" / "writing-a-policy.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STEP = BatchTime((Piece(10e-3, 50e-6, 50e-6, 50e-9, 0.0),))


@pytest.fixture(autouse=True)
def _in_the_examples_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("my_policy", None)


class Watched:
    """The example, its plans held against the engine's bounds."""

    def __init__(self, chunk_tokens: int) -> None:
        self.policy = load(POLICIES, "my_policy:Mine", "--policy", "plan")(chunk_tokens)
        self.chunk_tokens, self.evicted = chunk_tokens, 0

    def plan(self, now_s: float, view: View) -> Plan:
        waiting = {job.id: job.known_tokens for job in view.waiting}
        plan = self.policy.plan(now_s, view)
        assert sum(plan.tokens.values()) <= self.chunk_tokens
        assert len(view.running) - len(plan.evict) + len(plan.admit) <= view.limits.max_num_seqs
        left_behind = [tokens for job_id, tokens in waiting.items() if job_id not in plan.admit]
        assert max((waiting[i] for i in plan.admit), default=0) <= min(left_behind, default=sys.maxsize)
        self.evicted += len(plan.evict)
        return plan


def serve(requests: list[Request], policy: Watched, blocks: int):
    def replica(kernel, on_tokens, on_decline):
        return Replica(kernel, policy, Limits(8, 4096, 2048), KvCache(blocks), STEP, on_tokens, on_decline)

    return simulate(requests, replica)


def test_the_page_shows_the_example_as_it_is():
    source = (EXAMPLES / "my_policy.py").read_text()
    assert BLOCKS[0] == source
    body = source[source.index("def plan") :].splitlines()
    assert len([line for line in body if line.strip()]) <= 30


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 900), st.integers(1, 300)), min_size=1, max_size=15),
    st.integers(8, 512),
)
def test_the_example_serves_every_request_within_the_bounds_of_the_engine(rows, chunk_tokens):
    requests = [Request(str(i), at_s, (Stage(p, o),)) for i, (at_s, p, o) in enumerate(rows)]
    lines = serve(requests, Watched(chunk_tokens), blocks=128)
    assert [(line.end, line.output_tokens) for line in lines] == [(End.COMPLETED, r.output_tokens) for r in requests]
    again = serve(requests, Watched(chunk_tokens), blocks=128)
    assert all(np.array_equal(a.token_s, b.token_s) for a, b in zip(lines, again, strict=True))


def test_the_example_serves_a_scenario_of_several_stages_and_evicts_where_memory_is_short():
    requests = scenario_requests("tool-calling", rate=4.0, num_requests=60, seed=1)
    watched = Watched(512)
    assert {line.end for line in serve(requests, watched, blocks=300)} == {End.COMPLETED}
    assert watched.evicted > 0


def test_the_class_is_found_by_its_path_from_the_repository_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(REPO))
    assert load(POLICIES, "docs.examples.my_policy:Mine", "--policy", "plan").__name__ == "Mine"


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]):
    exec(compile(BLOCKS[1], "docs/writing-a-policy.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["my_policy:Mine", "vllm"]
    assert all(0 < float(line.split()[1].rstrip("%")) <= 100 for line in printed)


def test_the_page_names_what_exists():
    view, job = (set(re.findall(r"^\| (`.*?) \|", table, re.M)) for table in PAGE.split("| of ")[1:3])
    for names, of in ((view, View), (job, load({}, "sloguard.sched.job:Job", "job"))):
        for name in re.findall(r"`(\w+)`", " ".join(names)):
            assert hasattr(of, name), name
