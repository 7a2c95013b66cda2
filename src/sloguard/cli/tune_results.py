"""The files in which `sloguard tune` leaves what it found."""

from __future__ import annotations

import json
from pathlib import Path

from sloguard.report.files import write_text_atomic
from sloguard.study.record import BEST_NAME
from sloguard.study.results import Results
from sloguard.study.runner import Study
from sloguard.study.serve_yaml import serve_yaml
from sloguard.study.spec import StudySpec


def serve_command_of(study: Study, results: Results) -> list[str]:
    return study.engine.command_for(results.best.overrides) if results.best else []


def write_results(out: Path, spec: StudySpec, study: Study, results: Results, wall_s: float) -> dict[str, object]:
    summary = results.to_json(wall_s)
    write_text_atomic(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if results.best and serve_command_of(study, results):
        write_text_atomic(out / BEST_NAME, serve_yaml(spec, results.best))
    else:
        (out / BEST_NAME).unlink(missing_ok=True)
    return summary
