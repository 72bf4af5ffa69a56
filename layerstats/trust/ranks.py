"""Redraws and rank statistics that verdicts rest on.

Which calibration windows count in a redraw, Spearman's rho of many rows at once and what it is by
chance, percentile intervals. Arrays in, numbers out; no names of metrics.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from layerstats.errors import UsageError

__all__ = [
    "CONFIDENCE",
    "Draws",
    "agreement",
    "chance_quantile",
    "group_draws",
    "interval",
    "overlapping",
    "rank_correlations",
]

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
_EXACT_UP_TO = 8


@dataclass(frozen=True, slots=True)
class Draws:
    """How often each group of windows counts in each redraw.

    Attributes
    ----------
    bootstrap : array, shape (resamples, groups), int64
        Groups drawn with replacement: rows sum to `groups`.
    halves : array, shape (2, splits, groups), int64
        0 or 1: two halves without a common group, equally large.
    """

    bootstrap: NDArray[np.int64]
    halves: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int64]:
        """All redraws, shape (resamples + 2 splits, groups): bootstrap, first and second halves."""
        return np.concatenate([self.bootstrap, *self.halves])

    def parted(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Part values, shape (redraws, ...) as `rows`, into (resamples, ...), (2, splits, ...)."""
        count = len(self.bootstrap)
        rest = values[count:]
        return values[:count], rest.reshape(2, -1, *rest.shape[1:])


def group_draws(groups: int, *, bootstrap: int = 100, splits: int = 50, seed: int = 0) -> Draws:
    """Draw resamples and half splits of groups of calibration windows.

    Parameters
    ----------
    groups
        Groups of windows, at least 4. Of an odd number each split leaves one out.
    bootstrap, splits
        How many resamples, and how many random splits.
    seed
        The same seed gives the same draws.

    Returns
    -------
    Draws

    Raises
    ------
    UsageError
        Too few groups, resamples or splits.

    Examples
    --------
    >>> draws = group_draws(4, bootstrap=2, splits=3)
    >>> draws.bootstrap.sum(axis=1).tolist(), draws.halves.sum(axis=(0, 2)).tolist()
    ([4, 4], [4, 4, 4])
    """
    if groups < 4 or bootstrap < 1 or splits < 1:
        msg = (
            f"{groups} groups, {bootstrap} resamples, {splits} splits: trust needs at least "
            "4 groups of windows, 1 resample, 1 split; give more calibration windows"
        )
        raise UsageError(msg)
    generator = np.random.Generator(np.random.Philox(seed))
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=bootstrap)
    order = generator.permuted(np.tile(np.arange(groups), (splits, 1)), axis=1)
    half = groups // 2
    halves = np.stack([order < half, (order >= half) & (order < 2 * half)]).astype(np.int64)
    return Draws(counts.astype(np.int64), halves)


def rank_correlations(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return Spearman's rho of each pair of rows; 0 where a row is constant: it ranks nothing.

    Examples
    --------
    >>> rank_correlations([[1, 2, 3], [5, 5, 5]], [[10, 30, 20], [1, 2, 3]])
    array([0.5, 0. ])
    """
    ranks = [stats.rankdata(np.atleast_2d(rows), axis=1) for rows in (first, second)]
    # Mid-ranks are whole or half numbers: a constant row is exactly zero here.
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in ranks)
    square = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    rho = (a * b).sum(axis=1) / np.sqrt(np.where(square > 0, square, 1.0))
    return np.asarray(np.clip(rho, -1.0, 1.0))


@functools.cache
def chance_quantile(n: int) -> float:
    """Return the 95 % quantile of Spearman's rho between two random orders of n layers.

    Exact over all permutations up to 8 layers, by the t distribution above.

    Parameters
    ----------
    n
        Layers, at least 3.

    Returns
    -------
    float
        0 to 1; of 3 layers it is 1, which nothing exceeds.

    Examples
    --------
    >>> chance_quantile(3), round(chance_quantile(5), 3), round(chance_quantile(32), 3)
    (1.0, 0.8, 0.296)
    """
    if n <= _EXACT_UP_TO:
        orders = np.array(list(itertools.permutations(range(n))), dtype=np.float64)
        rho = rank_correlations(orders, np.tile(np.arange(n), (len(orders), 1)))
        return round(float(np.quantile(rho, CONFIDENCE, method="inverted_cdf")), 12)
    t = float(stats.t.ppf(CONFIDENCE, n - 2))
    return t / math.sqrt(n - 2 + t * t)


def interval(redrawn: ArrayLike, confidence: float = CONFIDENCE) -> tuple[FloatArray, FloatArray]:
    """Return the percentile interval over the first axis.

    Examples
    --------
    >>> low, high = interval(range(101))
    >>> round(float(low), 9), round(float(high), 9)
    (2.5, 97.5)
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(redrawn, dtype=np.float64), [tail, 1 - tail], axis=0)
    return low, high


def agreement(columns: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Return Spearman's rho of every two columns over the layers both have.

    Examples
    --------
    >>> agreement({"alpha_hill": [1, 2, 3], "alpha_mid": [3, 2, 1]})
    {'alpha_hill ~ alpha_mid': -1.0}
    """
    found = {}
    for (x, first), (y, second) in itertools.combinations(columns.items(), 2):
        a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
        both = np.isfinite(a) & np.isfinite(b)
        rho = rank_correlations(a[both], b[both])[0] if both.sum() > 1 else math.nan
        found[f"{x} ~ {y}"] = float(rho)
    return found


def overlapping(low: FloatArray, high: FloatArray, top: int) -> int:
    """Count the other intervals that overlap the one at `top`.

    Examples
    --------
    >>> overlapping(np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 6.0]), 1)
    1
    """
    return int(np.count_nonzero((low <= high[top]) & (high >= low[top]))) - 1
