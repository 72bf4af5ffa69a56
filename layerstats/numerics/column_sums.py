"""Sums of |W| over the rows of one matrix: all that LOD needs to know of the weights for its mean.

The mean score is the product of these sums with the activation norms, so several sets of norms (one
per calibration window, say) can share one pass over the weights.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.numerics.blocks import exact_dtype, row_blocks, rows_per_block, stored_blocks
from layerstats.numerics.compiled import kernels_for
from layerstats.numerics.spectrum import MatrixError, check_matrix, count_non_finite

__all__ = ["column_abs_sums"]

_LITTLE_ENDIAN = sys.byteorder == "little"

# Rows that are added up in float32 before the sum goes on in float64.
_ROWS_SUMMED = 256


def column_abs_sums(weight: torch.Tensor) -> NDArray[np.float64]:
    r"""Return the sum of absolute weights of each column.

    .. math:: c_j = \sum_i |W_{ij}|, \qquad \sum_{ij} |W_{ij}| \, \|X_j\|_2 = \sum_j c_j
        \|X_j\|_2

    Parameters
    ----------
    weight : torch.Tensor, shape (out, in), any real dtype
        On a CPU or a CUDA device.

    Returns
    -------
    numpy.ndarray, shape (in,), float64
        Non-negative, in units of the weight. Added up row by row in float32 over at most 256 rows,
        in float64 over these; float64 weights in float64 throughout. The same bit for bit with and
        without numba.

    Raises
    ------
    MatrixError
        If `weight` is not a non-empty 2-D matrix or has NaN or infinite values.

    Examples
    --------
    >>> column_abs_sums(torch.tensor([[1.0, -2.0], [-3.0, 4.0]])).tolist()
    [4.0, 6.0]
    """
    check_matrix(weight)
    wide = exact_dtype(weight) == torch.float64
    total = _column_sums(weight, torch.float64 if wide else torch.float32)
    if not np.isfinite(total).all():
        bad = count_non_finite(weight)
        if bad:
            msg = f"the matrix has {bad} non-finite values"
            raise MatrixError(msg)
        total = _column_sums(weight, torch.float64)  # huge values overflowed float32
    return total


def _column_sums(weight: torch.Tensor, dtype: torch.dtype) -> NDArray[np.float64]:
    """Sum |W| over rows: in `dtype` within a block of at most 256 rows, in float64 over blocks."""
    if weight.device.type != "cpu":
        sums = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
        for rows in row_blocks(weight):
            sums += rows.to(torch.float64).abs_().sum(0)
        return sums.cpu().numpy()
    kernels = kernels_for(weight) if dtype == torch.float32 else None
    if kernels is not None:
        return kernels.column_abs_sums(weight, min(_ROWS_SUMMED, rows_per_block(weight)))
    pairs = weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0 and _LITTLE_ENDIAN
    if pairs and dtype == torch.float32:
        return _column_sums_of_pairs(weight)
    total = np.zeros(weight.shape[1])
    buffer = torch.empty((rows_per_block(weight), weight.shape[1]), dtype=dtype)
    plain = buffer.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        for block in stored_blocks(weight, dtype, buffer):
            magnitudes: NDArray[Any] = np.abs(block, out=plain[: len(block)])
            for start in range(0, len(block), _ROWS_SUMMED):
                part = magnitudes[start : start + _ROWS_SUMMED]
                total += _row_by_row(part)
    return total


def _column_sums_of_pairs(weight: torch.Tensor) -> NDArray[np.float64]:
    """Do `_column_sums` for bfloat16, whose bits are the upper half of a float32.

    Two neighbours lie in one 32-bit word: with its lower half cleared the word is the second one as
    float32, shifted up by 16 bits it is the first.
    """
    shape = (rows_per_block(weight), weight.shape[1])
    first, second = np.zeros(shape[1] // 2), np.zeros(shape[1] // 2)
    buffer = torch.empty(shape, dtype=torch.int16)
    magnitudes = np.empty(shape, dtype=np.int16)
    wide = np.empty((shape[0], shape[1] // 2), dtype=np.int32)
    stored = stored_blocks(weight.detach().view(torch.int16), torch.int16, buffer)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in stored:
            np.bitwise_and(block, 0x7FFF, out=magnitudes[: len(block)])
            for start in range(0, len(block), _ROWS_SUMMED):
                words = magnitudes[start : min(start + _ROWS_SUMMED, len(block))].view(np.int32)
                values = wide[: len(words)]
                np.bitwise_and(words, -0x10000, out=values)
                second += _row_by_row(values.view(np.float32))
                np.left_shift(words, 16, out=values)
                first += _row_by_row(values.view(np.float32))
    return np.stack([first, second], axis=1).reshape(-1)


def _row_by_row(values: NDArray[Any]) -> NDArray[Any]:
    """Add up rows in their order, whatever the machine: BLAS has an order of its own."""
    if values.shape[1] > 1:
        return np.add.reduce(values, axis=0)  # type: ignore[no-any-return]
    total: NDArray[Any] = np.add.accumulate(values, axis=0)[-1]  # reduce would add in pairs
    return total
