"""LOD and heavy tail by layer, a column of panels a model; rho above it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from layerstats.plots.style import BLUE, INK, VERMILLION, finish, layer_axis

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw each model's LOD above its heavy-tail index, with 95 % intervals where there are any."""
    figure, *axes = panels(2, 2, size=(9.0, 5.0), sharex="col")
    for column, (label, layers) in enumerate(result["layers"].items()):
        upper, lower = axes[column], axes[2 + column]
        lod, tail = (np.array(layers[key]) for key in ("lod_m13", "heavy_tail"))
        at, pair = np.arange(lod.size), result["spearman"][label]
        upper.bar(at, lod, color=BLUE)
        lower.plot(at, tail, color=VERMILLION, marker="s", markersize=4, linewidth=1)
        if "lod_m13_lo" in layers:
            edges = [np.array(layers[key]) for key in ("lod_m13_lo", "lod_m13_hi")]
            upper.vlines(at, *edges, color=INK, linewidth=1.2, label="95% over windows")
            legend(upper, loc="upper center")
            edges = [-np.array(layers[key]) for key in ("alpha_hill_lo", "alpha_hill_hi")]
            look = {"color": VERMILLION, "linewidth": 1, "alpha": 0.6}
            lower.vlines(at, *edges, label="over tied bins", **look)
            legend(lower, loc="lower right")
        low, high = pair["interval"]
        rho = rf"Spearman $\rho$ = {pair['rho']:.2f}, 95% interval [{low:.2f}, {high:.2f}]"
        first = column == 0
        finish(upper, ylabel="LOD, M = 13 (%)" if first else "", title=f"{label}\n{rho}")
        finish(lower, ylabel=r"Heavy tail, $-\alpha$" if first else "")
        layer_axis(lower, lod.size)
        upper.set_xlim(lower.get_xlim())
    return figure
