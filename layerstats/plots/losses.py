"""The kind `loss`: training loss by step, raw and smoothed, held-out loss as points."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.columns import spans
from layerstats.plots.logs import Runs, as_runs, of_steps, smoothed
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import INK, MUTED, add_note, finish, outside_legend, series_style

__all__ = ["loss"]

_FAINT, _FAINTER = 0.3, 0.18


@plot_kind("loss")
def loss(
    data: Runs,
    *,
    smooth: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draw the loss of one or several runs.

    Parameters
    ----------
    data : list of dict, or mapping
        The entries of a run's log (`layerstats.runs.read_log`), or label -> entries.
    smooth : int, optional
        Steps that the bold line averages over (see `smoothed` in logs.py for its ends); 1 draws
        the raw line alone. By default a 25th of the longest run, so that runs are smoothed alike.
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **line
        Passed to `Axes.plot` for the bold lines.

    Returns
    -------
    Axes
        A faint and a bold line a run, in nats per token by optimizer step; held-out loss as markers
        (gid "held-out").

    Raises
    ------
    UsageError
        A run has no step in its log yet, or `smooth` is below 1.

    Examples
    --------
    >>> log = [{"kind": "step", "step": n, "loss": 3.0 - n} for n in (1, 2)]
    >>> ax = loss(log + [{"kind": "eval", "step": 2, "loss": 1.5}])
    >>> [float(y) for y in ax.lines[0].get_ydata()]
    [2.0, 1.0]
    """
    ax = new_axes(size=(7.0, 3.3)) if ax is None else ax
    runs = as_runs(data)
    curves = {label: of_steps(entries, "loss") for label, entries in runs.items()}
    empty = [label for label, (steps, _) in curves.items() if not len(steps)]
    if empty:
        msg = f"nothing to plot: {empty[0] or 'the run'} has no step in its log yet"
        raise UsageError(msg)
    longest = max(len(steps) for steps, _ in curves.values())
    width = _width(smooth, longest)
    held_out, faint = False, _FAINT if len(runs) == 1 else _FAINTER
    for position, (label, (steps, values)) in enumerate(curves.items()):
        look = {**series_style(position), "linewidth": 1.6, "label": label or _text(width), **line}
        look["marker"] = line.get("marker", "")
        if width > 1:
            ax.plot(steps, values, color=look["color"], linewidth=0.7, alpha=faint, gid="raw")
        ax.plot(steps, smoothed(values, width), **look)
        held_out |= _held_out(ax, runs[label], position, str(look["color"]))
    ax.set_xlim(0, max(1.0, *(float(steps[-1]) for steps, _ in curves.values())) * 1.015)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    finish(ax, xlabel="Optimizer step", ylabel="Loss (nats per token)", title=title)
    add_note(ax, _not_finite(curves))
    _legend(ax, width, held_out=held_out, several=len(runs) > 1)
    return ax


def _width(smooth: int | None, longest: int) -> int:
    """Return the odd number of steps that a mean goes over."""
    if smooth is None:
        smooth = longest // 25
    elif smooth < 1:
        msg = f"smooth must be 1 or more, not {smooth}; 1 draws the raw loss"
        raise UsageError(msg)
    return 2 * (smooth // 2) + 1


def _text(width: int) -> str:
    return f"training, mean of\n{width} steps" if width > 1 else "training"


def _held_out(ax: Axes, entries: list[dict[str, Any]], position: int, color: str) -> bool:
    """Mark the held-out losses of a run; tell whether there is one."""
    steps, values = of_steps(entries, "loss", kind="eval")
    known = np.isfinite(values)
    if not known.any():
        return False
    ax.plot(
        steps[known],
        values[known],
        linestyle="none",
        marker=series_style(position)["marker"],
        markersize=5.5,
        markerfacecolor="white",
        markeredgecolor=color,
        markeredgewidth=1.5,
        clip_on=False,
        zorder=4,
        gid="held-out",
    )
    return True


def _not_finite(curves: dict[str, tuple[Any, Any]]) -> list[str]:
    """Return the note that names steps whose loss was no number."""
    lost: dict[str, list[str]] = {}
    for label, (steps, values) in curves.items():
        missing = [int(step) for step in steps[~np.isfinite(values)]]
        if missing:
            words = ("step " if len(missing) == 1 else "steps ") + spans(missing)
            lost.setdefault(words, []).append(label)
    return [
        f"no finite loss: {words}" + (f" ({', '.join(labels)})" if len(curves) > 1 else "")
        for words, labels in lost.items()
    ]


def _legend(ax: Axes, width: int, *, held_out: bool, several: bool) -> None:
    """Put the legend beside the Axes: the runs, then what kinds of line and mark there are."""
    handles = list(ax.get_legend_handles_labels()[0])
    color = MUTED if several else str(series_style(0)["color"])
    if several and width > 1:
        handles.append(Line2D([], [], color=INK, linewidth=1.6, label=_text(width)))
    if width > 1:
        faint = Line2D([], [], color=color, linewidth=0.9, alpha=_FAINT + 0.2)
        faint.set_label("training, each step")
        handles.append(faint)
    if held_out:
        mark = Line2D([], [], linestyle="none", marker="o", markersize=5.5, label="held-out")
        mark.set(markerfacecolor="white", markeredgecolor=color, markeredgewidth=1.5)
        handles.append(mark)
    outside_legend(ax, handles=handles)
