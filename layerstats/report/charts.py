"""What a page draws: which columns of which table, said here and drawn by template/charts.js.

A chart has one view or several to choose from. Its `kind`:

- ``xy``: the view's series over the column `x`, which is "layer" or "step"
- ``scatter``: the view's one series over the view's column `x`, a dot a layer
- ``matrix``: one column of the matrices as a map, layers across, modules (or experts) down
- ``raster``: which layers are active, a row for each interval
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LAYER_AXIS", "Chart", "Series", "View", "is_wide"]

LAYER_AXIS = "Layer (0 = nearest the input)"


@dataclass(frozen=True, slots=True)
class Series:
    """One column that is drawn; `mark` is "line", "bar" or "dots", `low` and `high` its range."""

    column: str
    label: str
    mark: str = "line"
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One state of a chart.

    Parameters
    ----------
    label : str
        What the reader chooses it by.
    axis : str
        Text of the y axis (of the colours, for a matrix).
    series : tuple of Series
    log : bool
        Whether the y axis is logarithmic.
    x, x_axis : str
        Column and text of the x axis, for a scatter.
    level, level_label
        A horizontal line for comparison, and what it is.
    bytes : bool
        Whether the values are bytes, written with a unit.
    note : str
        Said under the chart.
    """

    label: str
    axis: str
    series: tuple[Series, ...] = ()
    log: bool = False
    x: str = ""
    x_axis: str = ""
    level: float | None = None
    level_label: str = ""
    bytes: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its `kind`, see above, the table it draws, and its views.

    `rows` are a raster's intervals, (number of the interval, active layers) each.
    """

    id: str
    title: str
    kind: str
    table: str
    views: tuple[View, ...]
    x: str = "layer"
    x_axis: str = LAYER_AXIS
    note: str = ""
    rows: tuple[tuple[int, tuple[int, ...]], ...] = ()


def is_wide(*columns: Iterable[Any], ratio: float = 30.0) -> bool:
    """Tell whether values need a logarithmic axis: all positive, the largest above `ratio` times.

    Examples
    --------
    >>> is_wide([1.0, None, 40.0]), is_wide([0.0, 40.0]), is_wide([1.0, 2.0])
    (True, False, False)
    """
    known: Sequence[float] = [
        float(value)
        for values in columns
        for value in values
        if value is not None and math.isfinite(value)
    ]
    return bool(known) and min(known) > 0 and max(known) > ratio * min(known)
