"""The empirical spectral density of one matrix: all eigenvalues of W^T W, in float64.

The Gram matrix of the shorter side is built by a symmetric rank-k product over bounded pieces (a
bfloat16 matrix is never copied whole to float64) and handed to the faster of two exact values-only
eigensolvers. Also here: what counts as a numerically zero eigenvalue, and the error every function
of this room raises for a matrix that cannot be measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.errors import LayerstatsError
from layerstats.numerics.blocks import row_blocks
from layerstats.numerics.symmetric import add_product, reduced_eigenvalues, zero_matrix

__all__ = ["MatrixError", "esd", "spectral_norm", "stable_rank", "zero_threshold"]

# Columns (or rows) of W that are converted at a time: at least 512, which keeps the rank-k update
# at full speed, and more of a short matrix, up to 8 MB. Beyond a short side of 2048 a piece grows
# with that side, but never above a quarter of the Gram matrix's size from there.
_PIECE = 512
_PIECE_VALUES = 1 << 20

# Measured on two CPUs: below, LAPACK's one-stage reduction wins or draws; above, the two-stage path
# behind torch's values-only solver is up to twice as fast.
_TORCH_SOLVER_FROM = 1100


class MatrixError(LayerstatsError):
    """A matrix or spectrum that has no such number: non-finite, empty, all zero (exit code 4)."""

    exit_code = 4


def esd(weight: torch.Tensor) -> NDArray[np.float64]:
    r"""Return the eigenvalues of W^T W (squared singular values of W), ascending.

    .. math:: \lambda_i = \sigma_i(W)^2, \quad i = 1 \dots \min(m, n)

    There is no factor 1/n. Eigenvalues that rounding alone could have produced (`zero_threshold`)
    are returned as exactly 0.0, so a rank-deficient matrix shows its rank and no negative value
    appears.

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
        On a CPU or a CUDA device. Not changed. The transpose gives the same result.

    Returns
    -------
    numpy.ndarray, shape (min(m, n),), float64
        Non-negative, ascending, in squared units of the weight.

    Raises
    ------
    MatrixError
        If `weight` is not a non-empty 2-D matrix or has NaN or infinite values.

    Notes
    -----
    O(k^2 L) with k = min(m, n), L = max(m, n), plus 4/3 k^3. The absolute error of each
    eigenvalue is a few units of rounding of the largest one.

    Examples
    --------
    >>> import torch
    >>> esd(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])).tolist()
    [4.0, 9.0]
    """
    check_matrix(weight)
    wide = as_wide(weight)
    with torch.no_grad():
        gram = _gram_cpu(wide) if weight.device.type == "cpu" else _gram_torch(wide)
        diagonal = (
            np.diagonal(gram) if isinstance(gram, np.ndarray) else gram.diagonal().cpu().numpy()
        )
        if not np.isfinite(diagonal).all():
            raise MatrixError(_non_finite_message(weight))
        values = eigenvalues(gram)
    values.sort()  # every solver promises ascending order; a sort of sorted values is free
    values[values <= zero_threshold(values)] = 0.0
    return values


def zero_threshold(evals: NDArray[np.float64]) -> float:
    r"""Return the value up to which an eigenvalue is rounding noise and counts as zero.

    .. math:: (8 + \sqrt{k}) \; \epsilon \; \lambda_{\max}

    The zero eigenvalues of rank-deficient Gram matrices with k = 64 ... 2048 came out below 4 eps
    lambda_max. The usual bound k eps lambda_max would be safe too, but at k = 4096 it would call
    the smallest eigenvalue of one square random full-rank matrix in a hundred zero.

    Examples
    --------
    >>> zero_threshold(np.array([0.0, 1.0, 4.0, 9.0])) / 2.0**-52  # (8 + 2) * 9
    90.0
    """
    if evals.size == 0:
        return 0.0
    largest = max(float(evals.max()), 0.0)
    return (8.0 + math.sqrt(evals.size)) * float(np.finfo(np.float64).eps) * largest


def spectral_norm(evals: NDArray[np.float64]) -> float:
    r"""Return the largest singular value, the root of the largest eigenvalue of W^T W.

    Examples
    --------
    >>> spectral_norm(np.array([4.0, 9.0]))
    3.0
    """
    return math.sqrt(_largest(evals))


def stable_rank(evals: NDArray[np.float64]) -> float:
    r"""Return the stable rank of W, between 1 and its rank, from the eigenvalues of W^T W.

    .. math:: \|W\|_F^2 / \|W\|_2^2 = \sum_i \lambda_i / \lambda_{\max}

    Raises
    ------
    MatrixError
        If there is no eigenvalue or all are zero (0 / 0).

    Examples
    --------
    >>> stable_rank(np.array([1.0, 1.0, 2.0]))
    2.0
    """
    largest = _largest(evals)
    if largest == 0.0:
        msg = "the matrix is all zero: it has no stable rank"
        raise MatrixError(msg)
    return float(np.sum(evals / largest))


def check_matrix(weight: torch.Tensor) -> None:
    """Raise `MatrixError` unless `weight` is a real, non-empty, 2-D tensor."""
    if weight.ndim != 2 or weight.numel() == 0 or weight.is_complex():
        shape = "x".join(str(size) for size in weight.shape) or "scalar"
        msg = f"a {shape} {weight.dtype} tensor is not a real matrix with rows and columns"
        raise MatrixError(msg)


def count_non_finite(weight: torch.Tensor) -> int:
    """Count NaN and infinite values."""
    # float8 has no isfinite: float32 holds every narrower type exactly.
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return sum(int((~torch.isfinite(block.to(dtype))).sum()) for block in row_blocks(weight))


def _non_finite_message(weight: torch.Tensor) -> str:
    bad = count_non_finite(weight)
    if bad:
        return f"the matrix has {bad} non-finite values"
    return "the squares of the matrix overflow float64; rescale it"


def _largest(evals: NDArray[np.float64]) -> float:
    if evals.size == 0:
        msg = "no eigenvalues given"
        raise MatrixError(msg)
    return float(evals.max())


def as_wide(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix or its transpose, whichever has no more rows than columns."""
    return weight.detach() if weight.shape[0] <= weight.shape[1] else weight.detach().T


def column_pieces(wide: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[NDArray[Any], bool]]:
    """Yield a CPU matrix in pieces of columns, converted; True: as they are, False: transposed.

    Each is C-contiguous and lies where the one before lay.
    """
    k, length = wide.shape
    tall = wide.T  # a piece of columns of `wide` is a piece of rows of this
    stored_by_column = tall.stride(1) == 1
    pieces = math.ceil(length / max(_PIECE, _PIECE_VALUES // k))
    step = math.ceil(length / pieces)
    # One buffer for all pieces: touching fresh memory costs more than the conversion itself.
    buffer = torch.empty(step * k, dtype=dtype)
    for start in range(0, length, step):
        source = (tall if stored_by_column else wide).narrow(
            0 if stored_by_column else 1, start, min(step, length - start)
        )
        piece = buffer[: source.numel()].view(source.shape).copy_(source)
        yield piece.numpy(), not stored_by_column


def eigenvalues(gram: NDArray[np.float64] | torch.Tensor) -> NDArray[np.float64]:
    """Return the eigenvalues of a symmetric float64 matrix, of which the upper triangle is read."""
    if isinstance(gram, np.ndarray) and len(gram) < _TORCH_SOLVER_FROM:
        return reduced_eigenvalues(gram)
    matrix = torch.from_numpy(gram) if isinstance(gram, np.ndarray) else gram
    values: NDArray[np.float64] = torch.linalg.eigvalsh(matrix, UPLO="U").cpu().numpy()
    return values


def _gram_cpu(wide: torch.Tensor) -> NDArray[np.float64]:
    """Upper triangle (Fortran order) of wide @ wide.T, accumulated over pieces of columns."""
    gram = zero_matrix(len(wide), np.float64)
    for piece, by_rows in column_pieces(wide, torch.float64):
        # syrk does half the work of a full product.
        add_product(gram, piece, by_rows=by_rows)
    return gram


def _gram_torch(wide: torch.Tensor) -> torch.Tensor:
    """Return wide @ wide.T on the tensor's own device (in full: torch has no syrk)."""
    k, length = wide.shape
    gram = torch.zeros((k, k), dtype=torch.float64, device=wide.device)
    step = _PIECE * 16  # a GPU wants longer products; still bounded
    for start in range(0, length, step):
        piece = wide[:, start : start + step].to(torch.float64)
        gram.addmm_(piece, piece.T)
    return gram
