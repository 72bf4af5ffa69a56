"""Products and eigenvalues of symmetric matrices, while other threads run.

scipy's Python wrappers of BLAS and LAPACK keep the interpreter's lock, so that two threads would
take turns. The same routines are called here through the pointers that `scipy.linalg.cython_blas`
and `cython_lapack` offer to compiled code; ctypes lets go of the lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, cython_blas, cython_lapack, lapack

__all__ = ["add_product", "reduced_eigenvalues", "zero_matrix"]

# Columns that the reduction to tridiagonal form treats at a time, measured at k = 192 ... 1024;
# LAPACK's own choice of 32 and more is a tenth slower there.
_REDUCED_AT_A_TIME = 16

# Arguments of each routine: c characters, i integers, x its own floating type.
_ARGUMENTS = {"syrk": "cciixxixxi", "sytrd": "cixixxxxii", "sterf": "ixxi"}


def zero_matrix(size: int, dtype: Any) -> NDArray[Any]:
    """Return a square matrix of zeros, stored column by column as BLAS wants it."""
    return np.zeros((size, size), dtype=dtype, order="F")


def add_product(gram: NDArray[Any], piece: NDArray[Any], *, by_rows: bool) -> None:
    """Add to the upper triangle of `gram` the products of a piece's columns with each other.

    Parameters
    ----------
    gram : numpy.ndarray, shape (k, k), float32 or float64, column by column
        Changed in place, in its upper triangle.
    piece : numpy.ndarray, C-contiguous, of the same type
        Shape (rows, k), or (k, rows) if `by_rows`: then the products of its rows.

    Examples
    --------
    >>> gram = zero_matrix(2, np.float64)
    >>> add_product(gram, np.array([[1.0, 2.0], [3.0, 4.0]]), by_rows=False)
    >>> gram.tolist()
    [[10.0, 14.0], [0.0, 20.0]]
    """
    # beta is never 0: some builds of OpenBLAS then keep a NaN that memory happened to hold.
    letter, trans = "d" if gram.dtype == np.float64 else "s", b"T" if by_rows else b"N"
    routine = _routine(letter, "syrk")
    if routine is None:
        update = blas.dsyrk if letter == "d" else blas.ssyrk
        update(1.0, piece.T, beta=1.0, c=gram, trans=int(by_rows), overwrite_c=1)
        return
    size, depth = len(gram), piece.size // len(gram)
    one = np.ones(1, gram.dtype)
    routine(b"U", trans, size, depth, one, piece, piece.shape[1], one, gram, size)


def reduced_eigenvalues(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the eigenvalues of a symmetric matrix, through its tridiagonal form.

    Parameters
    ----------
    gram : numpy.ndarray, shape (k, k), float64
        Only its upper triangle is read.

    Returns
    -------
    numpy.ndarray, shape (k,), float64
        Ascending.

    Raises
    ------
    numpy.linalg.LinAlgError
        The iteration did not converge.

    Examples
    --------
    >>> reduced_eigenvalues(np.array([[2.0, 1.0], [0.0, 2.0]])).round(12).tolist()
    [1.0, 3.0]
    """
    size = len(gram)
    values: NDArray[np.float64]
    space = _REDUCED_AT_A_TIME * size
    reduce, find = _routine("d", "sytrd"), _routine("d", "sterf")
    if reduce is None or find is None:
        _, values, beside, _, failed = lapack.dsytrd(gram, lower=0, lwork=space)
        values, lost = lapack.dsterf(values, beside)
        failed = failed or lost
    else:
        matrix = gram.copy(order="F")
        values, beside, factors = (np.empty(size) for _ in range(3))
        work, status = np.empty(space), ctypes.c_int(0)
        reduce(b"U", size, matrix, size, values, beside, factors, work, space, status)
        failed = status.value
        if not failed:
            find(size, values, beside, status)
            failed = status.value
    if failed:
        msg = "the eigenvalues did not converge"
        raise np.linalg.LinAlgError(msg)
    return values


@functools.cache
def _routine(letter: str, name: str) -> Any:
    """Return a routine that takes numbers and arrays, or None if scipy's is not the one known."""
    module = cython_lapack if name != "syrk" else cython_blas
    capsule = getattr(module, "__pyx_capi__", {}).get(letter + name)
    if capsule is None:
        return None
    signature = _capsule_name(capsule)
    types = signature.decode().partition("(")[2].rstrip(")").split(", ")
    known = {"char *": "c", "int *": "i"}
    if "".join(known.get(kind, "x") for kind in types) != _ARGUMENTS[name]:
        return None  # integers of another size, say
    address = _capsule_pointer(capsule, signature)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(types))(address)
    return lambda *arguments: call(*map(_address, arguments))


_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _address(value: Any) -> Any:
    """Fortran takes everything by address."""
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, bytes):
        return ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p)
    return ctypes.byref(ctypes.c_int(value) if isinstance(value, int) else value)
