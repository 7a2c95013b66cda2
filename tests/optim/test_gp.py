"""The algebra, against scikit-learn's, and what a process says with little or no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from optim import planted
from sloguard.optim.gp import JITTER, JOINT_LENGTH, Gp, Points, Scales, fitted
from sloguard.rng import stream
from sloguard.space.knobs import Float
from sloguard.space.space import Space
from sloguard.trial import Config

LINE = Space((Float("x", 0.0, 1.0),))
SCALES = Scales(spread=0.5, noise=0.03, shift=0.5)


def at(values: Sequence[float]) -> Points:
    return Points.of([Config({"x": v}) for v in values], LINE)


def fit(
    values: Sequence[float], y: Sequence[float], extra: Sequence[float] | None = None, prior: Gp | None = None
) -> Gp:
    return fitted(at(values), np.array(y), np.array(extra or [0.0] * len(y)), SCALES, prior, mean=0.0)


def test_mean_and_deviation_are_those_of_scikit_learn() -> None:
    x, y, extra = [0.1, 0.35, 0.6, 0.9], [0.2, 0.7, 0.4, -0.3], [0.0, 0.02, 0.0, 0.1]
    process = fit(x, y, extra)
    h = process.hyper
    kernel = (
        ConstantKernel(float(h.knobs[0]), "fixed") * Matern(h.length, "fixed", nu=2.5)
        + ConstantKernel(h.joint, "fixed") * RBF(JOINT_LENGTH, "fixed")
        + ConstantKernel(h.shift, "fixed")
    )
    noise = np.array(extra) + h.noise + JITTER * (h.var() + 1)
    given: dict[str, Any] = {"alpha": noise, "optimizer": None}  # its stubs know one number and one name only
    theirs = GaussianProcessRegressor(kernel, **given).fit(np.array(x)[:, None], y)
    grid = np.linspace(0, 1, 9)  # as knobs round
    mean, sd = theirs.predict(grid[:, None], return_std=True)
    ours = process.predict(at(grid.tolist()))
    assert ours[0] == pytest.approx(mean, abs=1e-8)
    assert ours[1] == pytest.approx(sd, abs=1e-8)
    _, cov = theirs.predict(grid[:, None], return_cov=True)
    assert process.cov(at(grid.tolist()), at(grid.tolist())) == pytest.approx(cov, abs=1e-8)


def test_a_process_that_begins_at_another_tells_its_mean_and_doubt_until_it_has_data() -> None:
    source = fit([0.0, 0.5, 1.0], [0.0, 1.0, 0.0])
    nothing, one = fit([], [], prior=source), fit([0.5], [0.0], prior=source)
    grid = at([0.0, 0.25, 0.5])
    assert nothing.predict(grid)[0] == pytest.approx(source.predict(grid)[0])
    assert np.all(nothing.predict(grid)[1] > source.predict(grid)[1])
    assert one.predict(grid)[0][2] < 0.2 < source.predict(grid)[0][2]


def test_the_source_that_foretold_the_data_has_more_evidence() -> None:
    x = [0.0, 0.3, 0.6, 1.0]
    right, wrong = fit(x, [0.0, 0.5, 1.0, 1.5]), fit(x, [1.5, 1.0, 0.5, 0.0])
    data = ([0.1, 0.8], [0.2, 1.2])
    assert fit(*data, prior=right).evidence > fit(*data, prior=wrong).evidence + 2


def test_a_knob_that_does_nothing_gets_less_of_the_variance() -> None:
    configs = [planted.SPACE.sample(stream(1, "gp", i)) for i in range(40)]
    x = Points.of(configs, planted.SPACE)
    y = np.array([float(bool(c["prefix"])) + planted.number(c["util"]) for c in configs])
    knobs = dict(zip(planted.SPACE.names, fitted(x, y, np.zeros(40), SCALES).hyper.knobs, strict=True))
    assert knobs["prefix"] > 5 * knobs["eager"]
    assert knobs["util"] > 5 * knobs["tokens"]


def test_an_inactive_knob_is_a_level_of_its_own() -> None:
    on = Config({"dtype": "fp16", "seqs": 8, "tokens": 512, "util": 0.6, "eager": True, "prefix": False})
    off = on.replace(eager=False, chunked=False)
    x = Points.of([on, off, off.replace(chunked=True)], planted.SPACE)
    chunked = planted.SPACE.names.index("chunked")
    assert len(set(x.level[:, chunked])) == 3
