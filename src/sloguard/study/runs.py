"""Studies as they are compared, whoever made them: a label, a seed, and the trials in order."""

from __future__ import annotations

from dataclasses import dataclass

from sloguard.optim.objective import OBJECTIVES
from sloguard.trial import Config


@dataclass(frozen=True, slots=True)
class TrialRun:
    """`score` is to be maximised (a latency is negative, in seconds) and None where there is none, as of a trial that
    was `dropped` in a race. `config` is None where it was not written down; `requests` is how many a load had.
    """

    feasible: bool
    score: float | None = None
    crashed: bool = False
    dropped: bool = False
    cost_s: float | None = None
    config: Config | None = None
    requests: int | None = None

    @property
    def kept(self) -> float | None:
        """The score, where the contract was kept."""
        return self.score if self.feasible else None


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One study. `trials` are those that tried something, without those that measured again what others had found;
    `held_out` is what the recommended config scored when it was measured again. `seed` is None where nobody wrote it
    down. `warned` says that crashes of earlier studies were known when it began; `one_at_a_time` that a load's requests
    came one after another.
    """

    label: str
    seed: int | None
    trials: tuple[TrialRun, ...]
    objective: str
    name: str = ""
    held_out: float | None = None
    simulated: bool = False
    warned: bool = False
    one_at_a_time: bool = False

    @property
    def best(self) -> float | None:
        """The highest score of a trial that kept the contract."""
        return max((trial.kept for trial in self.trials if trial.kept is not None), default=None)

    def natural(self, score: float) -> float:
        """A score in its own unit."""
        return OBJECTIVES[self.objective].natural(score)
