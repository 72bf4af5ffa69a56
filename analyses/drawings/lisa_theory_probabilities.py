"""Measured p by place over that of the mean block, a panel a reading; LISA's law; LOD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from analyses.drawings.ends import axis_with_ends, draw_by_place, draw_law
from layerstats.plots.style import MUTED, finish, series_style, set_value_scale

__all__ = ["draw"]

TITLES = {
    "weights in use": r"(a) $\|W + sBA\|\,/\,\|W\|$, over training",
    "update": r"(b) $\|sBA\|\,/\,\|W - W_0\|$, at the end",
    "update over weights": r"(c) $\|sBA\|\,/\,\|W\|$, at the end",
    "trained numbers": r"(d) $\|(A, B)\|\,/\,\|W\|$",
}


def draw(result: Mapping[str, Any]) -> Any:
    """Draw the readings on one scale, on which the mean block is 1."""
    figure, *axes = panels(2, 2, size=(9.8, 6.2), sharey=True)
    lod, asked = np.array(result["lod_over_mean"]), result["published"]["ends_over_blocks"]
    values = [*lod[lod > 0], asked]
    for place, (ax, (name, title)) in enumerate(zip(axes, TITLES.items(), strict=True)):
        row = result["probabilities"][name]
        ax.plot(lod, color=MUTED, alpha=0.6, linewidth=0.9, label="LOD (M = 7), which OwLore takes")
        draw_law(ax, lod.size, asked, "LISA's simplification")
        look = {**series_style(0), "label": "measured, 95% over seeds"}
        draw_by_place(ax, row["p_over_mean_block"], look, 0)
        values += row["p_over_mean_block"]["mean"]
        axis_with_ends(ax, lod.size, label=place > 1)
        rho = row["spearman_with_lod"]
        note = "constant over blocks"
        if rho["rho"] is not None:
            low, high = rho["interval"]
            note = rf"$\rho$ with LOD {rho['rho']:.2f} [{low:.2f}, {high:.2f}]".replace(
                "-", "\N{MINUS SIGN}"
            )
        finish(ax, ylabel="" if place % 2 else "p over the mean block's", title=f"{title}\n{note}")
    for ax in axes:
        set_value_scale(ax, values, scale="log")
    legend(axes[0], loc="best")
    return figure
