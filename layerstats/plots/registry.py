"""The list of plot kinds: a decorator adds one, `plot` draws one by name, `available` names all.

A kind is one function `f(data, *, ax=None, **options) -> Axes`; the modules beside this one hold
them, and importing the package fills the list. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from layerstats.errors import UsageError, choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KINDS", "available", "plot", "plot_kind"]

Drawing = TypeVar("Drawing", bound="Callable[..., Axes]")

KINDS: dict[str, Callable[..., Axes]] = {}


def plot_kind(name: str) -> Callable[[Drawing], Drawing]:
    """Register the function below as the plot kind `name` and return it unchanged.

    Parameters
    ----------
    name : str
        Name on the command line, in lower case with hyphens.

    Raises
    ------
    UsageError
        If the name is taken.

    Examples
    --------
    >>> plot_kind("lod")(print)
    Traceback (most recent call last):
    ...
    layerstats.errors.UsageError: plot kind 'lod' is registered twice; choose another name
    """

    def register(function: Drawing) -> Drawing:
        if name in KINDS:
            msg = f"plot kind {name!r} is registered twice; choose another name"
            raise UsageError(msg)
        KINDS[name] = function
        return function

    return register


def available() -> tuple[str, ...]:
    """Return the names of all plot kinds, sorted.

    Examples
    --------
    >>> "schedule" in available()
    True
    """
    return tuple(sorted(KINDS))


def plot(kind: str, data: Any, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the plot `kind` of `data` and return its Axes.

    Parameters
    ----------
    kind : str
        One of `available()`.
    data : LayerStats, Schedule or mapping
        What the kind draws; see the function of that name in `layerstats.plots`.
    ax : Axes, optional
        Axes to draw into; without it a new figure of the kind's own size is made.
    **options
        Passed to the kind's function.

    Returns
    -------
    Axes
        The main Axes; `ax.figure` is the figure, which `save` writes.

    Raises
    ------
    UsageError
        If no kind has that name, or the data lack a column that it needs.

    Examples
    --------
    >>> import pandas as pd
    >>> ax = plot("lod", pd.DataFrame({"lod_m7": [0.9, 0.4, 0.2]}))
    >>> [float(y) for y in ax.lines[0].get_ydata()]
    [0.9, 0.4, 0.2]
    >>> plot("lodd", None)
    Traceback (most recent call last):
    ...
    layerstats.errors.UsageError: unknown plot kind 'lodd'; did you mean 'lod'? available: ...
    """
    if kind not in KINDS:
        raise UsageError(choices("plot kind", kind, KINDS))
    return KINDS[kind](data, ax=ax, **options)
