"""The tuning loop with several trials at a time.

lanes       where trials run; each has one at a time
proposals   are in the log before they run, so that a killed study goes on with the same ones
pending     of those that run, the optimizer sees a guess (`runner.with_guesses`), so as not to ask for their like again
clock       on a simulated engine a trial is over when its virtual time says so: which trial ends first, and with
            it the whole study, does not depend on the machine that simulates
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from sloguard.study.lanes import Lane
from sloguard.study.log import StudyLog
from sloguard.study.runner import Study, next_proposal, stop_if_it_is_no_use
from sloguard.trial import Proposal, Trial


class _Clock:
    """When each lane is free, in seconds of trials."""

    def __init__(self, lanes: int) -> None:
        self.free_s = [0.0] * lanes

    def ends_s(self, lane: int, trial: Trial) -> float:
        return self.free_s[lane] + trial.cost_s


def run_parallel(
    study: Study,
    log: StudyLog,
    budget: int,
    lanes: Sequence[Lane],
    simulated: bool,
    on_trial: Callable[[int, Proposal], None] = lambda number, proposal: None,
) -> Iterator[Trial]:
    """As `run_study`, with as many trials at a time as there are lanes. Needs `log.writer()` to be held."""
    history = log.trials()
    proposals = log.proposals()
    clock = _Clock(len(lanes))
    for trial in history:
        lane = proposals[trial.number][0]
        clock.free_s[lane] = clock.ends_s(lane, trial)
    done = {trial.number for trial in history}
    pending = {number: made for number, made in proposals.items() if number not in done}
    running: dict[Future[Trial], tuple[int, int]] = {}

    def start(number: int, lane: int, made: Proposal) -> None:
        on_trial(number, made)
        running[lanes[lane].submit(number, made, _directory(log, number))] = number, lane

    for number, (lane, made) in sorted(pending.items()):
        start(number, lane, made)
    while True:
        for lane in sorted(
            set(range(len(lanes))) - {at for _, at in running.values()}, key=lambda at: clock.free_s[at]
        ):
            number = len(history) + len(running) + 1
            made = next_proposal(study, history, [(n, made) for n, (_, made) in sorted(pending.items())], budget)
            if made is None:
                break
            log.append_proposal(number, lane, made)
            pending[number] = lane, made
            start(number, lane, made)
        if not running:
            return
        ended = _first(running, clock, simulated)
        number, lane = running.pop(ended)
        trial = ended.result()
        stop_if_it_is_no_use(trial, history, _directory(log, number))
        log.append(trial)
        clock.free_s[lane] = clock.ends_s(lane, trial)
        history.append(trial)
        del pending[number]
        yield trial


def _first(running: Mapping[Future[Trial], tuple[int, int]], clock: _Clock, simulated: bool) -> Future[Trial]:
    """The trial that ends first; in virtual time that is known once all are done."""
    if not simulated:
        return next(iter(wait(running, return_when=FIRST_COMPLETED).done))
    wait(running)
    return min(running, key=lambda made: (clock.ends_s(running[made][1], made.result()), running[made][0]))


def _directory(log: StudyLog, number: int) -> Path:
    return log.directory / "trials" / f"{number:03d}"
