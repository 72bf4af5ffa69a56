"""Numbers beside the points of a scatter, placed so that none lies on a point or a number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from layerstats.plots.style import INK, MUTED, TEXT_SIZE

__all__ = ["label_points"]

Array = npt.NDArray[np.float64]

_POINT = 4.0  # half the size of a drawn point, in typographic points
_CLEAR = 2.0  # least distance of a number to other points, the same
# Size of a digit and height of its line, the same.
_DIGIT, _HEIGHT, _LINE = 0.64 * TEXT_SIZE, 0.82 * TEXT_SIZE, 1.17 * TEXT_SIZE
_LEADER = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0.0, "shrinkB": 3.0}
# Where a number may stand: (direction x, direction y), best first.
_PLACES = ((1, 1), (1, 0), (-1, 1), (-1, 0), (1, -1), (-1, -1), (0, 1), (0, -1))


def label_points(ax: Axes, points: pd.DataFrame) -> None:
    """Write each point's index beside it where there is room, the outermost points first.

    Parameters
    ----------
    points : DataFrame
        Columns `x` and `y` in data coordinates; the index is the number to write. A point in a
        crowd stays without a number: its colour tells the depth.
    """
    figure = ax.get_figure(root=True)
    if figure is None or points.empty:
        return
    # The limits and the size of the Axes must be final before places are chosen.
    ax.set_xlim(*ax.get_xlim())
    ax.set_ylim(*ax.get_ylim())
    figure.draw_without_rendering()
    scale = 72.0 / figure.dpi
    where: Array = ax.transData.transform(points[["x", "y"]].to_numpy(float)) * scale
    frame = ax.get_window_extent()
    limits = np.array([frame.x0, frame.y0, frame.x1, frame.y1]) * scale
    # A number must not come so near another point that it could be read as that point's.
    near = _POINT + _CLEAR
    taken = np.column_stack([where - near, where + near])
    spread = np.abs(where - np.median(where, axis=0)).sum(axis=1)
    numbers = [int(number) for number in points.index]
    # First and last layer are what a reader looks for; after them the points far from the crowd.
    first = [number not in (min(numbers), max(numbers)) for number in numbers]
    for at in sorted(range(len(numbers)), key=lambda i: (first[i], -spread[i])):
        # The ends may stand farther off, tied to their points by a line.
        others, digits = np.delete(taken, at, axis=0), len(str(numbers[at]))
        reach = (1.0,) if first[at] else (1.0, 3.0, 5.0, 8.0)
        boxes = (_place(where[at], digits, others, limits, far=far) for far in reach)
        box = next((box for box in boxes if box is not None), None)
        if box is None:
            continue
        taken = np.vstack([taken, box])
        ax.annotate(
            str(numbers[at]),
            xy=(points["x"].iloc[at], points["y"].iloc[at]),
            xytext=(
                (box[0] + box[2]) / 2 - where[at][0],
                (box[1] + box[3]) / 2 - where[at][1],
            ),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=TEXT_SIZE,
            color=INK,
            gid="layer",
            zorder=4,
            arrowprops=_LEADER if _distance(box, where[at]) > 2 * _POINT else None,
        )


def _distance(box: Array, point: Array) -> float:
    """Return how far a box is from a point, in typographic points."""
    gaps = np.maximum(0.0, np.maximum(box[:2] - point, point - box[2:]))
    return float(np.hypot(*gaps))


def _place(point: Array, digits: int, taken: Array, limits: Array, *, far: float) -> Array | None:
    """Return the first free box (x0, y0, x1, y1) for a number near a point, or None."""
    half = np.array([digits * _DIGIT / 2, _HEIGHT / 2])
    for direction in _PLACES:
        away = np.array(direction) * (half + _POINT * far * (0.85 if all(direction) else 1.25))
        box = np.concatenate([point + away - half, point + away + half])
        box[[1, 3]] += np.array([-0.5, 0.5]) * (_LINE - _HEIGHT)
        inside = (box[:2] >= limits[:2]).all() and (box[2:] <= limits[2:]).all()
        apart = (
            (taken[:, 2] <= box[0])
            | (taken[:, 0] >= box[2])
            | (taken[:, 3] <= box[1])
            | (taken[:, 1] >= box[3])
        )
        if inside and apart.all():
            return box
    return None
