"""Regret against trials and against the clock: PNG, reduced to few colours."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
COLOURS = 64
STYLES = ("-", "--", ":", "-.")


def curves_figure(curves: Mapping[str, tuple[Array, Array]], title: str, x_label: str) -> bytes:
    """`curves` by way: x [k] and regret [k]."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for at, (way, (x, y)) in enumerate(curves.items()):
        ours = way.startswith("guided")
        axes.step(
            x,
            y,
            where="post",
            label=way,
            linewidth=2.2 if ours else 1.2,
            linestyle=STYLES[at // 10 % 4],
            color=f"C{at % 10}",
        )
    axes.set(title=title, xlabel=x_label, ylabel="mean of 1 - share of the optimum", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return quantised(buffer.getvalue())


def quantised(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
