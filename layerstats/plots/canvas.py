"""Figures come into being and go to disk here, without pyplot and its global state.

`new_axes` makes a figure with one Axes; `save` writes PNG, SVG or PDF beside the target and renames
it, with the same bytes for the same picture: no dates, no random ids.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerstats.errors import MissingError, UsageError
from layerstats.stats import replace_file

__all__ = ["DPI", "new_axes", "new_figure", "save"]

DPI = 200

# What each format would otherwise stamp with the time or the version of matplotlib.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": "layerstats"},
    "svg": {"Date": None, "Creator": "layerstats"},
    "pdf": {"CreationDate": None, "Creator": "layerstats", "Producer": "layerstats"},
}
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "layerstats",  # or the ids in the file would be random
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "pdf.fonttype": 42,  # text stays text; journals refuse Type 3 fonts
}


def new_figure(*, size: tuple[float, float]) -> Figure:
    """Return an empty figure of `size` = (width, height) in inches that lays itself out.

    Examples
    --------
    >>> new_figure(size=(7.0, 3.0)).get_size_inches().tolist()
    [7.0, 3.0]
    """
    return Figure(figsize=size, dpi=DPI, layout="constrained")


def new_axes(*, size: tuple[float, float]) -> Axes:
    """Return the only Axes of a new figure of `size` = (width, height) in inches.

    Examples
    --------
    >>> ax = new_axes(size=(7.0, 3.0))
    >>> ax.figure.axes == [ax]
    True
    """
    return new_figure(size=size).add_subplot()


def save(figure: Figure | Axes, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG (200 dpi), SVG or PDF, chosen by the suffix of `path`.

    The file appears whole or not at all, and the same picture gives the same bytes.

    Parameters
    ----------
    figure : Figure or Axes
        The figure, or any Axes of it.
    path : str or path
        Target; an existing file is replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    UsageError
        If the suffix is none of .png, .svg, .pdf, `path` is a directory or cannot be written.
    MissingError
        If the target's directory does not exist.

    Examples
    --------
    >>> save(new_axes(size=(2.0, 2.0)), "a.bmp")
    Traceback (most recent call last):
    ...
    layerstats.errors.UsageError: cannot write 'a.bmp': unknown suffix ...; use .png, .svg or .pdf
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in _METADATA:
        given = f"unknown suffix {target.suffix!r}" if kind else "it has no suffix"
        msg = f"cannot write {str(target)!r}: {given}; use .png, .svg or .pdf"
        raise UsageError(msg)
    if target.is_dir():
        msg = f"cannot write {str(target)!r}: it is a directory; name a file in it"
        raise UsageError(msg)
    if not target.parent.is_dir():
        msg = f"cannot write {str(target)!r}: no directory {str(target.parent)!r}; make it first"
        raise MissingError(msg)
    whole = figure.get_figure(root=True)
    if whole is None:
        msg = f"cannot write {str(target)!r}: the Axes belong to no figure any more"
        raise UsageError(msg)
    drawn = BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        whole.savefig(drawn, format=kind, dpi=DPI, metadata=_METADATA[kind])
    replace_file(target, drawn.getvalue())
    return target
