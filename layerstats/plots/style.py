"""The look that all kinds share: colours, markers, font sizes, the layer axis, legends and notes.

Sizes are set on each artist, never through matplotlib's global settings, so drawing leaves nothing
behind. Colours are those of Okabe and Ito (2008), told apart by people with any colour vision;
markers and line styles tell the same things apart in grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, Locator, LogLocator, NullFormatter, NullLocator

from layerstats.errors import UsageError
from layerstats.plots.columns import spans_by_series

__all__ = [
    "BLUE",
    "INK",
    "LABEL_SIZE",
    "MUTED",
    "SKY",
    "TEXT_SIZE",
    "VERMILLION",
    "LayerLocator",
    "add_note",
    "finish",
    "layer_axis",
    "mark_missing",
    "outside_legend",
    "series_style",
    "set_value_scale",
]

TEXT_SIZE = 9.0  # points at the saved size: ticks, legends, notes
LABEL_SIZE = 10.0  # axes and titles
INK, MUTED = "#222222", "#666666"
BLUE, VERMILLION, SKY = "#0072B2", "#D55E00", "#56B4E9"

# Okabe-Ito without black (kept for means and fits) and with grey for yellow (too faint on white).
_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", SKY, "#7f7f7f")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))

_WIDTH_PER_TICK = 0.27  # inches of axis that one layer number needs
_WIDTH_PER_NAME = 0.33  # the same between a layer number and the word "embed" or "head"


def series_style(position: int) -> dict[str, Any]:
    """Return colour, marker and line style of the series at `position`.

    Examples
    --------
    >>> series_style(0)["marker"], series_style(1)["marker"]
    ('o', 's')
    """
    return {
        "color": _COLOURS[position % len(_COLOURS)],
        "marker": _MARKERS[position % len(_MARKERS)],
        "linestyle": _DASHES[position % len(_DASHES)],
    }


def finish(ax: Axes, *, xlabel: str | None = None, ylabel: str, title: str | None = None) -> None:
    """Set labels and title of an Axes and its frame: open top and right, a light grid."""
    if xlabel is not None:
        ax.set_xlabel(xlabel, fontsize=LABEL_SIZE, color=INK)
    ax.set_ylabel(ylabel, fontsize=LABEL_SIZE, color=INK, linespacing=1.3)
    if title is not None:
        ax.set_title(title, fontsize=LABEL_SIZE, color=INK, loc="left")
    ax.tick_params(labelsize=TEXT_SIZE, colors=INK)
    ax.tick_params(which="minor", length=1.8, color=MUTED)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


class LayerLocator(Locator):
    """Ticks on every 1st, 2nd, 5th, 10th... layer, as the width allows when it is drawn.

    Parameters
    ----------
    num_layers : int
    places : sequence of float
        Ticks beside the layers, for embedding and head.
    """

    def __init__(self, num_layers: int, places: Sequence[float] = ()) -> None:
        self.num_layers = num_layers
        self.places = tuple(places)

    def __call__(self) -> list[float]:
        """Return the places of the ticks."""
        axis = self.axis
        if axis is None:
            return []
        lo, hi = sorted(axis.get_view_interval())
        return self.tick_values(lo, hi)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Return the ticks of an axis that shows `vmin` to `vmax`."""
        ax = getattr(self.axis, "axes", None)
        inches = 4.0 if ax is None else ax.get_window_extent().width / ax.get_figure(root=True).dpi
        per_layer = inches / max(vmax - vmin, 1e-9)
        steps = [base * 10**power for power in range(7) for base in (1, 2, 5)]
        fits = (step for step in steps if step * per_layer >= _WIDTH_PER_TICK)
        ticks = [float(layer) for layer in range(0, self.num_layers, next(fits, steps[-1]))]
        clear = _WIDTH_PER_NAME / per_layer
        far = [t for t in ticks if all(abs(t - place) >= clear for place in self.places)]
        return [*far, *self.places]


def layer_axis(ax: Axes, num_layers: int, *, label: bool = True) -> None:
    """Make the x axis one of layers: whole numbers, a small tick for each layer."""
    ax.set_xlim(-0.7, num_layers - 0.3)
    ax.xaxis.set_major_locator(LayerLocator(num_layers))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
    every = range(num_layers) if num_layers <= 200 else []
    ax.xaxis.set_minor_locator(FixedLocator(list(every)) if every else NullLocator())
    if label:
        ax.set_xlabel("Layer (index, 0 = nearest the input)", fontsize=LABEL_SIZE, color=INK)


def set_value_scale(ax: Axes, values: Iterable[float], *, scale: str, ratio: float = 30.0) -> str:
    """Choose a linear or logarithmic y axis and return which.

    Parameters
    ----------
    values : iterable of float
        All that is drawn; NaN is passed over.
    scale : str
        "linear", "log" or "auto": logarithmic where all values are positive and the largest is more
        than `ratio` times the smallest.

    Raises
    ------
    UsageError
        If `scale` is none of these, or "log" is asked for values that are not positive: they would
        vanish.
    """
    if scale not in ("auto", "linear", "log"):
        msg = f"unknown yscale {scale!r}; available: auto, linear, log"
        raise UsageError(msg)
    known = np.asarray([value for value in values if np.isfinite(value)])
    positive = bool(known.size) and bool((known > 0).all())
    if scale == "log" and known.size and not positive:
        msg = f"yscale 'log' cannot show the value {known.min():g}; use 'linear' or 'auto'"
        raise UsageError(msg)
    if scale == "auto":
        scale = "log" if positive and known.max() > ratio * known.min() else "linear"
    ax.set_yscale(scale)
    if scale == "log":
        few = known.size > 0 and known.max() < 500 * known.min()
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    return scale


def outside_legend(
    ax: Axes, *, handles: Sequence[Any] | None = None, title: str | None = None, **options: Any
) -> Legend:
    """Put the legend to the right of the Axes, where it can hide no data.

    Parameters
    ----------
    handles : sequence of labelled artists, optional
        Entries in this order; all labelled artists of the Axes if absent.
    title : str, optional
    **options
        Passed to `Axes.legend`.
    """
    shown = ax.get_legend_handles_labels()[0] if handles is None else list(handles)
    legend = ax.legend(
        shown,
        [_wrap(str(handle.get_label())) for handle in shown],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=TEXT_SIZE,
        title=title,
        title_fontsize=TEXT_SIZE,
        labelcolor=INK,
        handlelength=2.6,
        **options,
    )
    legend.set_alignment("left")
    return legend


def _wrap(label: str) -> str:
    """Return a label in lines of 24 characters: a long name must not squeeze the Axes."""
    return "\n".join(part for line in label.split("\n") for part in _cut(line))


def _cut(line: str) -> list[str]:
    return [line] if "$" in line else textwrap.wrap(line, 24)


def add_note(ax: Axes, lines: Sequence[str], *, width: int = 90) -> None:
    """Write small notes under the label of the x axis; the layout makes room for them."""
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, width))
    if text:
        ax.annotate(
            text,
            xy=(0.5, 0.0),
            xycoords=ax.xaxis.label,
            xytext=(0.0, -2.0),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=TEXT_SIZE,
            color=MUTED,
            annotation_clip=False,
            gid="note",
        )


def mark_missing(ax: Axes, missing: Mapping[str, list[int]]) -> list[str]:
    """Mark layers without a value by crosses on the x axis and return the note that names them."""
    layers = sorted({layer for group in missing.values() for layer in group})
    if not layers:
        return []
    ax.plot(
        layers,
        np.zeros(len(layers)),
        transform=ax.get_xaxis_transform(),
        linestyle="none",
        marker="x",
        markersize=5,
        color=MUTED,
        clip_on=False,
        zorder=5,
        gid="missing",
    )
    return [f"\N{MULTIPLICATION SIGN} no value: {spans_by_series(missing)}"]
