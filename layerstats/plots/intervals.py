"""The kind `schedule`: how often each layer trains, and which ones do in the first intervals.

Bars are the target inclusion probabilities, dots what the sampling law really gives; below them a
raster has one row an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.container import BarContainer
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_figure
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import BLUE, INK, MUTED, SKY, finish, layer_axis, outside_legend

__all__ = ["ScheduleLike", "schedule"]


class ScheduleLike(Protocol):
    """Any object with these parts of a `Schedule`."""

    @property
    def probabilities(self) -> Sequence[float]:
        """Target inclusion probability of each layer."""

    @property
    def inclusion_probabilities(self) -> Sequence[float]:
        """What the sampling law gives each layer."""

    @property
    def expected_active(self) -> float:
        """Layers that train in an interval, on average."""

    @property
    def interval_steps(self) -> int:
        """Optimizer steps between two draws."""

    @property
    def rule(self) -> str:
        """Name of the rule that made the probabilities."""

    @property
    def sampling(self) -> str:
        """Name of the sampling law."""

    def active_layers(self, interval: int) -> Sequence[int]:
        """Layers that train in one interval."""


@plot_kind("schedule")
def schedule(
    data: ScheduleLike,
    *,
    intervals: int = 40,
    title: str | None = None,
    ax: Axes | None = None,
    raster_ax: Axes | None = None,
    **bars: Any,
) -> Axes:
    """Draw a schedule: inclusion probabilities as bars, the first intervals' layers as a raster.

    Parameters
    ----------
    data : Schedule
    intervals : int, default 40
        Rows of the raster; 0 leaves it out.
    title : str, optional
        A line above the schedule's own.
    ax : Axes, optional
        Axes for the bars. Without it a new figure is made for bars and raster.
    raster_ax : Axes, optional
        Axes for the raster; if `ax` is given without it there is no raster.
    **bars
        Passed to `Axes.bar`.

    Returns
    -------
    Axes
        The Axes of the bars, whose heights are probabilities in 0..1.

    Raises
    ------
    UsageError
        If `intervals` is negative, or `data` is no schedule.

    References
    ----------
    Pan et al. (2024), LISA, arXiv 2403.17919; Li et al. (2024), OwLore, arXiv 2405.18380.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> both = SimpleNamespace(
    ...     probabilities=(0.5, 0.5), inclusion_probabilities=(0.5, 0.5), expected_active=1,
    ...     interval_steps=20, rule="lisa", sampling="systematic",
    ...     active_layers=lambda interval: (interval % 2,))
    >>> ax = schedule(both, intervals=4)
    >>> [float(bar.get_height()) for bar in ax.patches]
    [0.5, 0.5]
    """
    if not hasattr(data, "inclusion_probabilities"):
        given = type(data).__name__
        msg = f"cannot plot a {given} as a schedule; give a Schedule (Schedule.from_json)"
        raise UsageError(msg)
    if intervals < 0:
        msg = f"intervals must be 0 or more, not {intervals}; 40 fit well"
        raise UsageError(msg)
    if ax is None:
        ax, raster_ax = _axes(raster=intervals > 0)
    target = np.asarray(data.probabilities, dtype=float)
    _draw_bars(ax, data, target, bars)
    layer_axis(ax, len(target), label=raster_ax is None)
    finish(ax, ylabel="Probability of being\nactive in an interval", title=_title(data, title))
    _legend(ax)
    if raster_ax is not None and intervals > 0:
        _draw_raster(raster_ax, data, len(target), intervals)
        ax.tick_params(labelbottom=raster_ax.get_figure() is not ax.get_figure())
    return ax


def _axes(*, raster: bool) -> tuple[Axes, Axes | None]:
    """Return the Axes for the bars and, below, for the raster."""
    figure = new_figure(size=(7.0, 5.0 if raster else 2.8))
    if not raster:
        return figure.add_subplot(), None
    top, bottom = figure.subplots(2, 1, height_ratios=[1.0, 1.1])
    return top, bottom


def _draw_bars(ax: Axes, data: ScheduleLike, target: np.ndarray, bars: dict[str, Any]) -> None:
    """Draw targets as bars, exact probabilities as dots, and the uniform rule's level."""
    layers = np.arange(len(target))
    exact = np.asarray(data.inclusion_probabilities, dtype=float)
    ax.bar(layers, target, **{"width": 0.78, "color": SKY, "label": "target", **bars})
    ax.plot(
        layers,
        exact,
        linestyle="none",
        marker="o",
        markersize=4.0 if len(target) <= 40 else 2.8,
        color=INK,
        clip_on=False,
        zorder=4,
        label="exact, as sampled",
    )
    level = float(data.expected_active) / len(target)
    ax.axhline(
        level, color=MUTED, linewidth=1.1, linestyle=(0, (5, 2)), zorder=2.5, label="uniform"
    )
    top = max(float(np.nanmax(target)), float(np.nanmax(exact)), level)
    ax.set_ylim(0.0, min(1.0, 1.12 * top) if top < 1.0 else 1.03)


def _legend(ax: Axes) -> None:
    """Put the legend beside the bars, in the order of reading."""
    handles, _ = ax.get_legend_handles_labels()
    bars_first = sorted(handles, key=lambda handle: not isinstance(handle, BarContainer))
    outside_legend(ax, handles=bars_first)


def _title(data: ScheduleLike, title: str | None) -> str:
    line = (
        f"Rule {data.rule}, {data.sampling} sampling\n"
        f"expected active: {float(data.expected_active):g} of {len(data.probabilities)} layers, "
        f"drawn anew every {data.interval_steps} steps"
    )
    return f"{title}\n{line}" if title else line


def _draw_raster(ax: Axes, data: ScheduleLike, num_layers: int, intervals: int) -> None:
    """Draw a cell for each (interval, layer), filled where the layer trains."""
    active = np.zeros((intervals, num_layers))
    for interval in range(intervals):
        active[interval, list(data.active_layers(interval))] = 1.0
    ax.pcolormesh(
        np.arange(num_layers + 1) - 0.5,
        np.arange(intervals + 1) - 0.5,
        active,
        cmap=ListedColormap(["white", BLUE]),
        vmin=0.0,
        vmax=1.0,
        edgecolors="#e6e6e6",
        linewidth=0.3,
    )
    layer_axis(ax, num_layers)
    finish(ax, ylabel=f"Interval\n({data.interval_steps} steps each)")
    ax.grid(visible=False)
    ax.set_ylim(intervals - 0.5, -0.5)  # time runs downwards
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    outside_legend(ax, handles=[Patch(color=BLUE, label="active (trains)")])
