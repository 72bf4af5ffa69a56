"""Rank statistics of two vectors: coefficient, p-value, bootstrap interval.

Here belong arrays to numbers; no names of columns, no tables.
"""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

__all__ = ["EXACT_UP_TO", "METHODS", "bootstrap_interval", "coefficients", "p_value"]

FloatArray = NDArray[np.float64]

METHODS = ("spearman", "kendall")
EXACT_UP_TO = 8
"""Number of pairs up to which the p-value counts all permutations (8! = 40320)."""


def coefficients(first: FloatArray, second: FloatArray, method: str) -> FloatArray:
    """Return the coefficient of each row, shape (rows, n) to (rows,); NaN for a constant row.

    Examples
    --------
    >>> first = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    >>> coefficients(first, np.array([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]]), "spearman")
    array([0.5, nan])
    """
    if method == "kendall":
        pairs = np.triu_indices(first.shape[1], 1)
        a = np.sign(first[:, pairs[0]] - first[:, pairs[1]])
        b = np.sign(second[:, pairs[0]] - second[:, pairs[1]])
    else:
        a, b = stats.rankdata(first, axis=1), stats.rankdata(second, axis=1)
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    # Mid-ranks and signs are whole or half numbers, so a constant row is exactly zero here.
    square = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    square[square == 0] = np.nan
    return np.asarray(np.clip((a * b).sum(axis=1) / np.sqrt(square), -1.0, 1.0))


def p_value(first: FloatArray, second: FloatArray, method: str) -> float:
    """Return the two-sided p-value of no association, exact up to `EXACT_UP_TO` layers.

    Examples
    --------
    >>> p_value(np.arange(4.0), np.arange(4.0), "spearman") == 2 / 24
    True
    """
    if first.size <= EXACT_UP_TO:
        return _exact_p_value(first, second, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "kendall":
            return float(stats.kendalltau(first, second).pvalue)
        return float(stats.spearmanr(first, second).pvalue)


def _exact_p_value(first: FloatArray, second: FloatArray, method: str) -> float:
    """Return the share of permutations at least as far from zero, in whole numbers."""
    n = first.size
    orders = np.array(list(itertools.permutations(range(n))))
    if method == "kendall":
        i, j = np.triu_indices(n, 1)
        a = np.sign(first[i] - first[j]).astype(np.int64)
        ranks = stats.rankdata(second)
        totals = sum(
            sign * np.sign(ranks[orders[:, k]] - ranks[orders[:, m]]).astype(np.int64)
            for sign, k, m in zip(a, i, j, strict=True)
        )
        deviations = np.abs(np.asarray(totals))
    else:
        a, b = (np.rint(2 * stats.rankdata(v)).astype(np.int64) for v in (first, second))
        # Twice the mid-ranks are whole and sum to n (n + 1), whatever the ties.
        deviations = np.abs(n * (b[orders] @ a) - (n * (n + 1)) ** 2)
    return float(np.mean(deviations >= deviations[0]))


def bootstrap_interval(
    first: FloatArray,
    second: FloatArray,
    method: str,
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> tuple[tuple[float, float], str]:
    """Return the BCa interval over resampled layers, and a note when there is none (Efron 1987).

    Resamples in which a column is constant have no coefficient and are left out; when more than
    half are, there is no interval. When all resamples lie on one side of rho (a perfect
    correlation), the bias cannot be corrected and the plain percentiles are given.
    """
    missing = (math.nan, math.nan)
    if resamples == 0:
        return missing, ""
    n = first.size
    rho = coefficients(first[None], second[None], method)[0]
    draws = np.random.Generator(np.random.Philox(seed)).integers(0, n, size=(resamples, n))
    # Kendall needs n (n - 1) / 2 numbers a resample: in slices, a few million at a time.
    rows = max(1, 4_000_000 // (n * n))
    values = np.concatenate(
        [
            coefficients(first[part], second[part], method)
            for part in np.split(draws, range(rows, resamples, rows))
        ]
    )
    values = values[~np.isnan(values)]
    if 2 * values.size <= resamples:
        return missing, "no interval: a column is constant in most resamples"
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    # Ties with rho count half, as is usual for coefficients that take few values.
    below = (np.mean(values < rho) + np.mean(values <= rho)) / 2
    if 0 < below < 1 and values.min() < rho < values.max():
        kept = np.array([np.delete(np.arange(n), leave) for leave in range(n)])
        jackknife = coefficients(first[kept], second[kept], method)
        spread = np.nanmean(jackknife) - jackknife[~np.isnan(jackknife)]
        scale = 6 * np.sum(spread**2) ** 1.5
        acceleration = np.sum(spread**3) / scale if scale > 0 else 0.0
        bias = special.ndtri(below)
        shifted = bias + special.ndtri(tails)
        stretch = 1 - acceleration * shifted
        if stretch.min() > 0:
            tails = special.ndtr(bias + shifted / stretch)
    low, high = np.quantile(values, tails)
    # With very many ties the resamples can all lie to one side; the estimate belongs inside.
    return (float(min(low, rho)), float(max(high, rho))), ""
