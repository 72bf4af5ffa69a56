"""The kind `activity`: which layers trained in which interval of a run, and how often in all.

Bars are the intervals in which each layer trained, beside what its schedule let expect; below them
a raster has a row an interval, time running downwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_figure
from layerstats.plots.intervals import ScheduleLike
from layerstats.plots.logs import Entries, Intervals, as_runs, intervals_of
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import BLUE, INK, SKY, finish, layer_axis, outside_legend

__all__ = ["activity"]

Array = npt.NDArray[np.float64]

#: More intervals share a row: the picture has no more lines than that.
_MOST_ROWS = 150
_ROWS_WITH_EDGES = 60


@plot_kind("activity")
def activity(
    data: Entries,
    *,
    schedule: ScheduleLike | None = None,
    num_layers: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    raster_ax: Axes | None = None,
    **bars: Any,
) -> Axes:
    """Draw which layers trained when, and how often beside what was to be expected.

    Parameters
    ----------
    data : list of dict
        The entries of a run's log (`layerstats.runs.read_log`).
    schedule : Schedule, optional
        The run's; adds what was expected, with two standard deviations where intervals are drawn
        independently.
    num_layers : int, optional
        Blocks of the model; the schedule's, or else the most the log knows of.
    title : str, optional
        A line above the picture's own.
    ax : Axes, optional
        Axes for the bars. Without it a new figure is made for bars and raster.
    raster_ax : Axes, optional
        Axes for the raster; if `ax` is given without it there is no raster.
    **bars
        Passed to `Axes.bar`.

    Returns
    -------
    Axes
        The Axes of the bars, whose heights are numbers of intervals.

    Raises
    ------
    UsageError
        The run sampled no layers, or has layers that the schedule has not.

    Examples
    --------
    >>> log = [{"kind": "interval", "step": 1, "interval": 0, "active_layers": [1]},
    ...        {"kind": "interval", "step": 6, "interval": 1, "active_layers": [0, 1]}]
    >>> [float(bar.get_height()) for bar in activity(log).patches]
    [1.0, 2.0]
    """
    if isinstance(data, dict) and len(data) != 1:
        msg = f"activity draws one run, {len(data)} were given"
        raise UsageError(msg)
    [entries] = as_runs(data).values()
    if schedule is not None:
        num_layers = len(schedule.probabilities)
    found = intervals_of(entries, None)
    if num_layers is not None and found.active.shape[1] > num_layers:
        msg = (
            f"the log has layer {found.active.shape[1] - 1}, but there are {num_layers} layers; "
            "give the schedule of this run"
        )
        raise UsageError(msg)
    found = intervals_of(entries, num_layers)
    if ax is None:
        top, bottom = new_figure(size=(7.0, 5.4)).subplots(2, 1, height_ratios=[1.0, 1.35])
        ax, raster_ax = top, bottom
    count, layers = found.active.shape
    _draw_bars(ax, found, schedule, bars)
    layer_axis(ax, layers, label=raster_ax is None)
    line = f"{found.active.sum() / count:.3g} of {layers} layers active on average"
    whole = f"{count} intervals, {line}" if count > 1 else f"1 interval, {line}"
    finish(ax, ylabel="Intervals in which\nthe layer trained", title=_joined(title, whole))
    outside_legend(ax)
    if raster_ax is not None:
        _draw_raster(raster_ax, found)
        ax.tick_params(labelbottom=raster_ax.get_figure() is not ax.get_figure())
    return ax


def _joined(title: str | None, line: str) -> str:
    return f"{title}\n{line}" if title else line


def _draw_bars(
    ax: Axes, found: Intervals, schedule: ScheduleLike | None, bars: dict[str, Any]
) -> None:
    """Draw counts as bars, and what was expected as dots with their spread."""
    counts = found.active.sum(axis=0)
    layers = np.arange(len(counts))
    ax.bar(layers, counts, **{"width": 0.78, "color": SKY, "label": "counted", **bars})
    top = float(counts.max())
    if schedule is not None:
        chance = np.asarray(schedule.inclusion_probabilities, dtype=float)
        mean = len(found.numbers) * chance
        law = getattr(schedule, "law", None)
        independent = bool(getattr(law, "independent", False))
        spread = 2.0 * np.sqrt(len(found.numbers) * chance * (1.0 - chance)) * independent
        edges = np.append(layers - 0.5, layers[-1] + 0.5)
        low, middle, high = (
            np.append(one, one[-1]) for one in (np.maximum(mean - spread, 0.0), mean, mean + spread)
        )
        ax.step(edges, middle, where="post", color=INK, linewidth=1.3, zorder=4, label="expected")
        if independent:
            label = "\N{PLUS-MINUS SIGN} 2 standard deviations"
            band = ax.fill_between(edges, low, high, step="post", label=label)
            band.set(color=INK, alpha=0.15, linewidth=0.0, zorder=0.8)  # behind the bars
        top = max(top, float(high.max()))
    ax.set_ylim(0.0, 1.06 * max(top, 1.0))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _draw_raster(ax: Axes, found: Intervals) -> None:
    """Draw a cell for each interval and layer; many intervals share a row, as a shade."""
    count, layers = found.active.shape
    group = -(-count // _MOST_ROWS)
    edges = np.append(np.arange(0, count, group), count)
    shares = np.add.reduceat(found.active, edges[:-1], axis=0) / group
    shades = LinearSegmentedColormap.from_list("active", ["white", BLUE])
    lined = len(shares) <= _ROWS_WITH_EDGES
    ax.pcolormesh(
        np.arange(layers + 1) - 0.5,
        edges - 0.5,
        shares,
        cmap=shades,
        vmin=0.0,
        vmax=max(float(shares.max()), 1e-9),
        edgecolors="#e6e6e6" if lined else "none",
        linewidth=0.3 if lined else 0.0,
        antialiased=lined,
    )
    layer_axis(ax, layers)
    finish(ax, ylabel="Interval")
    ax.grid(visible=False)
    ax.set_ylim(count - 0.5, -0.5)  # time runs downwards
    first = found.numbers[0]
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y + first:.0f}")
    outside_legend(ax, handles=_shades(shades, group, float(shares.max())))


def _shades(shades: LinearSegmentedColormap, group: int, most: float) -> list[Patch]:
    """Return what the legend of the raster shows: the darkest cell, and the palest."""
    if group == 1:
        return [Patch(color=BLUE, label="active (trained)")]
    counts = dict.fromkeys((max(1, round(most * group)), 1))
    return [
        Patch(color=shades(count / group / most), label=f"active in {count} of {group}\nintervals")
        for count in counts
    ]
