"""The kind `lod`: the Layerwise Outlier Distribution in percent by layer, one line for each M.

Where the statistics hold bootstrap intervals (`measure --trust`) they lie behind the lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerstats.plots.canvas import new_axes
from layerstats.plots.columns import Statistics, as_stats, block_values, gaps, lod_columns
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import (
    add_note,
    finish,
    layer_axis,
    mark_missing,
    outside_legend,
    series_style,
    set_value_scale,
)

__all__ = ["lod"]


@plot_kind("lod")
def lod(
    data: Statistics,
    *,
    m: Iterable[float] | None = None,
    yscale: str = "auto",
    title: str | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw the LOD of each block: the share of weights with a score above M times the mean.

    Parameters
    ----------
    data : LayerStats or DataFrame
        Statistics with columns `lod_m*`, in percent.
    m : iterable of numbers, optional
        Thresholds to draw; all that were measured if absent.
    yscale : str, default "auto"
        "linear", "log" or "auto" (logarithmic where the values span more than a factor of 30 and
        none is 0).
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **line
        Passed to `Axes.plot`.

    Returns
    -------
    Axes
        One line for each M, smallest M first, in percent; with columns `lod_m*_lo` and `lod_m*_hi`
        a band of its colour behind it.

    Raises
    ------
    UsageError
        If no such column was measured.

    References
    ----------
    Yin et al. (2023), OWL, arXiv 2310.05175; Li et al. (2024), OwLore, arXiv 2405.18380.

    Examples
    --------
    >>> import pandas as pd
    >>> ax = lod(pd.DataFrame({"lod_m7": [0.9, 0.4], "lod_m13": [0.3, 0.1]}))
    >>> [str(drawn.get_label()) for drawn in ax.lines]
    ['M = 7', 'M = 13']
    """
    ax = new_axes(size=(7.0, 3.1)) if ax is None else ax
    columns = lod_columns(data, m)
    drawn = {f"M = {text}": block_values(data, column) for column, text in columns.items()}
    num_layers = max(len(values) for values in drawn.values())
    size = 4.5 if num_layers <= 40 else 3.0
    bands = [_band(data, column) for column in columns]
    for position, (label, values) in enumerate(drawn.items()):
        look = {**series_style(position), "markersize": size, "linewidth": 1.4, "label": label}
        [curve] = ax.plot(values.index, values.to_numpy(), **{**look, **line})
        for low, high in bands[position]:
            ax.fill_between(low.index, low, high, color=curve.get_color(), alpha=0.25, linewidth=0)
    ends = [end for band in bands for pair in band for end in pair]
    everything = np.concatenate([values.to_numpy() for values in [*drawn.values(), *ends]])
    scale = set_value_scale(ax, everything, scale=yscale)
    if scale == "linear":
        ax.set_ylim(bottom=0.0)  # a share: its zero means something
    layer_axis(ax, num_layers)
    finish(ax, ylabel="LOD (% of the block's weights)", title=title)
    missing = {label: gaps(values) for label, values in drawn.items()}
    add_note(ax, mark_missing(ax, missing))
    outside_legend(ax, title="Outlier: score\n> M \N{MULTIPLICATION SIGN} block mean")
    return ax


def _band(data: Statistics, column: str) -> list[tuple[pd.Series[float], pd.Series[float]]]:
    """Return the ends of a column's interval, as the one pair of a list; none if not measured."""
    names = [f"{column}_lo", f"{column}_hi"]
    if not set(names) <= set(as_stats(data).columns()):
        return []
    low, high = (block_values(data, name) for name in names)
    return [(low, high)]
