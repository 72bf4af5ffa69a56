"""What the pictures of fine-tuning runs share: a method's look, a band and dots over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.run_summary import NAMES
from layerstats.plots.style import INK, series_style

__all__ = ["band", "interval_dots", "look", "over_steps"]

SPREAD = "bands: least to largest over seeds"


def look(method: str) -> dict[str, Any]:
    """Return colour, marker and dashes of a method, the same in every picture."""
    return series_style(list(NAMES).index(method))


def band(ax: Any, found: Mapping[str, Any], style: Mapping[str, Any], **line: Any) -> None:
    """Draw a mean over seeds by step as a line, least to largest as a band."""
    shown = {**style, "linewidth": 1.4, "markersize": 4.5, **line}
    ax.plot(found["step"], found["mean"], **shown)
    edges = found["least"], found["largest"]
    ax.fill_between(found["step"], *edges, color=style["color"], alpha=0.13, linewidth=0)


def over_steps(ax: Any, curves: Sequence[Mapping[str, Any]]) -> None:
    """Fit the axes to held-out curves from their second point on: the first lies far above."""
    least = min(min(one["least"]) for one in curves)
    largest = max(max(one["largest"][1:] or one["largest"]) for one in curves)
    room = 0.06 * (largest - least)
    ax.set_ylim(least - room, largest + room)
    steps = curves[0]["step"]
    second = steps[1] if len(steps) > 1 else steps[0]
    ax.set_xlim(0.85 * second, 1.02 * steps[-1])
    ax.set_xticks(steps[1:])


def interval_dots(
    ax: Any, place: float, found: Mapping[str, Any], color: str, *, across: bool = False
) -> None:
    """Draw seeds as dots, their mean and its interval beside them; `across`: values on x."""
    seeds = np.array(list(found["per_seed"].values()))
    low, high = found["interval"]
    mean, error = [found["mean"]], [[found["mean"] - low], [high - found["mean"]]]
    dots = {"linestyle": "", "marker": "o", "markersize": 4, "alpha": 0.7, "color": color}
    bar = {"color": INK, "fmt": "_" if not across else "|", "markersize": 9, "capsize": 2.5}
    bar |= {"linewidth": 1.1}
    shift = 0.14
    if across:
        ax.plot(seeds, np.full(seeds.size, place - shift), **dots)
        ax.errorbar(mean, [place + shift], xerr=error if seeds.size > 1 else None, **bar)
    else:
        ax.plot(np.full(seeds.size, place - shift), seeds, **dots)
        ax.errorbar([place + shift], mean, yerr=error if seeds.size > 1 else None, **bar)
