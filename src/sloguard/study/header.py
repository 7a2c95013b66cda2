"""The first line of a study's log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sloguard.errors import LogError, SpecError
from sloguard.study.log import StudyLog
from sloguard.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Header:
    """How a study began: what it was asked for, what the engine said of itself, the version of sloguard that made it,
    how many trials ran at a time (`lanes`; 0: one, in the command itself), and whether crashes of earlier studies were
    known. `model` is the spec's as it is found from any directory.
    """

    spec: StudySpec
    model: str
    engine: Mapping[str, str]
    sloguard: str | None
    lanes: int
    warned: bool

    @property
    def simulated(self) -> bool:
        return self.engine.get("simulated") == "true"


def read_header(log: StudyLog) -> Header:
    """Raises LogError where no study can have begun like that."""
    told = log.header()
    try:
        spec = StudySpec.from_json(told["spec"])
        return Header(
            spec=spec,
            model=told.get("model", spec.model),
            engine=told["engine"],
            sloguard=told.get("sloguard"),
            lanes=int(told.get("lanes", 0)),
            warned=bool(told.get("failures")),
        )
    except (SpecError, AttributeError, TypeError, ValueError) as error:
        raise LogError(f"{log.path}, line 1: 'spec' can't be read ({error}). Restore the file from a copy.") from error
