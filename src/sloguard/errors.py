"""The errors sloguard raises on purpose.

    SloguardError
    ├── SpecError      the user's input: names the field, the value and the fix (exit code 2)
    ├── PolicyError    a policy of the user's own: which rule it broke, when, for which job (exit code 2)
    ├── MissingExtra   an optional dependency is not installed: names the pip extra (exit code 2)
    ├── LogError       the disk: a study log that can't be read, written or locked (exit code 2)
    ├── WorkerLost     a process of a search was killed (exit code 2)
    ├── EngineCrash    the engine: carries the evidence (`crash.py`); only `study/runner.py` catches it
    └── EnvironmentFault   the machine keeps every engine from running (`study/runner.py`; exit code 2)

Anything else that is raised is a bug in sloguard and is left to stop the program.
"""

from __future__ import annotations

from typing import Any

from sloguard.crash import Evidence


class SloguardError(Exception):
    """Root of every error that sloguard raises on purpose. Each can be sent from one process to another."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the constructor, whose arguments are not what `Exception` keeps."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[SloguardError], args: tuple[Any, ...]) -> SloguardError:
    return kind.__new__(kind, *args)


class SpecError(SloguardError):
    """The user's input is wrong. Reads as one line: field, value, what is wrong, what to do."""

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        given = field if value is None else f"{field} = {value!r}"
        super().__init__(f"{given}: {problem}. {fix}")


class PolicyError(SloguardError):
    """A policy of the user's own breaks a rule, or breaks down. Reads as one line."""

    def __init__(self, policy: str, problem: str) -> None:
        self.policy, self.problem = policy, problem
        super().__init__(" ".join(f"{policy}: {problem}".split()))


class MissingExtra(SloguardError):  # noqa: N818 - reads as what it is
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature, self.extra = feature, extra
        super().__init__(f"{feature} needs an optional package. Install it with: pip install 'sloguard[{extra}]'")


class LogError(SloguardError):
    """A study log can't be read, written or locked. Names the file, and the line where there is one."""


class WorkerLost(SloguardError):  # noqa: N818 - reads as what it is
    """A process that worked for this one ended before its work did."""


class EngineCrash(SloguardError):  # noqa: N818 - a crash is data here, not a programming error
    """The engine could not start, or stopped serving. `evidence` is what was seen, `cost_s` the time it took."""

    def __init__(self, evidence: Evidence, cost_s: float = 0.0) -> None:
        self.evidence, self.cost_s = evidence, cost_s
        super().__init__(f"engine crashed during {evidence.phase}")
