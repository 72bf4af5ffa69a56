"""Redraws the slow way: every score of every redraw counted, all orders listed, SciPy's rho."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from layerstats.numerics.outliers import block_outliers


def redrawn_lod(
    weights: Sequence[torch.Tensor], norms: Sequence[NDArray[np.float64]], m: Sequence[float]
) -> NDArray[np.float64]:
    """One LOD after the other, shape (len(m), redraws)."""
    redraws = len(norms[0])
    found = [
        block_outliers(weights, [rows[number] for rows in norms], m).lod_pct
        for number in range(redraws)
    ]
    return np.array(found).T


def rho_of_all_orders(n: int) -> list[float]:
    """Spearman's rho of the natural order with each order, ascending."""
    first = np.arange(n)
    return sorted(
        round(float(stats.spearmanr(first, order).statistic), 12)
        for order in itertools.permutations(range(n))
    )
