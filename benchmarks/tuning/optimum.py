"""The best config of a task, as far as one finds it: a search without noise, on the arrivals that truth is told by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loop import GOAL, context_of, space_of
from tasks import Task
from truth import SEED, Truth, Worlds
from world import World

from sloguard.optim.base import Exhausted, Problem
from sloguard.optim.random import RandomSearch
from sloguard.optim.tpe import Tpe
from sloguard.space.repair import refusal, repair
from sloguard.study.asking import CapacitySearch
from sloguard.study.runner import Study, attempt, propose
from sloguard.trial import Ask, Config, Proposal, Trial

COUNT, TOLERANCE = 150, 0.02
FINALISTS = 3


def seek_optimum(
    task: Task, worlds: Worlds, around: Sequence[Config], uniform: int = 0, sought: int = 40
) -> tuple[Config, Truth]:
    """The overrides with the largest true rate among `around` and what `uniform` random and then `sought` trials of TPE
    find from there. Each trial races the best before it.
    """
    engine = World(task, 0, noise=0.0)
    space, context = space_of(task, engine), context_of(task, engine)
    problem = Problem(space, GOAL, uniform + sought, lambda config: repair(config, space, context).config)
    study = Study(
        engine,
        RandomSearch(problem),
        space,
        lambda config: repair(config, space, context),
        lambda config: refusal(config, space, context),
        CapacitySearch(task.requests, task.contract, SEED, task.near, COUNT, TOLERANCE),
        GOAL,
        seed=0,
        try_default=False,
        retry_wait_s=0.0,
    )
    seeking = replace(study, optimizer=Tpe(problem, random_first=0, wary=True))
    history: list[Trial] = []
    with TemporaryDirectory() as directory:
        for overrides in around:
            told = Proposal(overrides, overrides or engine.default_config(), ask=_asked(history))
            history.append(attempt(study, told, len(history) + 1, Path(directory) / "trial"))
        for number in range(len(history) + 1, len(history) + uniform + sought + 1):
            try:
                made = propose(study if number <= len(around) + uniform else seeking, history, number)
            except Exhausted:
                break
            history.append(attempt(study, made, number, Path(directory) / "trial"))
    ranked = sorted((t for t in history if t.capacity), key=lambda t: t.capacity.low if t.capacity else 0.0)
    finalists = [*around, *(trial.overrides for trial in ranked[-FINALISTS:])]
    return max(((c, worlds.truth(task, c)) for c in finalists), key=lambda pair: pair[1].rate)


def _asked(history: Sequence[Trial]) -> Ask:
    rates = [trial.capacity.low for trial in history if trial.capacity]
    return Ask(to_beat=max(rates, default=0.0) or None)
