"""What the capacity studies show: Markdown tables and pictures, from rows as `sloguard capacity` saves them, by name."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import exp, log
from typing import Any

from capacity_rows import (
    ABLATIONS,
    BELIEFS,
    LEARNS,
    LENGTHS,
    MODELS,
    OURS,
    PAPERS_BASELINES,
    PAPERS_SCALING,
    POLICIES,
    RATIOS,
    REPLICA_POLICIES,
    REPLICAS,
    ROUTERS,
    SCALED,
    SCENARIOS,
    SENSITIVE,
    believing,
    bound_name,
    deployment,
    guessing,
    title,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sloguard.report.capacity_figure import COLOURS, capacity_figure
from sloguard.study.sim_spec import SimSpec

Rows = Mapping[str, Mapping[str, Any]]
Bounds = Mapping[str, Sequence[float]]
Result = tuple[str, dict[str, bytes]]  # Markdown, and pictures by name of their file
DISTSERVE, BOUND = "distserve, best ratio", "bound"
