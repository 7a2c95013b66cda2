"""The ways to tune that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from sloguard.optim import OPTIMIZERS
from sloguard.optim.base import Optimizer, Problem
from sloguard.registry import load


@dataclass(frozen=True, slots=True)
class Way:
    """`optimizer` is a name of `OPTIMIZERS` or "module:Class" of this directory. Proposals are repaired.

    guarded     what provably can't start is not tried
    prior       the earlier study that it is told of (`prior.PRIORS`)
    confirmed   the best are measured again at the end, which takes as long as the search
    """

    optimizer: str
    default_first: bool = True
    guarded: bool = True
    race: bool = True
    prior: str | None = None
    confirmed: bool = False


WAYS: dict[str, Way] = {
    "random": Way("random", default_first=False, guarded=False),
    "random+default": Way("random"),
    "tpe+default": Way("tpe"),
    "tba-tpe": Way("tba-tpe", default_first=False),
    "tba-tpe+default": Way("tba-tpe"),
    "constrained-bo+default": Way("constrained-bo"),
    "gp+default": Way("gp_optuna:GpSearch"),
    "smac+default": Way("smac_search:SmacSearch"),
    "guided": Way("guided"),
    "guided (no race)": Way("guided", race=False),
    "guided+sim": Way("guided", prior="sim", confirmed=True),
    "guided+other": Way("guided", prior="other"),
    "guided+mirrored": Way("guided", prior="mirrored"),
}


def make_optimizer(way: Way, problem: Problem) -> Optimizer:
    """Raises MissingExtra where a library is not installed."""
    return load(OPTIMIZERS, way.optimizer, "--ways", "propose")(problem)
