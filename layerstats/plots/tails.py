"""The kind `alpha`: the tail index by layer, block means as a line, matrices as dots by type.

Where two bins of the eigenvalue histogram tie, alpha depends on which one is taken: thin bars span
what it would be. Lower means a heavier tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.columns import (
    Statistics,
    as_stats,
    block_values,
    gaps,
    matrices_of,
    short_names,
    text_of,
)
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import (
    INK,
    add_note,
    finish,
    layer_axis,
    mark_missing,
    outside_legend,
    series_style,
)

__all__ = ["alpha"]

_MOST_TYPES = 12  # entries of a legend that stay readable


@plot_kind("alpha")
def alpha(
    data: Statistics,
    *,
    column: str = "alpha_hill",
    matrices: bool = True,
    title: str | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw alpha by layer: block means, the matrices by type, intervals where bins tie.

    Parameters
    ----------
    data : LayerStats or DataFrame
        Statistics with `column` in both tables. A bare table of layers gives the means alone.
    column : str, default "alpha_hill"
        `alpha_hill`, `alpha_mid`, `alpha_ks` or any other alpha. Bars are drawn where the columns
        `<column>_lo` and `<column>_hi` differ.
    matrices : bool, default True
        Draw the single matrices too.
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **line
        Passed to `Axes.plot` for the line of the means.

    Returns
    -------
    Axes
        The first line carries the means, without unit.

    Raises
    ------
    UsageError
        If the column is missing; the message names the metric to measure.

    References
    ----------
    Zhou et al. (2023), TempBalance, arXiv 2312.00359.
    Lu et al. (2024), AlphaPruning, arXiv 2410.10912.

    Examples
    --------
    >>> ax = alpha(pd.DataFrame({"alpha_hill": [1.8, 2.9, 3.1]}))
    >>> [float(y) for y in ax.lines[0].get_ydata()]
    [1.8, 2.9, 3.1]
    """
    ax = new_axes(size=(7.0, 3.4)) if ax is None else ax
    means = block_values(data, column)
    num_layers = len(means)
    size = 4.5 if num_layers <= 40 else 3.0
    look = {"color": INK, "marker": "o", "markersize": size, "linewidth": 1.5, "zorder": 4}
    ax.plot(means.index, means.to_numpy(), **{**look, "label": "block mean", **line})
    notes = _draw_matrices(ax, matrices_of(data), column, num_layers) if matrices else []
    _draw_intervals(ax, data, column, means)
    layer_axis(ax, num_layers)
    finish(ax, ylabel=f"{text_of(column)}\n(exponent; lower = heavier tail)", title=title)
    add_note(ax, [*mark_missing(ax, {"block mean": gaps(means)}), *notes])
    outside_legend(ax)
    return ax


def _draw_matrices(ax: Axes, table: pd.DataFrame, column: str, num_layers: int) -> list[str]:
    """Draw one dot a matrix, a colour and marker a type; return notes on what is not drawn."""
    if table.empty:
        return []
    if column not in table:
        msg = (
            f"no column {column!r} in the table of matrices, though the layers have it; "
            "measure again, or pass matrices=False"
        )
        raise UsageError(msg)
    values = table[column].astype(float)
    known = table[np.isfinite(values)]
    modules = list(dict.fromkeys(table["module"].astype(str)))
    names = short_names(modules)
    # More types than a legend can hold share one look.
    many = len(modules) > _MOST_TYPES
    own = modules[: _MOST_TYPES - 1] if many else modules
    for position, module in enumerate(own):
        _dots(ax, known[known["module"] == module], column, names[module], position, num_layers)
    if many:
        rest = known[~known["module"].isin(own)]
        _dots(ax, rest, column, f"{len(modules) - len(own)} other types", len(own), num_layers)
    dropped = len(table) - len(known)
    return [f"{dropped} of {len(table)} matrices have no value and no dot"] if dropped else []


def _dots(
    ax: Axes, rows: pd.DataFrame, column: str, label: str, position: int, num_layers: int
) -> None:
    look = series_style(position)
    ax.scatter(
        rows["layer"].astype(int),
        rows[column].astype(float),
        s=22 if num_layers <= 40 else 10,
        marker=look["marker"],
        color=look["color"],
        alpha=0.8,
        linewidths=0,
        label=label,
        zorder=3,
    )


def _draw_intervals(ax: Axes, data: Statistics, column: str, means: pd.Series[float]) -> None:
    """Draw a thin bar where the interval of ties has a width."""
    have = as_stats(data).columns()
    if f"{column}_lo" not in have or f"{column}_hi" not in have:
        return
    lo, hi = block_values(data, f"{column}_lo"), block_values(data, f"{column}_hi")
    wide = (hi > lo) & means.notna()
    if not wide.any():
        return
    # The mean need not lie inside: it is drawn by its own marker, the bar by the two ends alone.
    middle, half = (lo[wide] + hi[wide]) / 2, (hi[wide] - lo[wide]) / 2
    ax.errorbar(
        means.index[wide].to_numpy(),
        middle.to_numpy(),
        yerr=half.to_numpy(),
        linestyle="none",
        ecolor=INK,
        elinewidth=1.0,
        capsize=2.5 if len(means) <= 40 else 1.5,
        zorder=4.5,
        label="mean, range over ties",
    )
