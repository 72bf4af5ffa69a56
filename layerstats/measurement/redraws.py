"""LOD counted again for other choices of calibration windows, all choices in one go.

Resampling windows changes the activation norms a little and the weights not at all. So almost every
weight is an outlier in all redraws or in none; one comparison finds out, and only the few between
are compared once a redraw. A hundred redraws cost a few counts of LOD.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.checkpoint.reader import Layer
from layerstats.numerics.blocks import exact_dtype, row_blocks
from layerstats.numerics.column_sums import column_abs_sums
from layerstats.stats import lod_column
from layerstats.trust import Draws, interval

__all__ = ["LodRedraws", "redrawn_lod"]

FloatArray = NDArray[np.float64]

#: Comparisons made at a time: a float64 array of this size stays in a core's cache.
_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class LodRedraws:
    """What it takes to redraw LOD: the norms by group of windows, and the draws.

    Parameters
    ----------
    group_norms
        `Matrix.key` -> norms of each group, shape (groups, in_features).
    draws
        Which groups count how often.
    m
        Thresholds M.
    """

    group_norms: Mapping[str, FloatArray]
    draws: Draws
    m: tuple[float, ...]

    def of_layer(self, layer: Layer) -> dict[str, list[float]]:
        """Return the LOD of a block in percent, by column, of each redraw."""
        known = {path: matrix.key for path, matrix in layer.matrices.items()}
        paths = [path for path in layer.weights if known[path] in self.group_norms]
        counts = self.draws.rows.astype(np.float64)
        norms = [np.sqrt(counts @ self.group_norms[known[path]] ** 2) for path in paths]
        found = redrawn_lod([layer.weights[path] for path in paths], norms, self.m)
        return {lod_column(m): row.tolist() for m, row in zip(self.m, found, strict=True)}

    def intervals(self, redrawn: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return the 95 % bootstrap interval of each column, as `<column>_lo` and `<column>_hi`."""
        ends: dict[str, float] = {}
        for column, values in redrawn.items():
            low, high = interval(self.draws.parted(np.array(values))[0])
            ends |= {f"{column}_lo": float(low), f"{column}_hi": float(high)}
        return ends


def redrawn_lod(
    weights: Sequence[torch.Tensor], norms: Sequence[FloatArray], m: Sequence[float]
) -> FloatArray:
    """Return the LOD of a block for many sets of activation norms.

    Parameters
    ----------
    weights
        The block's matrices, each of shape (out, in).
    norms
        One array a matrix, shape (redraws, in), >= 0.
    m
        Multiples M of the block's mean score.

    Returns
    -------
    array, shape (len(m), redraws)
        Percent; each number is what `numerics.outliers.block_outliers` gives for those norms.

    Examples
    --------
    >>> norms = [np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 8.0]])]
    >>> redrawn_lod([torch.tensor([[1.0, 1.0, 4.0]])], norms, [1.5, 2.5]).round(1).tolist()
    [[33.3, 33.3], [0.0, 33.3]]
    """
    columns = [column_abs_sums(weight) for weight in weights]
    size = sum(weight.numel() for weight in weights)
    # Products one by one, as block_outliers makes them: another order would round differently.
    sums = [[float(c @ x) for x in rows] for c, rows in zip(columns, norms, strict=True)]
    means = np.array([math.fsum(parts) / size for parts in zip(*sums, strict=True)])
    counts = np.zeros((len(m), len(means)), dtype=np.int64)
    for weight, scores in zip(weights, norms, strict=True):
        for i, multiple in enumerate(m):
            counts[i] += _count(weight, scores, multiple * means)
    return 100.0 * counts / size


def _blocks(weight: torch.Tensor) -> Iterator[NDArray[Any]]:
    """Yield |W| in blocks of rows, as float32 where that holds each stored value exactly."""
    dtype = torch.float64 if exact_dtype(weight) == torch.float64 else torch.float32
    for rows in row_blocks(weight):
        yield rows.to("cpu", dtype).abs().numpy()


def _count(weight: torch.Tensor, norms: FloatArray, thresholds: FloatArray) -> NDArray[np.int64]:
    """Count the scores above each redraw's threshold."""
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = np.where(norms > 0, thresholds[:, None] / norms, np.inf)
    # Rounding of the quotient and of a cast to float32 must not decide: those near are compared.
    never = limits.min(axis=0) * (1 - 1e-6)
    if exact_dtype(weight) != torch.float64:
        with np.errstate(over="ignore"):
            never = never.astype(np.float32)  # comparing with float64 would copy the block
    always = limits.max(axis=0) * (1 + 1e-6)
    by_column = np.ascontiguousarray(norms.T)
    counts = np.zeros(len(thresholds), dtype=np.int64)
    step = max(1, _AT_ONCE // len(thresholds))
    for block in _blocks(weight):
        rows, columns = np.nonzero(block >= never)
        values = block[rows, columns].astype(np.float64)
        unsure = values <= always[columns]
        counts += len(values) - np.count_nonzero(unsure)
        columns, values = columns[unsure], values[unsure]
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            scores = by_column[columns[part]] * values[part, None]
            counts += np.count_nonzero(scores > thresholds, axis=0)
    return counts
