"""A broken y axis: each group of near values gets a band of its own, so that none is pressed flat.

One Axes with a piecewise linear scale, so that every artist keeps its true value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from layerstats.plots.style import MUTED

__all__ = ["Band", "bands_of", "break_y_axis"]

Array = npt.NDArray[np.float64]

# An unbroken axis that leaves the lines less than this part of its height is broken.
_LEAST_SHARE = 0.4
# Lines whose values are more than this factor apart do not share a band.
_APART = 3.0
_MOST_BANDS = 3
_SMALL, _BREAK = 0.18, 0.06  # height of a band of single values and of a break, of the whole axis


class Band(NamedTuple):
    """Values `lo` to `hi` of a band, and whether lines run in it or only single values stand."""

    lo: float
    hi: float
    main: bool


def bands_of(lines: Iterable[Sequence[float]], singles: Iterable[float]) -> list[Band]:
    """Return the bands, lowest first, that lines and single values need; one if they fit together.

    Parameters
    ----------
    lines : iterable of sequences of float
        The values of each line, without NaN.
    singles : iterable of float
        Values that stand alone, such as those of embedding and head.

    Returns
    -------
    list of Band
        Empty if there is nothing to show.

    Examples
    --------
    >>> bands_of([[10.0, 11.0, 12.0]], [60.0])
    [Band(lo=10.0, hi=12.0, main=True), Band(lo=60.0, hi=60.0, main=False)]
    >>> bands_of([[10.0, 11.0, 12.0]], [9.5, 13.0])
    [Band(lo=9.5, hi=13.0, main=True)]
    """
    main: list[Band] = []
    for values in sorted((v for v in lines if len(v)), key=min):
        lo, hi = min(values), max(values)
        if main and lo <= _APART * main[-1].hi:
            lo, hi = main[-1].lo, max(main.pop().hi, hi)
        main.append(Band(lo, hi, True))
    far = sorted(singles)
    everything = [edge for band in main for edge in (band.lo, band.hi)] + far
    if not everything:
        return []
    span = max(everything) - min(everything)
    if len(main) == 1 and not 0 < main[0].hi - main[0].lo < _LEAST_SHARE * span:
        return [Band(min(everything), max(everything), True)]
    for value in far:
        main = _take(main, value)
    return _joined(sorted(main))


def _joined(bands: Sequence[Band]) -> list[Band]:
    """Return `bands`, lowest first, those that overlap as one: a value may have joined two."""
    joined: list[Band] = []
    for band in bands:
        if joined and band.lo <= joined[-1].hi:
            last = joined.pop()
            band = Band(last.lo, max(last.hi, band.hi), last.main or band.main)
        joined.append(band)
    return joined


def _take(bands: list[Band], value: float) -> list[Band]:
    """Return `bands` with a single value: in the band that reaches it, or in a small one."""
    for at, band in enumerate(bands):
        # A small band takes values that are near by ratio; one of lines, those near by its height.
        reach = 0.3 * (band.hi - band.lo) if band.main else 0.5 * abs(band.hi)
        if band.lo - reach <= value <= band.hi + reach:
            wider = Band(min(band.lo, value), max(band.hi, value), band.main)
            return [*bands[:at], wider, *bands[at + 1 :]]
    return [*bands, Band(value, value, False)]


def break_y_axis(ax: Axes, bands: Sequence[Band]) -> bool:
    """Give `ax` a y axis in linear bands with a break between them; tell whether it could be done.

    Parameters
    ----------
    bands : sequence of Band
        Lowest first, no overlaps, as `bands_of` returns them. Above three bands nothing is done: a
        logarithmic axis reads better then.
    """
    if not 2 <= len(bands) <= _MOST_BANDS:
        return False
    edges = _padded(bands)
    breaks = (len(bands) - 1) * _BREAK
    small = sum(not band.main for band in bands) * _SMALL
    share = (1.0 - breaks - small) / max(1, sum(band.main for band in bands))
    places: list[tuple[float, float]] = []
    bottom = 0.0
    for band in bands:
        top = bottom + (share if band.main else _SMALL)
        places.append((bottom, top))
        bottom = top + _BREAK
    values, heights = np.ravel(edges), np.ravel(places)

    def forward(y: Array) -> Array:
        return _through(y, values, heights)

    def inverse(height: Array) -> Array:
        return _through(height, heights, values)

    ax.set_yscale("function", functions=(forward, inverse))
    ax.set_ylim(float(values[0]), float(values[-1]))
    ticks = [
        tick
        for (lo, hi), (low, high) in zip(edges, places, strict=True)
        for tick in _ticks(lo, hi, max(2, round(8 * (high - low))))
    ]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    for (below, above), (lower, upper) in zip(pairwise(edges), pairwise(places), strict=True):
        _mark(ax, (below[1], above[0]), (lower[1], upper[0]))
    return True


def _padded(bands: Sequence[Band]) -> list[tuple[float, float]]:
    """Return (lo, hi) of each band with room around its values, still apart from its neighbours."""
    edges = []
    for band in bands:
        span = band.hi - band.lo
        # A band of one value needs a height too; a part of the value makes its ticks round.
        room = 0.08 * span if band.main and span else max(0.4 * span, 0.1 * abs(band.hi), 1e-12)
        edges.append((band.lo - room, band.hi + room))
    for at, ((lo, hi), (next_lo, next_hi)) in enumerate(pairwise(edges)):
        if hi >= next_lo:
            middle = (bands[at].hi + bands[at + 1].lo) / 2
            step = 0.1 * (bands[at + 1].lo - bands[at].hi)
            edges[at] = (lo, middle - step)
            edges[at + 1] = (middle + step, next_hi)
    return edges


def _through(x: Array, knots: Array, targets: Array) -> Array:
    """Return the piecewise linear map through (knots, targets), straight on beyond both ends."""
    x = np.asarray(x, dtype=float)
    inside = np.interp(x, knots, targets)
    first = (targets[1] - targets[0]) / (knots[1] - knots[0])
    last = (targets[-1] - targets[-2]) / (knots[-1] - knots[-2])
    inside = np.where(x < knots[0], targets[0] + first * (x - knots[0]), inside)
    return np.where(x > knots[-1], targets[-1] + last * (x - knots[-1]), inside)


def _ticks(lo: float, hi: float, number: int) -> list[float]:
    """Return at most `number` round values inside a band, away from its edges."""
    margin = 0.06 * (hi - lo)
    for bins in range(number + 1, 0, -1):
        proposed = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(lo, hi)
        inside = [float(tick) for tick in proposed if lo + margin <= tick <= hi - margin]
        if 0 < len(inside) <= number:
            return inside
    return [float(f"{(lo + hi) / 2:.3g}")]


def _mark(ax: Axes, gap: tuple[float, float], height: tuple[float, float]) -> None:
    """Mark a break: a grey band across and two strokes through the spine."""
    ax.axhspan(*gap, color="#eeeeee", linewidth=0, zorder=0.5, gid="break")
    for at in height:
        ax.plot(
            [-0.012, 0.012],
            [at - 0.018, at + 0.018],
            transform=ax.transAxes,
            color=MUTED,
            linewidth=1.0,
            clip_on=False,
            gid="break",
        )
