"""The kind `layer-norms`: the norm of each layer's weights, input to output, a line a checkpoint.

Embedding and head stand at the two ends as markers of their own. Where lines or ends are far apart
the y axis is broken into bands, so that the shape of each line stays visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from layerstats.errors import UsageError
from layerstats.plots.breaks import bands_of, break_y_axis
from layerstats.plots.canvas import new_axes
from layerstats.plots.columns import (
    Statistics,
    block_values,
    end_values,
    gaps,
    label_of,
    text_of,
)
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import (
    MUTED,
    LayerLocator,
    add_note,
    finish,
    layer_axis,
    mark_missing,
    outside_legend,
    series_style,
    set_value_scale,
)
from layerstats.stats import column_unit

__all__ = ["layer_norms"]

# A single line over more than this factor is drawn on a logarithmic axis.
_LOG_FROM = 10.0


class _Series(NamedTuple):
    label: str
    column: str
    blocks: pd.Series[float]
    ends: list[tuple[str, float]]


@plot_kind("layer-norms")
def layer_norms(
    data: Statistics | Mapping[str, Statistics],
    *,
    columns: str | Sequence[str] | Mapping[str, str] = "frobenius_norm",
    yscale: str = "auto",
    title: str | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw a norm by layer, several checkpoints or columns in one Axes, embedding and head too.

    Parameters
    ----------
    data : LayerStats, DataFrame or mapping
        One checkpoint's statistics (or its table `.layers`), or a mapping label -> statistics.
    columns : str, sequence of str or mapping, default "frobenius_norm"
        Columns to draw of each; a mapping label -> column takes another column of each checkpoint,
        such as a full fine-tuning's `frobenius_norm` beside an adapter's `lora_updated_norm`.
    yscale : str, default "auto"
        "linear", "log" or "auto". Auto breaks a linear axis into bands where lines are far apart,
        or where embedding or head would press them flat; it is logarithmic where one line spans
        more than a factor of 10.
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **line
        Passed to `Axes.plot` for the blocks' lines.

    Returns
    -------
    Axes
        Lines carry the column's values in its unit, by layer.

    Raises
    ------
    UsageError
        If a column is missing; the message names the metric to measure.

    References
    ----------
    Pan et al. (2024), LISA, arXiv 2403.17919, figure 2 compares LoRA and full fine-tuning.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "layer": [None, 0, 1], "kind": ["embed", "block", "block"],
    ...     "frobenius_norm": [9.0, 2.0, 2.5]})
    >>> ax = layer_norms(table)
    >>> [float(y) for y in ax.lines[0].get_ydata()]
    [2.0, 2.5]
    """
    ax = new_axes(size=(7.0, 3.3)) if ax is None else ax
    series = _collect(data, columns)
    num_layers = max(len(one.blocks) for one in series)
    gap = max(1.0, 0.12 * num_layers)
    places = {"embed": -gap, "head": num_layers - 1 + gap}
    for position, one in enumerate(series):
        # Markers of the ends stand side by side: those of like checkpoints would hide each other.
        aside = 0.9 * gap * ((position + 0.5) / len(series) - 0.5)
        _draw(ax, one, series_style(position), places, aside, line)
    layer_axis(ax, num_layers)
    _mark_ends(ax, num_layers, places, {kind for one in series for kind, _ in one.ends})
    finish(ax, ylabel=_ylabel(list(dict.fromkeys(one.column for one in series))), title=title)
    _scale(ax, series, yscale)
    add_note(ax, mark_missing(ax, {one.label: gaps(one.blocks) for one in series}))
    if len(series) > 1:
        outside_legend(ax)
    return ax


def _collect(
    data: Statistics | Mapping[str, Statistics],
    columns: str | Sequence[str] | Mapping[str, str],
) -> list[_Series]:
    """Return the lines to draw, each with the shortest label that tells it from the others."""
    named = dict(data) if isinstance(data, Mapping) else {"": data}
    found = []
    for label, stats in named.items():
        if isinstance(columns, str):
            wanted = [columns]
        elif not isinstance(columns, Mapping):
            wanted = list(columns)
        elif label in columns:
            wanted = [columns[label]]
        else:
            msg = f"no column given for {label!r}; columns has {', '.join(columns)}"
            raise UsageError(msg)
        for column in wanted:
            parts = [label] if label else []
            if len(wanted) > 1 or not label:
                parts.append(text_of(column))
            values = block_values(stats, column)
            found.append(_Series(", ".join(parts), column, values, end_values(stats, column)))
    if not found:
        msg = "nothing to plot: no statistics or no columns given; give label -> LayerStats"
        raise UsageError(msg)
    return found


def _draw(
    ax: Axes,
    one: _Series,
    look: dict[str, Any],
    places: dict[str, float],
    aside: float,
    line: dict[str, Any],
) -> None:
    """Draw one line over the blocks and its markers for embedding and head."""
    size = 4.5 if len(one.blocks) <= 40 else 3.0
    options = {**look, "markersize": size, "linewidth": 1.4, "label": one.label, **line}
    ax.plot(one.blocks.index, one.blocks.to_numpy(), **options)
    for kind, value in one.ends:
        ax.plot(
            [places[kind] + aside],
            [value],
            linestyle="none",
            marker=look["marker"],
            markersize=6.5,
            markerfacecolor="white",
            markeredgecolor=options["color"],
            markeredgewidth=1.6,
            gid=kind,
        )


def _mark_ends(ax: Axes, num_layers: int, places: dict[str, float], kinds: set[str]) -> None:
    """Give the ends that are drawn their place and name on the x axis, apart from the blocks."""
    shown = {kind: place for kind, place in places.items() if kind in kinds}
    if not shown:
        return
    lo, hi = ax.get_xlim()
    for kind, place in shown.items():
        border = (place + (0 if kind == "embed" else num_layers - 1)) / 2
        ax.axvline(border, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)), gid="border")
        margin = abs(place - border)
        lo, hi = (place - margin, hi) if kind == "embed" else (lo, place + margin)
    ax.set_xlim(lo, hi)
    ax.xaxis.set_major_locator(LayerLocator(num_layers, tuple(shown.values())))
    names = {place: kind for kind, place in shown.items()}
    ax.xaxis.set_major_formatter(lambda x, _: names.get(float(x), f"{x:.0f}"))


def _ylabel(names: list[str]) -> str:
    """Return the label for the columns drawn: of one its own, of several what they share."""
    if len(names) == 1:
        return label_of(names[0])
    units = {column_unit(name) for name in names}
    if len(units) > 1 or "" in units:
        return "Value (see legend)"
    frobenius = all(name == "frobenius_norm" or name.startswith("lora_") for name in names)
    return f"{'Frobenius norm' if frobenius else 'Norm'} ({units.pop()})"


def _scale(ax: Axes, series: list[_Series], yscale: str) -> None:
    """Choose the y axis: linear, linear in bands with breaks between, or logarithmic."""
    lines = [one.blocks.dropna().tolist() for one in series]
    ends = [value for one in series for _, value in one.ends]
    everything = [*ends, *(value for values in lines for value in values)]
    if yscale != "auto":
        set_value_scale(ax, everything, scale=yscale)
        return
    scales = {set_value_scale(ax, values, scale="auto", ratio=_LOG_FROM) for values in lines}
    bands = bands_of(lines, ends)
    ax.set_yscale("linear")
    if "log" in scales or (len(bands) > 1 and not break_y_axis(ax, bands)):
        set_value_scale(ax, everything, scale="auto", ratio=_LOG_FROM)
