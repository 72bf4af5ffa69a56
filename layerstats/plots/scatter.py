"""The kind `correlation`: two columns against each other, a point a layer, coloured by depth.

The coefficient is not computed here; what `correlate` returned is written above the points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.columns import Statistics, block_values, label_of, spans_by_series
from layerstats.plots.labels import label_points
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import INK, LABEL_SIZE, MUTED, TEXT_SIZE, add_note, finish
from layerstats.stats import lod_column

__all__ = ["correlation"]

_SYMBOLS = {"spearman": r"Spearman $\rho$", "kendall": r"Kendall $\tau$", "pearson": r"Pearson $r$"}


@plot_kind("correlation")
def correlation(
    data: Statistics,
    *,
    x: str | None = None,
    y: str | None = None,
    result: object = None,
    ranks: bool = False,
    exclude_ends: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
    **points: Any,
) -> Axes:
    """Draw column `y` against column `x`, one point a layer, with the coefficient in the title.

    Parameters
    ----------
    data : LayerStats or DataFrame
        Statistics with both columns; published scores can stand as columns of a plain table.
    x, y : str, optional
        Columns; those of `result` if absent, else `lod_m7` and `heavy_tail` (`alpha_hill` with its
        sign turned).
    result : object or mapping, optional
        What `correlate` gave for this pair: `method`, `rho`, `p_value`, `n`, `interval` (lo, hi).
        Without it the title gives the number of layers alone.
    ranks : bool, default False
        Draw ranks (1 = lowest, ties share their mean rank): what Spearman's coefficient sees.
    exclude_ends : bool, default False
        The result leaves out the first and the last layer: draw them hollow.
    title : str, optional
        A line above the coefficient.
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **points
        Passed to `Axes.scatter`.

    Returns
    -------
    Axes
        The first collection's offsets are the pairs (x, y), in the columns' units or in ranks.

    Raises
    ------
    UsageError
        If a column is missing, or the result is over another number of layers than are drawn.

    References
    ----------
    Li et al. (2024), OwLore, arXiv 2405.18380, relates LOD to the heavy-tail index in this way.

    Examples
    --------
    >>> table = pd.DataFrame({"lod_m7": [0.9, 0.4, 0.2], "alpha_hill": [1.8, 2.9, 3.1]})
    >>> found = {"method": "spearman", "rho": 1.0, "p_value": 0.0, "n": 3, "interval": [1.0, 1.0]}
    >>> ax = correlation(table, result=found)
    >>> ax.collections[0].get_offsets().data.tolist()
    [[0.9, -1.8], [0.4, -2.9], [0.2, -3.1]]
    """
    ax = new_axes(size=(5.2, 4.3)) if ax is None else ax
    found = _fields(result)
    x, y = x or found["x"] or lod_column(7), y or found["y"] or "heavy_tail"
    pairs = pd.DataFrame({"x": block_values(data, x), "y": block_values(data, y)})
    used, ends, gone = _parts(pairs, exclude_ends=exclude_ends)
    if ranks:
        used, ends = used.rank(), ends.iloc[:0]
    look: dict[str, Any] = {"s": 34, "edgecolors": INK, "linewidths": 0.5, "zorder": 3}
    if not {"c", "color"} & points.keys():
        last = max(1, len(pairs) - 1)
        look |= {"c": used.index, "cmap": "cividis", "vmin": 0, "vmax": last}
    drawn = ax.scatter(used["x"], used["y"], **{**look, **points})
    if len(ends):
        hollow: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": MUTED,
            "linewidths": 1.2,
            "s": 34,
            "gid": "ends",
        }
        ax.scatter(ends["x"], ends["y"], **hollow)
    names = [
        f"Rank of {label_of(c).partition(' (')[0]} (1 = lowest)" if ranks else label_of(c)
        for c in (x, y)
    ]
    line = _title(found, len(used))
    finish(ax, xlabel=names[0], ylabel=names[1], title=f"{title}\n{line}" if title else line)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.margins(0.08)
    if len(pairs) > 1:
        _depth_bar(ax, drawn)
    notes = [f"No value: {spans_by_series({'': gone})}"] if gone else []
    if exclude_ends:
        notes.append("Ends left out: " + ("not drawn" if ranks else "hollow"))
    add_note(ax, notes, width=60)
    label_points(ax, pd.concat([used, ends]))
    return ax


def _parts(
    pairs: pd.DataFrame, *, exclude_ends: bool
) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    """Return the pairs of the coefficient, the ends left out of it, the layers without a value."""
    whole = pairs.dropna()
    gone = [int(layer) for layer in pairs.index.difference(whole.index)]
    at_end = whole.index.isin([0, len(pairs) - 1]) & exclude_ends
    return whole[~at_end], whole[at_end], gone


def _fields(result: Any) -> dict[str, Any]:
    """Return the parts of a result that are used here; None where one is absent."""
    names = ("x", "y", "method", "rho", "p_value", "n", "interval", "confidence")
    if isinstance(result, Mapping):
        return {name: result.get(name) for name in names}
    return {name: getattr(result, name, None) for name in names}


def _title(found: dict[str, Any], drawn: int) -> str:
    """Return the coefficient with its interval, p and n as two lines, or n alone without result."""
    if all(value is None for value in found.values()):
        return f"$n$ = {drawn}"
    if found["n"] is None or found["method"] is None:
        msg = "result has no n or no method; give what correlate returned for this pair"
        raise UsageError(msg)
    n, method = int(found["n"]), str(found["method"])
    if n != drawn:
        msg = (
            f"the result is over {n} layers but {drawn} have both values; "
            "correlate the same columns, or pass exclude_ends=True if it leaves out both ends"
        )
        raise UsageError(msg)
    rho = _number(found["rho"])
    text = f"{_SYMBOLS.get(method, method)} " + (
        "is undefined" if math.isnan(rho) else f"= {rho:.3f}"
    )
    lo, hi = (_number(edge) for edge in found["interval"] or (None, None))
    if math.isfinite(lo) and math.isfinite(hi):
        level = f"{100 * float(found['confidence']):g}% " if found["confidence"] else ""
        text += f", {level}interval [{lo:.2f}, {hi:.2f}]"
    return f"{text}\n{_p_text(_number(found['p_value']))}$n$ = {n}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _p_text(p: float) -> str:
    if math.isnan(p):
        return ""
    if p >= 0.001:
        return f"$p$ = {p:.3f}, "
    if p == 0.0:
        return "$p$ < $10^{-300}$, "
    digits, _, exponent = f"{p:.1e}".partition("e")
    return rf"$p$ = {digits} $\times$ $10^{{{int(exponent)}}}$, "


def _depth_bar(ax: Axes, drawn: Any) -> None:
    """Add the scale of depth beside the Axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, ax=ax, pad=0.02, aspect=30)
    bar.set_label("Layer (index)", fontsize=LABEL_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TEXT_SIZE, colors=INK)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))
    bar.outline.set_visible(False)
