"""A study as it lies on disk, read for those who show it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sloguard.errors import SpecError
from sloguard.study.header import Header, read_header
from sloguard.study.log import StudyLog
from sloguard.study.results import Results
from sloguard.study.serve_yaml import serve_yaml
from sloguard.study.spec import StudySpec

BEST_NAME = "best.yaml"
STARTED = ("vllm", "sim")  # engines whose configs are vLLM's; of one's own, those for which `tune` left a file


@dataclass(frozen=True, slots=True)
class Record:
    """`digest` is the SHA-256 of the log. `best_yaml` is what `vllm serve --config` is to read, None where nothing is
    to be deployed, or nothing of ours starts the server; `saved` says that the file beside the log holds that.
    """

    directory: Path
    header: Header
    results: Results
    digest: str
    best_yaml: str | None
    saved: bool

    @property
    def spec(self) -> StudySpec:
        return self.header.spec

    @property
    def simulated(self) -> bool:
        return self.header.simulated


def read_record(directory: Path) -> Record:
    """Raises SpecError where there is no study in `directory`, LogError where its log is damaged."""
    log = StudyLog(directory)
    if not log.exists():
        raise SpecError("DIR", str(directory), "holds no study", "Give the --out directory of `sloguard tune`.")
    header, trials = read_header(log), log.trials()
    if not trials:
        raise SpecError("DIR", str(directory), "holds a study without a trial", "Go on with it: `tune --resume`.")
    spec = header.spec
    results = Results(trials, spec.goal, spec.try_default)
    file = directory / BEST_NAME
    told = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    starts = spec.engine in STARTED or told is not None
    best_yaml = serve_yaml(header, results.best) if results.best is not None and starts else None
    return Record(
        directory=directory,
        header=header,
        results=results,
        digest=hashlib.sha256(log.path.read_bytes()).hexdigest(),
        best_yaml=best_yaml,
        saved=best_yaml is not None and told == best_yaml,
    )
