"""Errors cross the border between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from sloguard.crash import Crash, Evidence
from sloguard.errors import EngineCrash, LogError, MissingExtra, PolicyError, SloguardError, SpecError, WorkerLost
from sloguard.study.runner import EnvironmentFault

ERRORS = [
    SpecError("--rate", -1.0, "not a positive number", "Give requests per second."),
    PolicyError("--policy mine:Mine", "at 0.310 s it returned None: return a Plan."),
    MissingExtra("constrained-bo", "bo"),
    LogError("study.jsonl, line 3: no such kind"),
    EngineCrash(Evidence("startup", 1, log_tail="out of memory"), 3.5),
    WorkerLost("a process was killed"),
    EnvironmentFault(Crash("startup_failure", "port", "address in use", "Free it.", "startup", True), Path("trial-1")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_worker_arrives_as_it_was_raised(error: SloguardError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
