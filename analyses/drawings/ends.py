"""An axis of places: embedding, blocks, head; values with intervals on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from layerstats.plots.style import INK, LABEL_SIZE, MUTED, VERMILLION, LayerLocator, layer_axis

__all__ = ["axis_with_ends", "draw_by_place", "draw_law"]


def _gap(num_layers: int) -> float:
    return max(1.0, 0.13 * num_layers)


def draw_by_place(ax: Any, found: Mapping[str, Any], look: Mapping[str, Any], side: int) -> None:
    """Draw mean and interval: a line with a band over the blocks, open markers at the ends.

    `side` is -1 or 1: where two markers of one end stand beside each other; 0 for one alone.
    """
    mean, low, high = (np.array(found[key]) for key in ("mean", "low", "high"))
    layers, gap = np.arange(mean.size - 2), _gap(mean.size - 2)
    color = look["color"]
    ax.plot(layers, mean[1:-1], **{"markersize": 3.5, "linewidth": 1.1, **look})
    ax.fill_between(layers, low[1:-1], high[1:-1], color=color, alpha=0.18, linewidth=0)
    ends = [-gap + 0.18 * gap * side, layers[-1] + gap + 0.18 * gap * side]
    bars = [mean[[0, -1]] - low[[0, -1]], high[[0, -1]] - mean[[0, -1]]]
    marker = {"markersize": 6.5, "markerfacecolor": "white", "markeredgewidth": 1.5}
    ax.errorbar(ends, mean[[0, -1]], bars, linestyle="", marker=look["marker"], color=color,
                elinewidth=1.3, capsize=2.5, **marker)  # fmt: skip


def axis_with_ends(ax: Any, num_layers: int, *, label: bool = True) -> None:
    """Make the x axis one of layers with embedding and head as places of their own."""
    layer_axis(ax, num_layers, label=False)
    gap = _gap(num_layers)
    ends = {-gap: "embed", num_layers - 1 + gap: "head"}
    for border in (-gap / 2, num_layers - 1 + gap / 2):
        ax.axvline(border, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
    ax.set_xlim(-1.5 * gap, num_layers - 1 + 1.5 * gap)
    ax.xaxis.set_major_locator(LayerLocator(num_layers, tuple(ends)))
    ax.xaxis.set_major_formatter(lambda x, _: ends.get(float(x), f"{x:.0f}"))
    if label:
        ax.set_xlabel("Layer (index, 0 = nearest the input)", fontsize=LABEL_SIZE, color=INK)


def draw_law(ax: Any, num_layers: int, ends: float, label: str) -> None:
    """Draw a law that is 1 for every block and `ends` for embedding and head."""
    gap = _gap(num_layers)
    look = {"color": VERMILLION, "linewidth": 1.6, "linestyle": "--", "zorder": 1.5}
    ax.plot([-0.4, num_layers - 0.6], [1, 1], label=label, **look)
    for at in (-gap, num_layers - 1 + gap):
        ax.plot([at - 0.4 * gap, at + 0.4 * gap], [ends, ends], **{**look, "linestyle": "-"})
