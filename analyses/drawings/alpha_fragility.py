"""How far alpha moves by matrix, what that does to layers, and which rankings agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from layerstats.plots.style import BLUE, INK, SKY, VERMILLION, finish, layer_axis, series_style

__all__ = ["draw"]

LINES = {"100 bins": BLUE, "xmin the median": VERMILLION, "xmin by best KS": "#009E73"}
METHODS = {"spearman": r"Spearman $\rho$", "kendall": r"Kendall $\tau$"}


def draw(result: Mapping[str, Any]) -> Any:
    """Draw alpha by layer, the distribution of its moves, rank agreement of the ways to fit."""
    figure, by_layer, moved, agree = panels(1, 3, size=(12.0, 4.0), width_ratios=(1.25, 0.8, 0.9))
    layers = result["layers"]
    low, high = layers["spread_over_bins"]
    at = np.arange(len(low))
    by_layer.fill_between(at, low, high, color=SKY, alpha=0.45, lw=0, label="50 to 200 bins")
    for place, (way, colour) in enumerate(LINES.items()):
        style = {**series_style(place), "color": colour, "markersize": 3.5, "linewidth": 1}
        by_layer.plot(at, layers["alpha"][way], label=way, **style)
    layer_axis(by_layer, at.size)
    finish(by_layer, ylabel=r"$\alpha$, mean of the layer's matrices", title="(a) By layer")
    by_layer.set_ylim(1, 1.28 * by_layer.get_ylim()[1])
    legend(by_layer, loc="upper center", ncols=2)
    for place, (name, move) in enumerate(result["matrices"]["moves"].items()):
        values = np.array(move["sorted"])
        share = 100 * np.arange(values.size, 0, -1) / values.size
        style = {**series_style(place), "marker": ""}
        seen = values > 1e-2
        moved.step(values[seen], share[seen], where="pre", label=name, **style)
    moved.set(xscale="log", xlim=(1e-2, None), ylim=(0, 104))
    finish(
        moved, xlabel=r"Move of $\alpha$, at least", ylabel="Matrices (%)", title="(b) By matrix"
    )
    legend(moved, loc="lower left")
    ways = list(layers["agreement_with_100_bins"].items())[::-1]
    for shift, (method, name) in enumerate(METHODS.items()):
        found = [row[method] for _, row in ways]
        rho = np.array([row["rho"] for row in found])
        ends = np.abs(np.array([row["interval"] for row in found], dtype=float).T - rho)
        style = series_style(shift)
        agree.errorbar(rho, np.arange(len(ways)) + 0.14 - 0.28 * shift, xerr=ends, label=name,
                       fmt=style["marker"], color=style["color"], ms=4.5, lw=1.1)  # fmt: skip
    agree.set_yticks(range(len(ways)), [way for way, _ in ways])
    agree.axvline(0, color=INK, linewidth=0.6)
    finish(agree, xlabel="Agreement with 100 bins, 95%", ylabel="", title="(c) Ranking of layers")
    agree.set_xlim(None, 1.04)
    legend(agree, loc="center left", bbox_to_anchor=(0.06, 0.42))
    return figure
