from __future__ import annotations

from dataclasses import dataclass

import pytest

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.outlook import Outlook
from sloguard.sched.policy import Limits, View


@dataclass
class Told:
    """Answers a little longer than asked about each time, and counts."""

    asked: int = 0

    def output_tokens(self, job: Job) -> int:
        self.asked += 1
        return job.generated_tokens + 100

    def mean_tokens(self, job: Job) -> int:
        self.asked += 1
        return job.generated_tokens + 40

    def finished(self, job: Job) -> None: ...


def view_of(lengths: Told) -> View:
    return View([], [], KvCache(100), Limits(8, 512, 8192), BatchTime((Piece(0.01, 0, 0, 0, 0),)), lengths)


@pytest.mark.parametrize(("cautious", "expected"), [(True, 100), (False, 40)])
def test_a_guess_stands_until_it_is_outgrown(cautious: bool, expected: int):
    lengths = Told()
    view, outlook, job = view_of(lengths), Outlook(cautious=cautious), Job("a", 0.0, 10, 500)
    for generated in range(2 * expected):
        job.generated_tokens = generated
        assert outlook.to_come(view, job) == expected - generated % expected
    assert lengths.asked == 2


def test_what_later_stages_add_is_learnt_from_conversations_that_go_on():
    """Each comes back twice, after an answer of 100, with 300 tokens more; its history is nothing new."""
    view, outlook = view_of(Told()), Outlook(cautious=True)
    for i in range(100):
        for stage in range(3):
            job = Job(f"{i}/{stage}", 0.0, 1000 + 400 * stage, 100, stream=f"{i}", stages_left=2 - stage)
            for _ in range(3):
                outlook.learn(view, [job])
                outlook.to_come(view, job)
            job.generated_tokens = 100
    first = Job("first", 0.0, 10, 500, stages_left=2)
    assert outlook.to_come(view, first) == pytest.approx(100 + 2 * 400, abs=1)
