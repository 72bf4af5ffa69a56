"""The averaged gap over T, one panel an optimizer, beside a line of slope -1/2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from layerstats.plots.style import INK, finish, series_style

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw the averaged gap over T, one panel an optimizer, beside a line of slope -1/2."""
    figure, *axes = panels(1, 2, size=(8.4, 3.6), sharey=True)
    for ax, optimizer in zip(axes, ("Adam", "SGD"), strict=True):
        chosen = {name: arm for name, arm in result["arms"].items() if name.startswith(optimizer)}
        for place, (name, arm) in enumerate(chosen.items()):
            at, mean = ([point[key] for point in arm["curve"]] for key in ("T", "mean"))
            low, high = np.array([point["interval"] for point in arm["curve"]]).T
            look = {**series_style(place), "marker": ""}
            text = f"{name.partition(', ')[2]}: ${arm['slope']['mean']:.2f}$"
            ax.plot(at, mean, label=text, **look)
            ax.fill_between(at, low, high, color=look["color"], alpha=0.2, linewidth=0)
        ends = np.array([at[-1] / 20, at[-1]])
        top = 2.2 * max(arm["gap_at_end"]["mean"] for arm in chosen.values())
        ax.plot(ends, top * np.sqrt(ends[1] / ends), color=INK, linewidth=1, label="$-1/2$")
        ax.set(xscale="log", yscale="log")
        name = "Mean gap to the optimum\nof steps 1 to T (nats)" if optimizer == "Adam" else ""
        finish(ax, xlabel="Steps T", ylabel=name, title=optimizer)
        legend(ax, loc="lower left", title="Trained: slope of the last decade", alignment="left")
    return figure
