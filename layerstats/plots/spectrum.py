"""The kind `esd`: the eigenvalue histogram of chosen matrices with the fitted tail and its start.

The density is drawn as weightwatcher and AlphaPruning do: both axes logarithmic, so that a power
law of exponent alpha is a straight line of slope -alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes, new_figure
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import (
    INK,
    LABEL_SIZE,
    TEXT_SIZE,
    add_note,
    finish,
    outside_legend,
    series_style,
)

__all__ = ["FitLike", "esd"]

Array = npt.NDArray[np.float64]

_X_LABEL = r"Eigenvalue of $W^\top W$ (squared weight units)"
_Y_LABEL = "Density (1 / squared weight units)"
_MOST_OVERLAID, _MOST_PANELS = 6, 24
# Eigenvalues below this part of the largest are rounding errors of zero.
_ZERO = 1e-12


class FitLike(Protocol):
    """Any power-law fit with these four numbers, such as `PowerLawFit`."""

    @property
    def alpha(self) -> float:
        """Exponent of the density, above 1."""

    @property
    def xmin(self) -> float:
        """Smallest eigenvalue of the tail."""

    @property
    def k(self) -> int:
        """Number of eigenvalues in the tail."""

    @property
    def ks_distance(self) -> float:
        """Kolmogorov-Smirnov distance of the tail to the fit."""


Spectrum: TypeAlias = "tuple[npt.ArrayLike, FitLike | None]"


@plot_kind("esd")
def esd(
    data: Mapping[str, Spectrum],
    *,
    bins: int = 60,
    cut: float = 0.02,
    title: str | None = None,
    ax: Axes | None = None,
    **stairs: Any,
) -> Axes:
    r"""Draw the density of the eigenvalues of W^T W, log-log, with each fitted tail and xmin.

    The line is (k / n) (alpha - 1) / xmin (x / xmin)^(-alpha) from xmin to the largest eigenvalue,
    n the number of eigenvalues drawn.

    Parameters
    ----------
    data : mapping of str to (eigenvalues, fit)
        By the name of the matrix: eigenvalues of W^T W, array of shape (n,), in squared weight
        units, and a fit with `alpha`, `xmin`, `k`, `ks_distance`, or None.
    bins : int, default 60
        Number of bins, of equal width in log10.
    cut : float, default 0.02
        Share of the smallest eigenvalues that may lie left of the axis, where they would leave the
        tail little room; a note counts them. 0 shows all.
    title : str, optional
    ax : Axes, optional
        Axes to draw all matrices into (six at most). Without it a new figure is made with one panel
        a matrix, all of the same scale, and the first panel is returned; `ax.figure.axes` has them
        all.
    **stairs
        Passed to `Axes.stairs`, which draws the histogram.

    Returns
    -------
    Axes
        x in squared weight units, y in 1 / squared weight units.

    Raises
    ------
    UsageError
        If no matrix is given, too many are, or one has no positive eigenvalue.

    References
    ----------
    Clauset, Shalizi, Newman (2009), arXiv 0706.1062; Martin and Mahoney (2021), arXiv 1810.01075.

    Examples
    --------
    >>> ax = esd({"layer 0 q_proj": ([0.5, 1.0, 2.0, 4.0], None)})
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'log')
    """
    _check(data, bins, overlaid=ax is not None)
    spectra = {name: _Shown(name, *pair) for name, pair in data.items()}
    edges = _edges(list(spectra.values()), bins, cut)
    if ax is not None or len(spectra) == 1:
        ax = new_axes(size=(6.4, 3.6)) if ax is None else ax
        for position, one in enumerate(spectra.values()):
            _draw(ax, one, edges, position, alone=len(spectra) == 1, stairs=stairs)
        _dress(ax, xlabel=_X_LABEL, ylabel=_Y_LABEL, title=title)
        outside_legend(ax, labelspacing=0.8)
        notes = {one.name: one.note(edges[0]) for one in spectra.values()}
        add_note(
            ax, [f"{name}: eigenvalues, {text}" for name, text in notes.items() if text], width=70
        )
        return ax
    return _panels(list(spectra.values()), edges, title, stairs)


class _Shown:
    """The eigenvalues of one matrix that a logarithmic axis can show, sorted, and its fit."""

    def __init__(self, name: str, eigenvalues: npt.ArrayLike, fit: FitLike | None) -> None:
        given = np.asarray(eigenvalues, dtype=np.float64).ravel()
        finite = np.sort(given[np.isfinite(given)])
        self.values: Array = finite[finite > _ZERO * finite.max(initial=0.0)]
        if not self.values.size:
            msg = f"no positive eigenvalue in {name!r}: nothing to draw; leave this matrix out"
            raise UsageError(msg)
        self.name, self.fit, self.zeros = name, fit, given.size - self.values.size

    def note(self, low: float) -> str:
        """Return what the picture leaves out: eigenvalues that are zero or left of the axis."""
        total = self.values.size + self.zeros
        left = int((self.values < low).sum())
        parts = [f"{self.zeros} of {total} are 0"] if self.zeros else []
        parts += [f"{left} of {total} left of the axis"] if left else []
        return ", ".join(parts)

    def fit_text(self) -> str:
        """Return the fit's numbers as text for a legend or a panel."""
        if self.fit is None:
            return "no fit"
        return (
            rf"$\alpha$ = {self.fit.alpha:.2f}, $k$ = {self.fit.k}"
            "\n"
            rf"$x_{{\min}}$ = {self.fit.xmin:.3g}, KS = {self.fit.ks_distance:.3f}"
        )


def _shorten(name: str, most: int) -> str:
    """Return a long name without its beginning, which tells matrices apart the least."""
    return name if len(name) <= most else f"\N{HORIZONTAL ELLIPSIS}{name[1 - most :]}"


def _check(data: Mapping[str, Spectrum], bins: int, *, overlaid: bool) -> None:
    if not isinstance(data, Mapping) or not data:
        msg = "esd needs at least one matrix; give a mapping name -> (eigenvalues, fit)"
        raise UsageError(msg)
    most = _MOST_OVERLAID if overlaid else _MOST_PANELS
    if len(data) > most:
        msg = f"{len(data)} matrices are too many for one picture; choose at most {most}"
        raise UsageError(msg)
    if bins < 1:
        msg = f"bins must be at least 1, not {bins}; 60 suits most matrices"
        raise UsageError(msg)


def _edges(spectra: list[_Shown], bins: int, cut: float) -> Array:
    """Return the edges of bins that all histograms share, so that heights can be compared."""
    low = min(float(one.values[int(cut * one.values.size)]) for one in spectra)
    fits = [float(one.fit.xmin) for one in spectra if one.fit is not None]
    low = min([low, *fits])  # a tail that starts lower is shown whole
    high = max(float(one.values[-1]) for one in spectra)
    if low == high:
        low, high = low / 2, high * 2
    return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), bins + 1)


def _draw(
    ax: Axes, one: _Shown, edges: Array, position: int, *, alone: bool, stairs: dict[str, Any]
) -> None:
    """Draw one histogram, its tail line and the mark at xmin."""
    look = series_style(position)
    color = look["color"]
    counts, _ = np.histogram(one.values, edges)
    density = counts / (one.values.size * np.diff(edges))
    # An empty bin has no place on a log axis: a gap, not a fall to the floor.
    heights = np.where(counts > 0, density, np.nan)
    name = "eigenvalues" if alone else f"{_shorten(one.name, 30)}\n{one.fit_text()}"
    style = {"color": color, "linewidth": 1.3, "linestyle": "-" if alone else look["linestyle"]}
    ax.stairs(heights, edges, **{**style, "label": name, "baseline": None, **stairs})
    if alone:
        ax.stairs(heights, edges, fill=True, color=color, alpha=0.15)
    # An infinite alpha (a tail of one repeated value) has no line.
    if one.fit is None or not np.isfinite(one.fit.alpha):
        return
    line = INK if alone else color
    tail, start = (f"power-law tail\n{one.fit_text()}", r"$x_{\min}$") if alone else (None, None)
    xmin, alpha = float(one.fit.xmin), float(one.fit.alpha)
    x = np.geomspace(xmin, one.values[-1], 50)
    scale = one.fit.k / one.values.size * (alpha - 1.0) / xmin
    y = scale * (x / xmin) ** (-alpha)
    ax.plot(x, y, color=line, linewidth=2.0, label=tail, gid="tail")
    ax.axvline(xmin, color=line, linewidth=1.0, linestyle=(0, (2, 2)), label=start, gid="xmin")
    ax.plot([xmin], [scale], marker=look["marker"], color=line, markersize=5.5, gid="xmin-mark")


def _dress(ax: Axes, *, xlabel: str = "", ylabel: str = "", title: str | None) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    finish(ax, xlabel=xlabel, ylabel=ylabel, title=title)


def _panels(spectra: list[_Shown], edges: Array, title: str | None, stairs: dict[str, Any]) -> Axes:
    """Draw one panel a matrix on common axes and return the first."""
    columns = min(len(spectra), 2 if len(spectra) in (2, 4) else 3)
    rows = -(-len(spectra) // columns)
    figure = new_figure(size=(3.6 * columns if columns == 2 else 2.75 * columns, 0.6 + 2.8 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    flat: list[Axes] = list(grid.ravel())
    for position, (ax, one) in enumerate(zip(flat, spectra, strict=False)):
        _draw(ax, one, edges, position, alone=True, stairs=stairs)
        lines = [_shorten(one.name, 32), one.fit_text(), one.note(edges[0])]
        _dress(ax, title="\n".join(line for line in lines if line))
        ax.title.set_fontsize(TEXT_SIZE)
        ax.tick_params(labelbottom=position + columns >= len(spectra))
    for ax in flat[len(spectra) :]:
        ax.remove()
    key = "\n" + r"thick line: fitted tail, dashes: $x_{\min}$"
    figure.supxlabel(_X_LABEL + key, fontsize=LABEL_SIZE, color=INK)
    figure.supylabel(_Y_LABEL, fontsize=LABEL_SIZE, color=INK)
    if title is not None:
        figure.suptitle(title, fontsize=LABEL_SIZE)
    return flat[0]
