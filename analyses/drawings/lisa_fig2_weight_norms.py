"""Norms by place of LoRA and full fine-tuning, a panel a reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from analyses.drawings.ends import axis_with_ends, draw_by_place
from layerstats.plots.style import finish, series_style, set_value_scale

__all__ = ["draw"]

TITLES = {
    "weights in use": ("(a) Weights in use, mean over training", r"$\|W\|_F$"),
    "update": ("(b) Update at the end", r"$\|W - W_0\|_F$"),
    "relative update": ("(c) Relative update at the end", r"$\|W - W_0\|_F\,/\,\|W_0\|_F$"),
    "trained numbers": ("(d) Numbers that train: A, B or W", r"$\|(A, B)\|_F$ or $\|W\|_F$"),
}
#: LoRA's small markers lie within those of full, where the two are the same.
LOOKS = (
    {**series_style(0), "zorder": 3},
    {**series_style(1), "markersize": 5.5, "markerfacecolor": "white"},
)


def draw(result: Mapping[str, Any]) -> Any:
    """Draw each reading in a panel; the titles give embedding and head over the median block."""
    figure, *axes = panels(2, 2, size=(9.8, 6.4))
    many = len(result["places"]) - 2
    for place, (ax, (name, (title, ylabel))) in enumerate(zip(axes, TITLES.items(), strict=True)):
        for position, (label, found) in enumerate(result["norms"][name].items()):
            draw_by_place(ax, found, {**LOOKS[position], "label": label}, 2 * position - 1)
        values = [x for one in result["norms"][name].values() for x in one["mean"]]
        set_value_scale(ax, values, scale="log" if np.min(values) > 0 else "linear")
        axis_with_ends(ax, many, label=place > 1)
        ends = result["over_the_median_block"][name]
        far = "; ".join(f"{label} {_both(ends[label])}" for label in ("LoRA", "full"))
        finish(ax, ylabel=ylabel, title=f"{title}\nends / median block: {far}")
    legend(axes[0], loc="best", title="bands, bars: 95% over seeds")
    return figure


def _both(found: Mapping[str, Any]) -> str:
    """Write embedding's and head's ratio to the median block."""
    return ", ".join(f"{found[end]['mean']:.2g}" for end in ("embed", "head"))
