"""Several trials at a time: what is tried depends on the study alone, whatever is killed and whenever."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sloguard.errors import SpecError
from sloguard.optim.base import Goal
from sloguard.rng import stream
from sloguard.study.build import build_study
from sloguard.study.lanes import Lane, Work, gpu_lanes
from sloguard.study.log import StudyLog
from sloguard.study.parallel import run_parallel
from sloguard.study.runner import Study, attempt, run_study, with_guesses
from sloguard.study.spec import StudySpec
from sloguard.trial import Config, Measured, Proposal, Refused, Trial

BUDGET, LANES = 10, 3
FEW = 6  # trials: enough for each lane to have two, and for the best to be measured again
SPEC = StudySpec(
    "sim", "Qwen/Qwen2-1.5B", "tba-tpe", BUDGET, 5, {"ttft": 0.5, "itl": 0.1}, gpu="A100-40GB", num_requests=40
)

WORK = Work(SPEC, None, {}, os.getcwd())


class Here:
    """A worker in this process, which takes its time, and not always the same."""

    def __init__(self, study: Study) -> None:
        self._study, self._rng = study, stream(time.monotonic_ns(), "naps")

    def make(self, number: int, proposal: Proposal, trial_dir: Path) -> Trial:
        time.sleep(self._rng.uniform(0, 0.02))
        return attempt(self._study, proposal, number, trial_dir)

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def study() -> Study:
    return build_study(SPEC)


def run_all(study: Study, directory: Path, lanes: int = LANES, budget: int = BUDGET) -> list[Trial]:
    log = StudyLog(directory)
    with log.writer(), ExitStack() as stack:
        if not log.exists():
            log.append_header({"spec": {}, "engine": {}})
        made = [Lane(lambda: Here(study)) for _ in range(lanes)]
        for lane in made:
            stack.callback(lane.close)
        return list(run_parallel(study, log, budget, made, simulated=True))


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    run_all(study, directory)
    return directory


def test_one_lane_is_the_serial_study(study: Study, tmp_path: Path):
    log = StudyLog(tmp_path / "serial")
    with log.writer():
        log.append_header({"spec": {}, "engine": {}})
        serial = list(run_study(study, log, BUDGET))
    assert run_all(study, tmp_path / "parallel", lanes=1) == serial


def test_trials_come_as_they_end_on_the_lanes(study: Study, whole: Path):
    log = StudyLog(whole)
    trials, lanes = log.trials(), {number: lane for number, (lane, _) in log.proposals().items()}
    assert sorted(trial.number for trial in trials) == list(range(1, len(trials) + 1))
    explored = [trial for trial in trials if trial.recheck is None]
    assert len(explored) == BUDGET
    twice = [config for config, count in Counter(trial.config for trial in explored).items() if count > 1]
    assert len(twice) <= 1, "none but a best that is doubted"
    assert len(trials) > BUDGET, "the best were measured again, on the lanes too"
    assert max(t.number for t in explored) < min(t.number for t in trials if t.recheck is not None)
    free_s, ends_s = [0.0] * LANES, list[float]()
    for trial in explored:  # before the best are measured again a lane waits for the others
        free_s[lanes[trial.number]] += trial.cost_s
        ends_s.append(free_s[lanes[trial.number]])
    assert ends_s == sorted(ends_s)
    assert max(ends_s) < 0.6 * sum(trial.cost_s for trial in explored)


def test_cut_off_after_any_line_it_goes_on_to_the_same_study(study: Study, tmp_path: Path):
    run_all(study, tmp_path, budget=FEW)
    lines = (tmp_path / "study.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        log = tmp_path / str(cut) / "study.jsonl"
        log.parent.mkdir()
        log.write_bytes(b"".join(lines[:cut]) + lines[cut][:7])
        run_all(study, log.parent, budget=FEW)
        assert log.read_bytes() == b"".join(lines), f"cut after line {cut}"


def test_a_killed_process_is_replaced_and_its_trial_made_once(whole: Path, tmp_path: Path):
    log = StudyLog(tmp_path)
    with log.writer(), ExitStack() as stack:
        log.append_header({"spec": {}, "engine": {}})
        lanes = gpu_lanes(WORK, LANES, ())
        for lane in lanes:
            stack.callback(lane.close)
        killed = 0
        for trial in run_parallel(build_study(SPEC), log, BUDGET, lanes, simulated=True):
            if trial.number % 4 == 0:
                for lane in lanes_of(psutil.Process()):
                    lane.kill()
                    killed += 1
        assert killed
    assert log.path.read_bytes() == (whole / "study.jsonl").read_bytes()
    assert not lanes_of(psutil.Process())


def lanes_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if any("spawn_main" in word for word in child.cmdline())]


def test_an_error_of_a_lane_is_the_study_s(tmp_path: Path):
    (lane,) = gpu_lanes(WORK, 1, ())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        lane.submit(1, Proposal(Config(), Config()), tmp_path / "file" / "trial").result()
    lane.close()


def test_a_worker_with_another_engine_is_refused(tmp_path: Path):
    (lane,) = gpu_lanes(replace(WORK, engine={"gpu": "L4"}), 1, ())
    with pytest.raises(SpecError, match=r"engine gpu = .*A100.*where the study has 'L4'"):
        lane.submit(1, Proposal(Config(), Config()), tmp_path / "trial").result()
    lane.close()


def test_pending_trials_are_told_as_the_worst_that_is_known(study: Study, whole: Path):
    pending = [(11, Proposal(Config({"a": 1}), Config({"a": 1})))]
    (guess,) = with_guesses([], pending, Goal())
    assert isinstance(guess.outcome, Refused)
    history = StudyLog(whole).trials()
    *told, guess = with_guesses(history, pending, Goal())
    assert told == history
    feasible = [Goal().score(trial) or 0.0 for trial in history if trial.feasible]
    assert Goal().score(guess) == min(feasible)
    assert guess.config == Config({"a": 1})
    assert isinstance(guess.outcome, Measured)
    assert guess.outcome.effective == {}
