"""The kind `memory`: weights, gradients and optimizer state of a run over its steps, and its peak.

Several runs stand below each other as bars, each at the step at which it held most.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.logs import Runs, as_runs, byte_unit, of_steps
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import BLUE, INK, SKY, TEXT_SIZE, add_note, finish, outside_legend
from layerstats.runs import of_kind

__all__ = ["LABELS", "LOOKS", "memory"]

Array = npt.NDArray[np.float64]

_PARTS = ("weights", "gradients", "optimizer")
# Told apart in grey too: dark, light, hatched.
LOOKS: dict[str, dict[str, Any]] = {
    "weights": {"facecolor": BLUE},
    "gradients": {"facecolor": SKY},
    "optimizer": {"facecolor": "#E69F00", "hatch": "////"},
    "activations": {"facecolor": "#DDDDDD"},
}
#: A peak that is more than this times what is drawn is written and not drawn.
_FAR = 5.0
LABELS = {"optimizer": "optimizer state"}


@plot_kind("memory")
def memory(data: Runs, *, title: str | None = None, ax: Axes | None = None, **area: Any) -> Axes:
    """Draw what a run held in memory: over its steps, or several runs beside each other.

    Parameters
    ----------
    data : list of dict, or mapping
        The entries of a run's log (`layerstats.runs.read_log`), or label -> entries.
    title : str, optional
    ax : Axes, optional
        Axes to draw into; without it a new figure is made.
    **area
        Passed to `Axes.fill_between` (`Axes.barh` for several runs).

    Returns
    -------
    Axes
        Areas (bars) stacked from weights over gradients to optimizer state; the peak as a line
        (marks), or in a note where it would press them flat: a small model in a large process. In
        GB of 1e9 bytes, MB or kB for small ones.

    Raises
    ------
    UsageError
        A run has no memory in its log.

    Examples
    --------
    >>> held = {"weights": 4e9, "gradients": 1e9, "optimizer": 2e9, "peak": 9e9}
    >>> ax = memory([{"kind": "step", "step": n, "memory": held} for n in (1, 2)])
    >>> ax.get_ylabel()
    'Memory (GB = 10⁹ bytes)'
    """
    runs = as_runs(data)
    found = {label: _of_run(label, entries) for label, entries in runs.items()}
    held = max(float(_total(values).max()) for _, values in found.values())
    peak = max(float(np.nanmax([*values["peak"], 0.0])) for _, values in found.values())
    sources = dict.fromkeys(_measured_by(entries) for entries in runs.values())
    said = "peak" + (f" ({', '.join(source for source in sources if source)})" * any(sources))
    far = 0.0 < _FAR * held < peak
    if far:
        for _, values in found.values():
            values["peak"][:] = np.nan
    size, unit = byte_unit(held if far else max(held, peak))
    if len(found) == 1:
        [(steps, values)] = found.values()
        ax = new_axes(size=(7.0, 3.3)) if ax is None else ax
        _draw_over_steps(ax, steps, {key: one / size for key, one in values.items()}, area)
        finish(ax, xlabel="Optimizer step", ylabel=f"Memory ({unit})", title=title)
    else:
        ax = new_axes(size=(7.0, 1.2 + 0.42 * len(found))) if ax is None else ax
        _draw_bars(ax, {label: values for label, (_, values) in found.items()}, size, area)
        finish(ax, xlabel=f"Memory ({unit})", ylabel="", title=title)
        ax.grid(visible=False, axis="y")
        ax.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    if far:
        larger, name = byte_unit(peak)
        short = name.partition(" ")[0]
        add_note(ax, [f"not drawn: {said}, up to {peak / larger:.3g} {short}"])
    _legend(ax, said if peak and not far else "", several=len(found) > 1)
    return ax


def _of_run(label: str, entries: list[dict[str, Any]]) -> tuple[Array, dict[str, Array]]:
    """Return the steps of a run and its bytes by part; what was not measured counts as nothing."""
    steps, peak = of_steps(entries, "memory.peak")
    values = {part: np.nan_to_num(of_steps(entries, f"memory.{part}")[1]) for part in _PARTS}
    if not len(steps) or not (np.isfinite(peak).any() or _total(values).any()):
        msg = f"nothing to plot: {label or 'the run'} has no step with memory in its log yet"
        raise UsageError(msg)
    return steps, {**values, "peak": peak}


def _total(values: dict[str, Array]) -> Array:
    return np.asarray(sum((values[part] for part in _PARTS), np.zeros(1)))


def _measured_by(entries: list[dict[str, Any]]) -> str:
    """Return how the peak of a run was measured."""
    said = [(entry.get("memory") or {}).get("measured_by") for entry in of_kind(entries, "step")]
    return str(next((one for one in said if one), ""))


def _draw_over_steps(
    ax: Axes, steps: Array, values: dict[str, Array], area: dict[str, Any]
) -> None:
    """Stack the parts; each step is as wide as it is long, since switches of layers are sudden."""
    edges = np.append(steps - 0.5, steps[-1] + 0.5)
    floor = np.zeros(len(edges))
    for part in _PARTS:
        top = floor + np.append(values[part], values[part][-1])
        look = {**LOOKS[part], "linewidth": 0.0, "edgecolor": "white", **area}
        ax.fill_between(edges, floor, top, step="post", label=LABELS.get(part, part), **look)
        floor = top
    ax.plot(
        steps,
        values["peak"],
        color=INK,
        linewidth=1.4,
        linestyle="--",
        drawstyle="steps-mid",
        gid="peak",
    )
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_ylim(0.0, 1.06 * max(float(floor.max()), float(np.nanmax([*values["peak"], 0.0]))))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def _draw_bars(
    ax: Axes, runs: dict[str, dict[str, Array]], size: float, area: dict[str, Any]
) -> None:
    """Draw a bar a run, at the step at which its parts were largest together."""
    places = np.arange(len(runs))
    worst = [int(np.argmax(_total(values))) for values in runs.values()]
    floor = np.zeros(len(runs))
    for part in _PARTS:
        width = np.array(
            [values[part][at] / size for values, at in zip(runs.values(), worst, strict=True)]
        )
        look = {**LOOKS[part], "linewidth": 0.0, "edgecolor": "white", "height": 0.62, **area}
        ax.barh(places, width, left=floor, label=LABELS.get(part, part), **look)
        floor = floor + width
    peaks = np.array([np.fmax.reduce(values["peak"]) / size for values in runs.values()])
    ax.plot(
        peaks,
        places,
        linestyle="none",
        marker="|",
        markersize=13,
        markeredgewidth=2.0,
        color=INK,
        gid="peak",
    )
    names = ["\n".join(textwrap.wrap(label, 22)) for label in runs]
    ax.set_yticks(places, names, fontsize=TEXT_SIZE)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.set_xlim(0.0, 1.06 * max(float(floor.max()), float(np.nanmax([*peaks, 0.0]))))


def _legend(ax: Axes, said: str, *, several: bool) -> None:
    """Put the legend beside the Axes, in the order of the stack from its top."""
    parts = list(ax.get_legend_handles_labels()[0])
    line: dict[str, Any] = {"linestyle": "--", "linewidth": 1.4}
    if several:
        line = {"linestyle": "none", "marker": "|", "markersize": 11, "markeredgewidth": 2.0}
    peak = [Line2D([], [], color=INK, label=said, **line)] if said else []
    outside_legend(ax, handles=[*parts, *peak] if several else [*peak, *reversed(parts)])
