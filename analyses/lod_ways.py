"""LOD of one block counted in different ways, and how far two sets of windows agree on layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from layerstats.numerics import block_outliers, mean_abs
from layerstats.trust import rank_correlations

__all__ = ["JOINED", "WITHIN", "M", "lod", "rescaled", "stability"]

M = (7.0, 13.0)
JOINED, WITHIN = "joined, as OWL and OwLore", "tensors of equal mean score"


def lod(weights: Sequence[Any], norms: Sequence[Any]) -> tuple[float, ...]:
    """Return the LOD of a block in percent, for each M."""
    return block_outliers(weights, norms, M, per_matrix=False).lod_pct


def rescaled(weights: Sequence[Any], norms: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield LOD with tensors made equal in one way or another: name, percent for each M."""
    found = block_outliers(weights, norms, M)
    yield JOINED, found.lod_pct
    means = found.matrix_mean_score
    yield WITHIN, lod(weights, [x / mean for x, mean in zip(norms, means, strict=True)])
    by_weight = [x / mean_abs(w) for x, w in zip(norms, weights, strict=True)]
    yield "tensors of equal mean weight", lod(weights, by_weight)
    by_input = [x / np.sqrt(np.mean(x**2)) for x in norms]
    yield "tensors of equal mean input", lod(weights, by_input)
    yield "weights alone", lod(weights, [None for _ in norms])
    yield "mean of the matrices' own LOD", tuple(np.mean(found.matrix_lod_pct, axis=0))


def stability(found: Any) -> dict[str, Any]:
    """Return Spearman's rho over layers between disjoint sets of windows, for each M.

    `found` has shape (layers, sets, M); every two sets are compared.
    """
    first, second = np.array(list(itertools.combinations(range(found.shape[1]), 2))).T
    result = {}
    for at, m in enumerate(M):
        rho = rank_correlations(found[:, first, at].T, found[:, second, at].T)
        ends = {"mean": rho.mean(), "least": rho.min(), "largest": rho.max()}
        result[f"m{m:g}"] = {**ends, "pairs": rho.size}
    return result
