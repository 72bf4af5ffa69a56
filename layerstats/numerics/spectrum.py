"""The empirical spectral density of one matrix: all eigenvalues of W^T W, in float64.

The Gram matrix of the shorter side is built by a symmetric rank-k product over bounded pieces (a
bfloat16 matrix is never copied whole to float64) and handed to the faster of two exact values-only
eigensolvers. Also here: what counts as a numerically zero eigenvalue, and the error every function
of this room raises for a matrix that cannot be measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.errors import LayerstatsError, UsageError, choices
from layerstats.numerics.blocks import row_blocks
from layerstats.numerics.symmetric import add_product, reduced_eigenvalues, zero_matrix

__all__ = ["MatrixError", "esd", "spectral_norm", "stable_rank", "zero_threshold"]

PRECISIONS = ("float64", "float32")

# Columns (or rows) of W that become float64 at a time: at least 512, which keeps the rank-k update
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


def esd(weight: torch.Tensor, *, precision: str = "float64") -> NDArray[np.float64]:
    r"""Return the eigenvalues of W^T W (squared singular values of W), ascending.

    .. math:: \lambda_i = \sigma_i(W)^2, \quad i = 1 \dots \min(m, n)

    There is no factor 1/n. Eigenvalues that rounding alone could have produced (`zero_threshold`)
    are returned as exactly 0.0, so a rank-deficient matrix shows its rank and no negative value
    appears.

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
        On a CPU or a CUDA device. Not changed. The transpose gives the same result.
    precision : {"float64", "float32"}
        Working precision of Gram matrix and solver. float32 halves the time, but its absolute error
        of about 1e-7 of the largest eigenvalue swamps the smallest ones of square matrices. It is
        not certified here.

    Returns
    -------
    numpy.ndarray, shape (min(m, n),), float64
        Non-negative, ascending, in squared units of the weight.

    Raises
    ------
    MatrixError
        If `weight` is not a non-empty 2-D matrix or has NaN or infinite values.
    UsageError
        If `precision` is unknown.

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
    if precision not in PRECISIONS:
        raise UsageError(choices("precision", precision, PRECISIONS))
    check_matrix(weight)
    dtype = torch.float64 if precision == "float64" else torch.float32
    wide = weight.detach() if weight.shape[0] <= weight.shape[1] else weight.detach().T
    with torch.no_grad():
        gram = _gram_cpu(wide, dtype) if weight.device.type == "cpu" else _gram_torch(wide, dtype)
        diagonal = (
            np.diagonal(gram) if isinstance(gram, np.ndarray) else gram.diagonal().cpu().numpy()
        )
        if not np.isfinite(diagonal).all():
            raise MatrixError(_non_finite_message(weight, precision))
        values = _eigenvalues(gram).astype(np.float64)
    values.sort()  # every solver promises ascending order; a sort of sorted values is free
    values[
        values <= zero_threshold(values, dtype=np.float64 if dtype == torch.float64 else np.float32)
    ] = 0.0
    return values


def approximate_spectrum(
    weight: torch.Tensor,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Return the float32 Gram matrix, its eigenvalues, and an error bar for each of them.

    The bars, eps (a lambda_i + b lambda_max), are at least twice the largest errors against float64
    over real and random matrices with k = 64 ... 2048: Gaussian, Student-t, low rank with noise,
    one huge column, all positive, trained. A CPU tensor only.
    """
    check_matrix(weight)
    wide = weight.detach() if weight.shape[0] <= weight.shape[1] else weight.detach().T
    gram = _gram_cpu(wide, torch.float32)
    trace = float(np.diagonal(gram).sum(dtype=np.float64))
    if not math.isfinite(trace) or trace <= 0:
        raise MatrixError(_non_finite_message(weight, "float32"))
    if len(gram) < _TORCH_SOLVER_FROM:
        values = reduced_eigenvalues(gram)
        slope, floor = 24.0, 8.0
    else:
        values = torch.linalg.eigvalsh(torch.from_numpy(gram), UPLO="U").numpy().astype(np.float64)
        slope, floor = 256.0, 48.0
    errors = 2.0**-23 * (slope * np.abs(values) + floor * values[-1])
    if not abs(float(values.sum()) - trace) <= errors.sum():
        msg = "the float32 eigensolver failed"
        raise MatrixError(msg)
    return gram, values, errors


def zero_threshold(evals: NDArray[np.float64], *, dtype: Any = np.float64) -> float:
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
    return (8.0 + math.sqrt(evals.size)) * float(np.finfo(dtype).eps) * largest


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


def _non_finite_message(weight: torch.Tensor, precision: str) -> str:
    bad = count_non_finite(weight)
    if bad:
        return f"the matrix has {bad} non-finite values"
    return f"the squares of the matrix overflow {precision}; rescale it"


def _largest(evals: NDArray[np.float64]) -> float:
    if evals.size == 0:
        msg = "no eigenvalues given"
        raise MatrixError(msg)
    return float(evals.max())


def _gram_cpu(wide: torch.Tensor, dtype: torch.dtype) -> NDArray[Any]:
    """Upper triangle (Fortran order) of wide @ wide.T, accumulated over pieces of columns."""
    k, length = wide.shape
    gram = zero_matrix(k, np.float64 if dtype == torch.float64 else np.float32)
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
        piece = buffer[: source.numel()].view(source.shape).copy_(source).numpy()
        # syrk does half the work of a full product.
        add_product(gram, piece, by_rows=not stored_by_column)
    return gram


def _gram_torch(wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return wide @ wide.T on the tensor's own device (in full: torch has no syrk)."""
    k, length = wide.shape
    gram = torch.zeros((k, k), dtype=dtype, device=wide.device)
    step = _PIECE * 16  # a GPU wants longer products; still bounded
    for start in range(0, length, step):
        piece = wide[:, start : start + step].to(dtype)
        gram.addmm_(piece, piece.T)
    return gram


def _eigenvalues(gram: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    if isinstance(gram, torch.Tensor):
        values: NDArray[Any] = torch.linalg.eigvalsh(gram, UPLO="U").cpu().numpy()
    elif gram.shape[0] >= _TORCH_SOLVER_FROM:
        values = torch.linalg.eigvalsh(torch.from_numpy(gram), UPLO="U").numpy()
    else:
        values = reduced_eigenvalues(gram)
    return values
