"""The files in which `sloguard tune` leaves what it found."""

from __future__ import annotations

import json

from sloguard.report.files import write_text_atomic
from sloguard.study.header import read_header
from sloguard.study.log import StudyLog
from sloguard.study.record import BEST_NAME
from sloguard.study.results import Results
from sloguard.study.runner import Study
from sloguard.study.serve_yaml import serve_yaml


def serve_command_of(study: Study, results: Results) -> list[str]:
    return study.engine.command_for(results.best.overrides) if results.best else []


def write_results(log: StudyLog, study: Study, results: Results, wall_s: float) -> dict[str, object]:
    out, summary = log.directory, results.to_json(wall_s)
    write_text_atomic(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if results.best and serve_command_of(study, results):
        write_text_atomic(out / BEST_NAME, serve_yaml(read_header(log), results.best))
    else:
        (out / BEST_NAME).unlink(missing_ok=True)
    return summary
