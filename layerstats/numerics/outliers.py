"""Outlier scores |W| * ||X|| and the Layerwise Outlier Distribution (LOD), for many M at once.

Two passes over the weights in cache-sized blocks of rows: one for the means, one for the counts.
The scores are never stored: |w| ||x|| > t is the same question as |w| > p for a column's largest
weight p that is not an outlier, and that is asked of the stored bits as integers. The counts are
those of float64 scores, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from layerstats.errors import UsageError
from layerstats.numerics.blocks import exact_dtype, row_blocks, rows_per_block, stored_blocks
from layerstats.numerics.column_sums import column_abs_sums
from layerstats.numerics.compiled import kernels_for
from layerstats.numerics.spectrum import MatrixError, check_matrix

__all__ = ["BlockOutliers", "block_outliers"]


@dataclass(frozen=True, slots=True)
class BlockOutliers:
    """Outliers of one block; every inner tuple has one entry per M, in the order asked.

    Attributes
    ----------
    m : tuple of float
        The multiples asked for.
    lod_pct : tuple of float
        LOD of the block in percent: one mean over all weights of all matrices.
    matrix_lod_pct : tuple (per matrix) of tuples
        LOD of each matrix alone, with its own mean, in percent.
    share_frac : tuple (per matrix) of tuples
        Fraction of the block's outliers that lie in this matrix; sums to 1 over the matrices, NaN
        if the block has none.
    counts : tuple (per matrix) of tuples of int
        Outliers of the block that lie in this matrix.
    mean_score : float
        Mean score of the block.
    matrix_mean_score : tuple of float
        Mean score of each matrix.
    """

    m: tuple[float, ...]
    lod_pct: tuple[float, ...]
    matrix_lod_pct: tuple[tuple[float, ...], ...]
    share_frac: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    mean_score: float
    matrix_mean_score: tuple[float, ...]


def block_outliers(
    weights: Sequence[torch.Tensor],
    norms: Sequence[ArrayLike | None],
    m: Sequence[float],
    *,
    per_matrix: bool = True,
    column_sums: Sequence[NDArray[np.float64]] | None = None,
) -> BlockOutliers:
    r"""Return the LOD of a block, of each of its matrices, and each matrix's share, for every M.

    .. math:: A_{ij} = \|X_j\|_2 \, |W_{ij}|, \qquad
        D = 100 \cdot \frac{\#\{A_{ij} > M \, \bar A\}}{\# A}

    where the mean runs over *all* weights of the block, as OWL and OwLore join them.

    Parameters
    ----------
    weights : sequence of torch.Tensor, each of shape (out, in), any real dtype
        On a CPU or a CUDA device, each where it likes.
    norms : sequence of array or None, each of shape (in,)
        ||X_j||_2 of the inputs each matrix saw (any common factor cancels), turned to float64; None
        stands for ones (weight-only LOD). All zeros, an expert that no token reached, makes all
        scores of that matrix zero; they count.
    m : sequence of float
        Multiples M of the mean, each >= 0.
    per_matrix : bool
        Whether to find each matrix's own LOD too; without, `matrix_lod_pct` is NaN.
    column_sums : sequence of array, each of shape (in,), optional
        `column_abs_sums` of each matrix, if known: saves the first of two passes when the same
        weights meet several sets of norms.

    Returns
    -------
    BlockOutliers

    Raises
    ------
    MatrixError
        If a matrix is empty or not 2-D, or a weight or a norm is not finite or a norm is negative.
    UsageError
        If there is no matrix, no M or a bad M, or if the numbers of matrices and norms or a shape
        do not agree.

    Notes
    -----
    OWL multiplies in float32 and takes a float32 mean; the difference is a handful of
    counts. In bfloat16, as a model in bfloat16 would have it, OWL's own code is off by a percent.
    Here the mean is a float64 sum of float32 sums within cache-sized blocks of rows
    (relative error about 1e-10; float64 throughout for float64 weights), and the comparison is
    exact in float64. The result does not depend on the order of the matrices, nor on whether numba
    is there to count large matrices sooner.

    References
    ----------
    Yin et al. (2023), OWL, arXiv 2310.05175; Li et al. (2024), OwLore, arXiv
    2405.18380; Sun et al. (2023), Wanda, arXiv 2306.11695.

    Examples
    --------
    >>> import torch
    >>> matrices = [torch.tensor([[1.0, -9.0]]), torch.ones(1, 8)]
    >>> found = block_outliers(matrices, [[1.0, 1.0], None], [2, 7])
    >>> found.lod_pct, found.share_frac[0]  # mean 1.8: one of ten is above 3.6, none above 12.6
    ((10.0, 0.0), (1.0, nan))
    """
    multiples = _checked_multiples(m)
    if not weights or len(weights) != len(norms):
        msg = f"{len(weights)} matrices and {len(norms)} norm vectors; give one vector a matrix"
        raise UsageError(msg)
    vectors = [_checked_norms(i, w, x) for i, (w, x) in enumerate(zip(weights, norms, strict=True))]
    columns = (
        [_finite_sums(i, w) for i, w in enumerate(weights)] if column_sums is None else column_sums
    )
    if [len(c) for c in columns] != [len(x) for x in vectors]:
        msg = "column_sums do not fit: give one vector a matrix, with a sum for each of its columns"
        raise UsageError(msg)
    sums = [float(c @ x) for c, x in zip(columns, vectors, strict=True)]
    sizes = [w.numel() for w in weights]
    mean = math.fsum(sums) / sum(sizes)
    means = [total / size for total, size in zip(sums, sizes, strict=True)]

    counts: list[tuple[int, ...]] = []
    own: list[tuple[float, ...]] = []
    for weight, vector, size, own_mean in zip(weights, vectors, sizes, means, strict=True):
        thresholds = [mm * mean for mm in multiples]
        if per_matrix:
            thresholds += [mm * own_mean for mm in multiples]
        found = _count_above(weight, vector, thresholds)
        counts.append(tuple(found[: len(multiples)]))
        own.append(
            tuple(100.0 * c / size for c in found[len(multiples) :]) or (math.nan,) * len(multiples)
        )
    totals = [sum(column) for column in zip(*counts, strict=True)]
    return BlockOutliers(
        m=multiples,
        lod_pct=tuple(100.0 * total / sum(sizes) for total in totals),
        matrix_lod_pct=tuple(own),
        share_frac=tuple(
            tuple(c / total if total else math.nan for c, total in zip(row, totals, strict=True))
            for row in counts
        ),
        counts=tuple(counts),
        mean_score=mean,
        matrix_mean_score=tuple(means),
    )


def _checked_multiples(m: Sequence[float]) -> tuple[float, ...]:
    multiples = tuple(float(value) for value in m)
    bad = [value for value in multiples if not (math.isfinite(value) and value >= 0)]
    if bad or not multiples:
        msg = (
            f"M is {bad[0] if bad else 'missing'}; give one or more finite numbers >= 0, such as 7"
        )
        raise UsageError(msg)
    return multiples


def _checked_norms(
    index: int, weight: torch.Tensor, norms: ArrayLike | None
) -> NDArray[np.float64]:
    check_matrix(weight)
    if norms is None:
        return np.ones(weight.shape[1])
    vector = np.asarray(norms, dtype=np.float64)
    if vector.shape != (weight.shape[1],):
        msg = (
            f"matrix {index} has {weight.shape[1]} inputs but its norms have shape {vector.shape}; "
            "give one norm an input"
        )
        raise UsageError(msg)
    if not np.isfinite(vector).all() or (vector < 0).any():
        bad = int(np.count_nonzero(~(np.isfinite(vector) & (vector >= 0))))
        msg = f"the activation norms of matrix {index} have {bad} non-finite or negative values"
        raise MatrixError(msg)
    return vector


def _finite_sums(index: int, weight: torch.Tensor) -> NDArray[np.float64]:
    try:
        return column_abs_sums(weight)
    except MatrixError as error:
        msg = str(error).replace("the matrix", f"matrix {index} of the block", 1)
        raise MatrixError(msg) from None


def _count_above(
    weight: torch.Tensor, norms: NDArray[np.float64], thresholds: Sequence[float]
) -> list[int]:
    """Count the scores strictly above each threshold."""
    if weight.device.type != "cpu":
        return _count_on_device(weight, norms, thresholds)
    dtype = exact_dtype(weight)
    limits = _largest_not_above(thresholds, norms, dtype)
    kernels = kernels_for(weight)
    if kernels is not None:
        return kernels.count_above(weight, limits)
    order = sorted(range(len(thresholds)), key=lambda i: thresholds[i])
    counts = [0] * len(thresholds)
    for bits, above in _magnitude_bits(weight, dtype):
        for position, i in enumerate(order):
            np.greater(bits, limits[i], out=above)
            found = int(np.count_nonzero(above))
            counts[i] += found
            rest = order[position + 1 :]
            if not found or not rest:
                break  # none above a higher threshold either
            if _listing_pays(found, bits.size, len(rest)):
                # Nothing else can be above the higher thresholds: look only at these from here on.
                places = np.flatnonzero(above)
                columns, values = places % bits.shape[1], bits.reshape(-1)[places]
                for j in rest:
                    counts[j] += int(np.count_nonzero(values > limits[j][columns]))
                break
    return counts


def _listing_pays(found: int, size: int, thresholds: int) -> bool:
    """Whether to list the weights above one threshold for the sake of the higher ones.

    In nanoseconds, as measured: a comparison takes 0.15 for each weight of the block and each
    threshold; a list takes 0.06 for each weight and, for each one listed, 15 and 3 a threshold.
    """
    return found * (15 + 3 * thresholds) < size * (0.15 * thresholds - 0.06)


def _magnitude_bits(
    weight: torch.Tensor, dtype: torch.dtype
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Yield blocks of |W| as integers that sort as the magnitudes do, each with a mask to fill."""
    shape = (rows_per_block(weight), weight.shape[1])
    integer = _TORCH_INTEGER[dtype]
    buffer = torch.empty(shape, dtype=dtype).view(integer)
    bits = np.empty_like(buffer.numpy())
    above = np.empty(shape, dtype=np.bool_)
    keep = np.iinfo(bits.dtype).max  # all bits but the sign
    if weight.dtype == dtype:
        blocks = stored_blocks(weight.detach().view(integer), integer, buffer)
    else:
        copies = (buffer[: len(rows)].view(dtype).copy_(rows) for rows in row_blocks(weight))
        blocks = (copy.view(integer).numpy() for copy in copies)
    for block in blocks:
        yield np.bitwise_and(block, keep, out=bits[: len(block)]), above[: len(block)]


_TORCH_INTEGER = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _largest_not_above(
    thresholds: Sequence[float], norms: NDArray[np.float64], dtype: torch.dtype
) -> NDArray[Any]:
    """Return, as bits, the largest p of `dtype` with p * norm <= threshold in float64.

    One row for each threshold, one column for each norm.
    """
    most = torch.finfo(dtype).max
    threshold = np.asarray(thresholds)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(norms > 0, threshold / norms, most)
    integer = _TORCH_INTEGER[dtype]
    near: NDArray[Any] = (
        torch.from_numpy(np.minimum(quotient, most)).to(dtype).view(integer).numpy()
    )
    # Quotient and conversion were each rounded to the nearest: the answer is at most two values
    # away.
    top = int(torch.tensor(most, dtype=dtype).view(integer))
    for _ in range(2):
        near = near - (_magnitude(near, dtype) * norms > threshold).astype(near.dtype)
    for _ in range(2):
        above = np.minimum(near, top - 1) + near.dtype.type(1)
        near = np.where(_magnitude(above, dtype) * norms <= threshold, above, near)
    return near


def _magnitude(bits: NDArray[Any], dtype: torch.dtype) -> NDArray[np.float64]:
    values: NDArray[np.float64] = torch.from_numpy(bits).view(dtype).to(torch.float64).numpy()
    return values


def _count_on_device(
    weight: torch.Tensor, norms: NDArray[np.float64], thresholds: Sequence[float]
) -> list[int]:
    """Count by float64 products, for a GPU."""
    vector = torch.from_numpy(norms).to(weight.device)
    counts = torch.zeros(len(thresholds), dtype=torch.int64, device=weight.device)
    for block in row_blocks(weight):
        scores = block.to(torch.float64).abs_().mul_(vector)
        counts += torch.stack([(scores > t).sum() for t in thresholds])
    return [int(c) for c in counts]
