"""Norms of one weight matrix and of a low-rank update, in float64 and without a full-size copy.

`weight_norms` reads the matrix once, in blocks of rows that fit in cache. The functions for LoRA
pairs never form the product B A: `low_rank_norm` needs only two small triangular factors,
`updated_norm` one block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.linalg import blas

from layerstats.errors import UsageError
from layerstats.numerics.blocks import row_blocks
from layerstats.numerics.spectrum import MatrixError, check_matrix, count_non_finite

__all__ = [
    "WeightNorms",
    "frobenius_norm",
    "low_rank_norm",
    "mean_abs",
    "updated_norm",
    "weight_norms",
]


@dataclass(frozen=True, slots=True)
class WeightNorms:
    """What one pass over a matrix gives.

    Attributes
    ----------
    frobenius_norm : float
        Root of the sum of squares, >= 0, in units of the weight.
    mean_abs : float
        Mean absolute value, >= 0, in units of the weight.
    count : int
        Number of values, to pool several matrices: squares of the first and products with the
        second add up.
    """

    frobenius_norm: float
    mean_abs: float
    count: int


def weight_norms(weight: torch.Tensor) -> WeightNorms:
    r"""Return Frobenius norm and mean absolute value of a matrix from one pass over it.

    .. math:: \|W\|_F = \sqrt{\textstyle\sum_{ij} W_{ij}^2}, \qquad \frac{1}{mn} \textstyle\sum_{ij}
    |W_{ij}|

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
        On a CPU or a CUDA device.

    Returns
    -------
    WeightNorms

    Raises
    ------
    MatrixError
        If `weight` is not a non-empty 2-D matrix or has NaN or infinite values.

    Notes
    -----
    Every value is turned into float64 before it is squared or added, so the relative
    error is below 1e-12 for all dtypes.

    Examples
    --------
    >>> import torch
    >>> weight_norms(torch.tensor([[3.0, -4.0]], dtype=torch.bfloat16))
    WeightNorms(frobenius_norm=5.0, mean_abs=3.5, count=2)
    """
    check_matrix(weight)
    squares, absolutes = _sums(row_blocks(weight))
    if not (math.isfinite(squares) and math.isfinite(absolutes)):
        raise MatrixError(_non_finite_message(weight))
    return WeightNorms(math.sqrt(squares), absolutes / weight.numel(), weight.numel())


def frobenius_norm(weight: torch.Tensor) -> float:
    """Return the Frobenius norm; see `weight_norms`, which gives `mean_abs` in the same pass.

    Examples
    --------
    >>> import torch
    >>> frobenius_norm(torch.tensor([[3.0], [-4.0]]))
    5.0
    """
    return weight_norms(weight).frobenius_norm


def mean_abs(weight: torch.Tensor) -> float:
    """Return the mean absolute value; see `weight_norms`, which gives both norms in one pass.

    Examples
    --------
    >>> import torch
    >>> mean_abs(torch.tensor([[3.0], [-4.0]]))
    3.5
    """
    return weight_norms(weight).mean_abs


def low_rank_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    r"""Return the Frobenius norm of B A without forming B A.

    .. math:: \|B A\|_F = \sqrt{\mathrm{tr}\left((B^T B)(A A^T)\right)} = \|R_B R_A^T\|_F,
        \quad B = Q_B R_B, \; A^T = Q_A R_A

    Parameters
    ----------
    a : torch.Tensor, shape (r, n), any real floating dtype
        LoRA's A.
    b : torch.Tensor, shape (m, r), any real floating dtype
        LoRA's B.

    Returns
    -------
    float
        >= 0; times LoRA's scale it is the norm of the update.

    Raises
    ------
    MatrixError
        If a factor is not a non-empty 2-D matrix or has NaN or infinite values.
    UsageError
        If the ranks differ.

    Notes
    -----
    O(r^2 (m + n)) in float64. The form with triangular factors is used because the
    trace loses half the digits when the rank-one terms cancel each other.

    Examples
    --------
    >>> import torch
    >>> norm = low_rank_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0], [2.0]]))
    >>> round(norm**2, 9)  # 5^2 (1 + 4)
    125.0
    """
    a, b = _factors(a, b)
    right = torch.linalg.qr(a.T, mode="r").R
    left = torch.linalg.qr(b, mode="r").R
    return float(torch.linalg.matrix_norm(left @ right.T))


def updated_norm(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scale: float) -> float:
    r"""Return the Frobenius norm of W + s B A, forming it only for one block of rows at a time.

    .. math:: \|W + s B A\|_F^2 = \sum_{\text{blocks } I} \|W_I + s B_I A\|_F^2

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
    a : torch.Tensor, shape (r, n)
    b : torch.Tensor, shape (m, r)
    scale : float
        s, for LoRA alpha / r (rsLoRA: alpha / sqrt(r)).

    Returns
    -------
    float
        >= 0, in units of the weight.

    Raises
    ------
    MatrixError
        If a matrix is not 2-D, is empty or has NaN or infinite values.
    UsageError
        If the shapes do not fit each other.

    Notes
    -----
    O(r m n). The expansion ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2 costs as much, since
    <W, B A> needs a product of the same size, and cancels badly when the update undoes the weight;
    a sum of squares cannot.

    Examples
    --------
    >>> import torch
    >>> w, a, b = torch.ones(2, 2), torch.ones(1, 2), torch.ones(2, 1)
    >>> updated_norm(w, a, b, scale=0.5), updated_norm(w, a, b, scale=-1.0)
    (3.0, 0.0)
    """
    check_matrix(weight)
    a, b = _factors(a, b)
    if tuple(weight.shape) != (b.shape[0], a.shape[1]):
        given, update = "x".join(map(str, weight.shape)), f"{b.shape[0]}x{a.shape[1]}"
        msg = f"W is {given} but B A is {update}; give factors of the same shape"
        raise UsageError(msg)
    a, b = a.to(weight.device), b.to(weight.device)

    def updated_blocks() -> Iterable[torch.Tensor]:
        start = 0
        for block in row_blocks(weight):
            stop = start + block.shape[0]
            yield torch.addmm(block.to(torch.float64), b[start:stop], a, alpha=scale)
            start = stop

    squares, _ = _sums(updated_blocks())
    if not math.isfinite(squares):
        raise MatrixError(_non_finite_message(weight))
    return math.sqrt(squares)


def _sums(blocks: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Sum of squares and sum of absolute values, each block in float64."""
    squares: list[float] = []
    absolutes: list[float] = []
    buffer = torch.empty(0, dtype=torch.float64)
    for block in blocks:
        if block.device.type == "cpu":
            if buffer.numel() < block.numel():
                buffer = torch.empty(block.numel(), dtype=torch.float64)
            flat = buffer[: block.numel()].copy_(block.reshape(-1)).numpy()
            # BLAS reads the cached block at full speed; torch's own float64 reductions are half as
            # fast.
            squares.append(float(blas.ddot(flat, flat)))
            absolutes.append(float(blas.dasum(flat)))
        else:
            values = block.reshape(-1).to(torch.float64)
            squares.append(float(torch.dot(values, values)))
            absolutes.append(float(values.abs_().sum()))
    return _total(squares), _total(absolutes)


def _total(parts: list[float]) -> float:
    # fsum is exact, but refuses an infinity beside its opposite; a plain sum reports NaN as we want
    # it.
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)


def _factors(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Check A and B and return them as float64."""
    for name, factor in (("A", a), ("B", b)):
        check_matrix(factor)
        bad = count_non_finite(factor)
        if bad:
            msg = f"the factor {name} has {bad} non-finite values"
            raise MatrixError(msg)
    if a.shape[0] != b.shape[1]:
        msg = f"A has rank {a.shape[0]} but B has rank {b.shape[1]}; they must belong together"
        raise UsageError(msg)
    return a.detach().to(torch.float64), b.detach().to(torch.float64)


def _non_finite_message(weight: torch.Tensor) -> str:
    bad = count_non_finite(weight)
    return (
        f"the matrix has {bad} non-finite values"
        if bad
        else "the squares of the matrix overflow float64"
    )
