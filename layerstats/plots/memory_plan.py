"""Simulated memory of planned runs as stacked bars, one a run; OwLore's Figures 3 and 4, left."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.logs import byte_unit
from layerstats.plots.memory_use import LABELS, LOOKS
from layerstats.plots.style import INK, TEXT_SIZE, finish, outside_legend

__all__ = ["memory_plan"]

_PARTS = ("weights", "gradients", "optimizer", "activations")


def memory_plan(
    plans: Mapping[str, Mapping[str, Any]],
    *,
    measured: Mapping[str, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    **bar: Any,
) -> Axes:
    """Draw what planned runs would hold at their peaks, part by part.

    Parameters
    ----------
    plans : mapping of str to mapping
        Label -> what `MemoryPlan.to_dict` gives; used are `parts_at_peak_bytes` and
        `sum_of_parts_bytes`, in bytes.
    measured : mapping of str to float, optional
        Label -> what a run has really taken, in bytes; drawn as circles.
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **bar
        Passed to `Axes.barh`.

    Returns
    -------
    Axes
        A bar a plan, as long as its simulated peak, stacked from weights over gradients and
        optimizer state to activations; a mark at the sum of the parts' own peaks, which papers
        print. In GB of 1e9 bytes, MB or kB for small ones.

    Raises
    ------
    UsageError
        No plan is given.

    Examples
    --------
    >>> parts = {"weights": 4e9, "gradients": 1e9, "optimizer": 2e9, "activations": 3e9}
    >>> ax = memory_plan({"lisa": {"parts_at_peak_bytes": parts, "sum_of_parts_bytes": 11e9}})
    >>> [round(float(one.get_width()), 3) for one in ax.patches]
    [4.0, 1.0, 2.0, 3.0]
    """
    if not plans:
        msg = "nothing to plot: give at least one plan"
        raise UsageError(msg)
    ax = new_axes(size=(7.0, 1.1 + 0.36 * len(plans))) if ax is None else ax
    sums = np.array([plan["sum_of_parts_bytes"] for plan in plans.values()], dtype=float)
    size, unit = byte_unit(float(sums.max()))
    places, floor = np.arange(len(plans)), np.zeros(len(plans))
    for part in _PARTS:
        width = np.array([plan["parts_at_peak_bytes"][part] for plan in plans.values()]) / size
        look = {**LOOKS[part], "linewidth": 0.0, "edgecolor": "white", "height": 0.62, **bar}
        ax.barh(places, width, left=floor, label=LABELS.get(part, part), **look)
        floor = floor + width
    mark: dict[str, Any] = {"linestyle": "none", "marker": "|", "color": INK}
    mark |= {"markersize": 12, "markeredgewidth": 1.8}
    ax.plot(sums / size, places, gid="sum of parts", **mark)
    ring: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6.5}
    ring |= {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.4}
    if measured is not None:
        ax.plot([measured[label] / size for label in plans], places, gid="measured", **ring)
    ax.set_yticks(places, ["\n".join(textwrap.wrap(label, 30)) for label in plans])
    ax.tick_params(axis="y", labelsize=TEXT_SIZE)
    ax.set_ylim(len(plans) - 0.5, -0.5)
    ax.set_xlim(0.0, 1.05 * float(sums.max()) / size)
    finish(ax, xlabel=f"Memory at the peak ({unit}, simulated)", ylabel="", title=title)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    handles = [*ax.get_legend_handles_labels()[0]]
    handles.append(Line2D([], [], label="sum of the parts' own peaks", **mark))
    if measured is not None:
        handles.append(Line2D([], [], label="measured in a run", **ring))
    outside_legend(ax, handles=handles)
    return ax
