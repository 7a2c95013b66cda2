"""How a study's figures are put: units, statuses, promises, and what a trial says when it is pointed at."""

from __future__ import annotations

from sloguard.optim.base import Goal
from sloguard.page.canvas import plain
from sloguard.page.figures import Dot
from sloguard.report.tables import score_text, status_of
from sloguard.study.spec import StudySpec
from sloguard.trial import Crashed, Refused, Trial

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "latency"}
MINUTE_S, HOUR_S = 60.0, 3600.0


def axis(goal: Goal) -> str:
    return f"{goal.told.figure}, {goal.told.read_in}"


def number_text(score: float, goal: Goal) -> str:
    return goal.told.number(goal.told.natural(score))


def ms_text(seconds: float) -> str:
    """Milliseconds, to a tenth where that tells a promise from what was measured."""
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def time_text(seconds: float) -> str:
    """Two significant units at the most."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.1f} h"


def counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def promises(spec: StudySpec) -> list[str]:
    """E.g. `TTFT <= 400 ms for 95 % of requests`, `p99 TTFT <= 500 ms`."""
    share = f"for {spec.attainment * 100:g} % of requests"
    own = [f"{METRICS[name]} ≤ {limit_s * 1000:g} ms" for name, limit_s in spec.slo_s.items()]
    whole = [f"p99 {METRICS[name]} ≤ {limit_s * 1000:g} ms" for name, limit_s in spec.slo_p99_s.items()]
    return [*([f"{' and '.join(own)} {share}"] if own else []), *whole]


def name_of(trial: Trial) -> str:
    return "default (trial 1)" if not trial.proposed and trial.number == 1 else f"trial {trial.number}"


def dot_of(trial: Trial, goal: Goal, x: float) -> Dot:
    """Its score; where it was dropped, the rate that it failed at."""
    score, found = goal.score(trial), trial.capacity
    y = None if score is None else goal.told.shown(score)
    if y is None and found is not None and found.dropped:
        y = found.high
    return Dot(x, y, status_of(trial), tip(trial, goal))


def tip(trial: Trial, goal: Goal) -> str:
    match trial.outcome:
        case Crashed(crash):
            what = f"crashed, {crash.category}/{crash.cause}"
        case Refused():
            what = "refused"
        case _:
            found = trial.capacity
            dropped = found is not None and found.dropped
            score = f"fails at {found.high:.2f} req/s" if found and dropped else score_text(goal.score(trial), goal)
            what = f"{status_of(trial)}, {score}"
    return plain(f"trial {trial.number}: {what}", 90)
