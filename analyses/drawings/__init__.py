"""How the results of analyses look: NAME.py here draws what analyses/NAME.py found.

This file has what they share: figures of several panels in the house's look.
"""

from __future__ import annotations

from typing import Any

from layerstats.plots.canvas import new_figure
from layerstats.plots.style import INK, MUTED, TEXT_SIZE

__all__ = ["guide", "legend", "panels"]


def panels(
    rows: int, columns: int, *, size: tuple[float, float], **options: Any
) -> tuple[Any, ...]:
    """Return a new figure of `size` inches and its Axes, row by row; options as of `subplots`."""
    figure = new_figure(size=size)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return (figure, *axes.ravel())


def legend(ax: Any, **options: Any) -> None:
    """Put a small legend without a frame where it fits."""
    look: dict[str, Any] = {"frameon": False, "fontsize": TEXT_SIZE, "labelcolor": INK}
    look |= {"handlelength": 2.2, "title_fontsize": TEXT_SIZE}
    ax.legend(**{**look, **options})


def guide(ax: Any, value: float, text: str, *, axis: str = "y") -> None:
    """Draw a thin line at a value that is known beforehand, with its name at the end."""
    line, place = (ax.axhline, (1.0, value)) if axis == "y" else (ax.axvline, (value, 1.0))
    line(value, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    where = ax.get_yaxis_transform() if axis == "y" else ax.get_xaxis_transform()
    look: dict[str, Any] = {"ha": "right", "va": "bottom", "xytext": (-2, 2)}
    if axis == "x":
        look = {"ha": "left", "va": "top", "xytext": (4, 0)}
    look |= {"textcoords": "offset points", "fontsize": TEXT_SIZE, "color": MUTED}
    ax.annotate(text, place, xycoords=where, **look)
