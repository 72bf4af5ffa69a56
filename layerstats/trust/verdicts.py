"""Say whether a ranking of layers can be told from the noise it was drawn with.

Three sources of doubt, three ways to redraw. LOD depends on the calibration text: it is counted
again on random halves of it and on bootstrap resamples. Alpha depends on which histogram bin passes
for the fullest: it is drawn again from the range over the bins that could. Norms depend on nothing
but the weights. Each rule is spelled out in `RULES`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerstats.trust.ranks import (
    CONFIDENCE,
    FloatArray,
    chance_quantile,
    interval,
    overlapping,
    rank_correlations,
)

__all__ = ["RULES", "Verdict", "exact", "from_ranges", "from_windows"]

#: Fewer layers have no verdict: even a perfect agreement of three is one in six by chance.
_LEAST_LAYERS = 4

#: What each kind of verdict rests on; `meta.json` and `layerstats trust` quote it.
RULES = {
    "windows": (
        "distinguishable if the 5 % quantile, over random splits of the calibration windows into "
        "halves, of Spearman's rho between the layers' values on the two halves is above the 95 % "
        "quantile of rho between two random orders of as many layers"
    ),
    "bins": (
        "distinguishable if the 5 % quantile of Spearman's rho between two redraws (each matrix's "
        "alpha uniform over its range, averaged over the block) is above the 95 % quantile of the "
        "same rho if all layers were equal and differed only by a draw from the width of their own "
        "ranges, and of rho between two random orders"
    ),
    "exact": "computed from the weights alone: no sampling noise, the ranking is what it is",
    "fit": (
        "not judged: a fit without a choice to redraw, whose own error is unknown; see how the "
        "rules for xmin agree"
    ),
}

_IS = "this ranking of layers is distinguishable from noise"
_IS_NOT = "this ranking of layers is not distinguishable from noise"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of one column's ranking of the layers.

    Attributes
    ----------
    column : str
        The column of layers.csv.
    source : str
        Key of `RULES`: "windows", "bins", "exact" or "fit".
    distinguishable : bool or None
        None where nothing was redrawn ("exact", "fit") or the layers are too few.
    text : str
        The verdict in words.
    layers : int
        Layers with a value.
    rho_median, rho_q05 : float
        Median and 5 % quantile of Spearman's rho between two redraws; NaN if exact.
    noise_q95 : float
        What `rho_q05` must exceed; NaN if exact.
    top_layer : int or None
        The layer that ranks first: largest LOD, smallest alpha (heaviest tail), largest norm.
    overlapping : int
        Other layers whose 95 % interval overlaps that of the top layer.
    more : dict
        Further numbers of this source.
    """

    column: str
    source: str
    distinguishable: bool | None
    text: str
    layers: int
    rho_median: float = math.nan
    rho_q05: float = math.nan
    noise_q95: float = math.nan
    top_layer: int | None = None
    overlapping: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: `more` among the others, null for a missing number."""
        page = asdict(self)
        page |= page.pop("more")
        missing = [key for key, value in page.items() if value != value]
        return page | dict.fromkeys(missing)


def from_windows(
    column: str, values: ArrayLike, bootstrap: ArrayLike, halves: ArrayLike
) -> Verdict:
    """Judge a ranking by what other calibration windows would have made of it.

    The two halves of a split have no window in common, so a ranking that is noise agrees between
    them as often as by chance. Two bootstrap resamples would not do: both carry the noise of the
    windows they are drawn from, and agree by it.

    Parameters
    ----------
    column
        Name of the column; the largest value ranks first.
    values
        Values of the layers on all windows, shape (layers,).
    bootstrap
        Values on resamples of the windows, shape (resamples, layers).
    halves
        Values on the halves, shape (2, splits, layers).

    Returns
    -------
    Verdict
        Layers that are not finite in any redraw are left out. `more` has `bootstrap_rho_median` and
        `bootstrap_rho_q05`, of rho between resamples and `values`.

    Examples
    --------
    >>> layers, noise = np.arange(6.0), np.random.default_rng(0).normal(size=(3, 40, 6))
    >>> from_windows("lod_m7", layers, layers + noise[0], layers + noise[1:]).text
    'this ranking of layers is not distinguishable from noise'
    >>> calm = 0.01 * noise
    >>> from_windows("lod_m7", layers, layers + calm[0], layers + calm[1:]).distinguishable
    True
    """
    whole, resampled, split = (
        np.asarray(rows, dtype=np.float64) for rows in (values, bootstrap, halves)
    )
    redrawn = np.concatenate([whole[None], resampled, *split])
    known = np.isfinite(redrawn).all(axis=0)
    numbers = np.flatnonzero(known)
    whole, resampled, split = whole[known], resampled[:, known], split[:, :, known]
    if len(numbers) < _LEAST_LAYERS:
        return _too_few(column, "windows", len(numbers))
    rho = rank_correlations(split[0], split[1])
    stable = rank_correlations(resampled, np.broadcast_to(whole, resampled.shape))
    top = int(np.argmax(whole))
    return _judged(
        column,
        "windows",
        rho,
        chance_quantile(len(numbers)),
        layers=len(numbers),
        top_layer=int(numbers[top]),
        overlapping=overlapping(*interval(resampled), top),
        more={
            "bootstrap_rho_median": float(np.median(stable)),
            "bootstrap_rho_q05": float(np.quantile(stable, 1 - CONFIDENCE)),
        },
    )


def from_ranges(
    column: str,
    low: ArrayLike,
    high: ArrayLike,
    layers: ArrayLike,
    *,
    values: ArrayLike | None = None,
    draws: int = 400,
    seed: int = 0,
) -> Verdict:
    """Judge a ranking of block means whose parts are only known to lie in ranges.

    A redraw takes each matrix's value uniformly from its range and averages over the block. Two
    redraws agree by more than chance even if all layers are alike, since what made a range lie high
    or low is in both; so they are held against redraws of layers that are alike: each is shifted
    once by a draw from the widths of its own ranges, then redrawn twice.

    Parameters
    ----------
    column
        Name of the column; the smallest value ranks first.
    low, high
        Range of each matrix, shape (matrices,), `low` <= `high`.
    layers
        The layer of each matrix, shape (matrices,), whole numbers >= 0.
    values
        The value of each matrix, to find the top layer; the middle of its range by default.
    draws
        Redraws.
    seed
        Of the redraws.

    Returns
    -------
    Verdict
        Matrices without a finite range are left out. `more` has `range_mean`, the mean width of the
        ranges, and `noise_rho_median`.

    Examples
    --------
    >>> middle, layer = np.arange(12.0), np.arange(12)
    >>> from_ranges("alpha_hill", middle - 0.4, middle + 0.4, layer).overlapping
    0
    >>> from_ranges("alpha_hill", middle - 9, middle + 9, layer).distinguishable
    False
    """
    lows, highs = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    middle = (lows + highs) / 2 if values is None else np.asarray(values, dtype=np.float64)
    known = np.isfinite(lows) & np.isfinite(highs) & np.isfinite(middle)
    numbers, place = np.unique(np.asarray(layers)[known], return_inverse=True)
    lows, width, middle = lows[known], highs[known] - lows[known], middle[known]
    n = len(numbers)
    if n < _LEAST_LAYERS:
        return _too_few(column, "bins", n)
    sizes = np.bincount(place, minlength=n)
    generator = np.random.Generator(np.random.Philox(seed))

    def means(parts: FloatArray) -> FloatArray:
        return np.bincount(place, weights=parts, minlength=n) / sizes

    def redraws() -> FloatArray:
        """Block means of draws from 0 to each width."""
        return np.stack([means(width * generator.random(len(width))) for _ in range(draws)])

    first, second = means(lows) + redraws(), means(lows) + redraws()
    # Layers that are alike: the middle of the widths taken off, which would tell them apart.
    shift = redraws() - means(width)
    alike = rank_correlations(shift + redraws(), shift + redraws())
    top = int(np.argmin(means(middle)))
    return _judged(
        column,
        "bins",
        rank_correlations(first, second),
        max(chance_quantile(n), float(np.quantile(alike, CONFIDENCE))),
        layers=n,
        top_layer=int(numbers[top]),
        overlapping=overlapping(*interval(first), top),
        more={"noise_rho_median": float(np.median(alike)), "range_mean": float(width.mean())},
    )


def exact(column: str, values: ArrayLike, *, fitted: bool = False) -> Verdict:
    """Say that nothing of a column can be redrawn.

    A norm is what it is, and the largest ranks first. A `fitted` exponent is an estimate, which
    this does not judge, and the smallest ranks first.

    Examples
    --------
    >>> exact("frobenius_norm", [2.0, 3.0]).top_layer
    1
    """
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    upward = np.where(known, -numbers if fitted else numbers, -np.inf)
    top = int(np.argmax(upward)) if known.any() else None
    source = "fit" if fitted else "exact"
    return Verdict(column, source, None, RULES[source], int(known.sum()), top_layer=top)


def _judged(
    column: str,
    source: str,
    rho: FloatArray,
    noise: float,
    *,
    top_layer: int,
    overlapping: int,
    layers: int,
    more: dict[str, Any],
) -> Verdict:
    lowest = float(np.quantile(rho, 1 - CONFIDENCE))
    clear = lowest > noise
    return Verdict(
        column,
        source,
        clear,
        _IS if clear else _IS_NOT,
        layers,
        float(np.median(rho)),
        lowest,
        noise,
        top_layer,
        overlapping,
        more,
    )


def _too_few(column: str, source: str, layers: int) -> Verdict:
    text = f"{layers} layers with values are too few to tell a ranking from noise"
    return Verdict(column, source, None, text, layers)
