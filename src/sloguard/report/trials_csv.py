"""The trials of a study as CSV, one a row, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from sloguard.optim.base import Goal
from sloguard.report.tables import status_of
from sloguard.trial import Crashed, Trial


def to_csv(trials: Sequence[Trial], goal: Goal) -> str:
    """Trials by number, with the score in its own unit and a column for each knob that any of them has; what is not
    known is empty. `recheck` is the number of the trial that was measured again.
    """
    knobs = sorted({name for trial in trials for name in trial.config})
    score_column = f"{goal.objective}_{goal.told.unit.replace('/', '_')}"
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", "status", score_column, "recheck", "crash_category", "crash_cause", "cost_s", *knobs])
    for trial in sorted(trials, key=lambda trial: trial.number):
        crash = trial.outcome.crash if isinstance(trial.outcome, Crashed) else None
        score = goal.score(trial)
        rows.writerow(
            [
                trial.number,
                status_of(trial),
                None if score is None else goal.told.natural(score),
                trial.recheck,
                crash and crash.category,
                crash and crash.cause,
                trial.cost_s,
                *(trial.config.get(name) for name in knobs),
            ]
        )
    return text.getvalue()
