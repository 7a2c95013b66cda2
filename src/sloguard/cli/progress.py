"""The live view of a study: a bar with trial, phase and incumbent, and a line for each finished trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sloguard.optim.base import Goal, best
from sloguard.report.tables import score_text, trial_line
from sloguard.study.confirm import explored
from sloguard.trial import Crashed, Proposal, Trial

WIDTH_OFF_TERMINAL = 160  # a log file or a pipe has no width of its own; 80 columns would cut what matters


def plain_console(*, stderr: bool = False) -> Console:
    """A console for a terminal, a pipe or a log file."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = WIDTH_OFF_TERMINAL
    return console


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that is told how many of how many are done, and is gone at the end; shows on a terminal only."""
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class StudyProgress:
    """Writes to stderr; the bar shows only on a terminal, the lines always."""

    def __init__(self, goal: Goal, budget: int, trials: Sequence[Trial]) -> None:
        self._goal, self._trials = goal, list(trials)
        self._console = plain_console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=budget, completed=len(explored(trials)))
        self._phase = ""

    def __enter__(self) -> Self:
        if self._trials:
            self._console.print(f"resuming: {len(self._trials)} trials are done")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def starting(self, number: int, proposal: Proposal) -> None:
        for avoided in proposal.avoided:
            self._console.print(Text.assemble("      ", ("avoided", "cyan"), f"    {avoided.reason}"))
        self._show(f"trial {number}")

    def phase(self, phase: str) -> None:
        self._show(f"trial {len(self._trials) + 1} {phase}")

    def finished(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._console.print(trial_line(trial, self._goal), highlight=False)
        self._bar.update(self._task, completed=len(explored(self._trials)))

    def _show(self, what: str) -> None:
        incumbent = best(self._trials, self._goal)
        held = (
            f"best {score_text(self._goal.score(incumbent), self._goal)} (trial {incumbent.number})"
            if incumbent
            else "no feasible yet"
        )
        crashed = sum(isinstance(t.outcome, Crashed) for t in self._trials)
        self._bar.update(self._task, description=f"{what} | {held} | {crashed} crashed")
