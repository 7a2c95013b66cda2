"""Constrained Bayesian optimisation (the one home of botorch; extra `bo`).

    y0          the objective, one Gaussian process over the measured trials
    c_k         log(measured / limit) of each SLO, capped, one process each; <= 0 is met
    starts      where the engine started or not (crashed starting, or refused): one process over all trials
    survives    the same for the load, over the trials that started
    alpha       log noisy expected improvement under P(all constraints <= 0), q = 1 (arXiv 2310.20708)

Conditions between knobs make the space no box, so alpha is maximised over a drawn set of configs: uniform ones, and
neighbours of the best. A choice of k > 2 values is k dimensions to the processes, so that no order is invented.
"""

# pyright: reportMissingImports=false
# (botorch and torch are optional)

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from sloguard.errors import MissingExtra
from sloguard.optim.base import MISS_CAP, Problem, best, constraints, place, taught, violation
from sloguard.optim.fresh import first_fresh
from sloguard.space.knobs import Categorical, Knob
from sloguard.space.space import Space
from sloguard.trial import Config, Crashed, Measured, Refused, Trial

if TYPE_CHECKING:
    from torch import Tensor

INITIAL = 5  # Sobol trials before the models are asked
MIN_MEASURED = 2
UNIFORM, NEAR = 192, 96  # candidates drawn over the whole space, and around the best trial
NEAR_SIGMA, NEAR_STRUCT = 0.1, 0.3
MC_SAMPLES = 64
SOBOL_POINTS = 32
FIT_OPTIONS = {"ftol": 1e-5}  # of the log likelihood: finer changes no choice and takes three times as long


RAN, CRASHED = -0.5, 1.5  # a guess above 0 is avoided: a chance of one in four to crash is too much for a restart


@dataclass(frozen=True, slots=True)
class Data:
    """`x` [n, D] unit cube, `y` [n]; one process is fitted to each."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ConstrainedBo:
    """Raises MissingExtra where botorch is not installed."""

    problem: Problem

    def __post_init__(self) -> None:
        if importlib.util.find_spec("botorch") is None:
            raise MissingExtra("optimizer constrained-bo", "bo")

    def propose(self, history: Sequence[Trial], rng: np.random.Generator) -> Config:
        trials = taught(history)
        measured = [t for t in trials if isinstance(t.outcome, Measured)]
        if len(trials) < INITIAL or len(measured) < MIN_MEASURED:
            return first_fresh(self.problem, history, rng, _sobol(history, self.problem.space, rng))
        return first_fresh(self.problem, history, rng, self._ranked(trials, rng))

    def _ranked(self, trials: Sequence[Trial], rng: np.random.Generator) -> list[Config]:
        space = self.problem.space
        pool = [space.sample(rng) for _ in range(UNIFORM)]
        centre = best(trials, self.problem.goal) or min(trials, key=violation)
        start = place(centre, space)
        pool += [space.neighbour(start, rng, NEAR_SIGMA, NEAR_STRUCT) for _ in range(NEAR)]
        x = _encoded([self.problem.repair(config) for config in pool], space)
        data, seed = datasets(trials, self.problem), int(rng.integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch, gpytorch and botorch advise on numerics; they fail by exception
            alpha = _acquisition(data, x, seed)
        return [pool[i] for i in np.argsort(-alpha, kind="stable")]


def _sobol(history: Sequence[Trial], space: Space, rng: np.random.Generator) -> list[Config]:
    """Points of a Sobol net scrambled anew, those farthest from what was tried first: space-filling without a state."""
    if not space.knobs:
        return [Config()]
    net = qmc.Sobol(len(space.knobs), rng=rng).random(SOBOL_POINTS)
    configs = [space.decode(unit) for unit in net]
    if not history:
        return configs
    x, seen = _encoded(configs, space), _encoded([place(t, space) for t in history], space)
    gap = np.linalg.norm(x[:, None, :] - seen[None, :, :], axis=2).min(axis=1)
    return [configs[i] for i in np.argsort(-gap, kind="stable")]


def datasets(trials: Sequence[Trial], problem: Problem) -> list[Data]:
    """The objective first, then every constraint that was ever seen on both sides or is an SLO's."""
    space = problem.space
    measured = [t for t in trials if isinstance(t.outcome, Measured)]
    started = [t for t in trials if not _failed(t, "startup")]
    x = _encoded([place(t, space) for t in measured], space)
    scores = [problem.goal.score(t) for t in measured]
    known = [s for s in scores if s is not None]
    floor = min(known, default=0.0)
    data = [Data(x, np.array([floor if s is None else s for s in scores]))]
    limits = np.maximum(np.array([constraints(t)[:-1] for t in measured]), -MISS_CAP)  # the last: did it serve at all?
    data += [Data(x, column) for column in limits.T]
    for among, phase in ((list(trials), "startup"), (started, "load")):
        label = np.array([CRASHED if _failed(t, phase) or _served_nothing(t, phase) else RAN for t in among])
        if np.ptp(label) > 0:
            data.append(Data(_encoded([place(t, space) for t in among], space), label))
    return data


def _failed(trial: Trial, phase: str) -> bool:
    match trial.outcome:
        case Crashed(crash):
            return crash.phase == phase
        case Refused():
            return phase == "startup"
        case _:
            return False


def _served_nothing(trial: Trial, phase: str) -> bool:
    return phase == "load" and isinstance(trial.outcome, Measured) and not trial.outcome.verdict.completed


def _encoded(configs: Sequence[Config], space: Space) -> NDArray[np.float64]:
    """[n, D] unit cube; an inactive knob sits at 0.5."""
    pairs = [space.encode(config) for config in configs]
    unit, active = np.array([u for u, _ in pairs]), np.array([a for _, a in pairs])
    columns = [_columns(knob, unit[:, j], active[:, j]) for j, knob in enumerate(space.knobs)]
    return np.concatenate(columns, axis=1)


def _columns(knob: Knob, unit: NDArray[np.float64], active: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n, 1], or [n, k] for a choice of k > 2 values."""
    if not isinstance(knob, Categorical) or knob.count <= 2:
        return unit[:, None]
    one_hot = np.floor(unit * knob.count)[:, None] == np.arange(knob.count)
    return np.where(active[:, None], one_hot.astype(np.float64), 0.5)


def _acquisition(data: Sequence[Data], candidates: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[m] log expected improvement of each candidate [m, D], given the fitted processes."""
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.objective import GenericMCObjective
    from botorch.models import ModelListGP
    from botorch.sampling.normal import SobolQMCNormalSampler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ModelListGP(*[_fitted(d) for d in data])
        objective = GenericMCObjective(_output(0))
        alpha = qLogNoisyExpectedImprovement(
            model,
            X_baseline=torch.from_numpy(data[0].x),
            sampler=SobolQMCNormalSampler(torch.Size([MC_SAMPLES]), seed=seed),
            objective=objective,
            constraints=[_output(i) for i in range(1, len(data))] or None,
            prune_baseline=False,
        )
        with torch.no_grad():
            return alpha(torch.from_numpy(candidates)[:, None, :]).numpy()


def _output(index: int) -> Callable[..., Tensor]:
    """Picks one process from samples [..., m]."""

    def pick(samples: Tensor, X: Tensor | None = None) -> Tensor:  # noqa: N803 - botorch passes it by this name
        return samples[..., index]

    return pick


def _fitted(data: Data):
    """A Gaussian process over `data`, its hyperparameters fitted by maximum likelihood with botorch's priors."""
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)[:, None]
    model = SingleTaskGP(x, y, outcome_transform=Standardize(m=1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": FIT_OPTIONS})
    return model
