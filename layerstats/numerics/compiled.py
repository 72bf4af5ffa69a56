"""Compiled kernels for the two passes of LOD, if numba is installed: the same numbers, sooner.

They read the matrix at the speed of memory, and count for four thresholds in the time of one. The
functions here are plain Python over numpy arrays, operation by operation what `column_sums.py` and
`outliers.py` do without numba, so their results are equal bit for bit; numba compiles them when the
first large matrix comes, and keeps the machine code beside Python's own in `__pycache__`.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Kernels", "kernels_for"]

# Values from which loading the compiler's runtime (a third of a second) is soon paid back.
_LEAST_VALUES = 1 << 21

# Thresholds counted in one go: each comparison is a fraction of the time a value takes to arrive.
_THRESHOLDS = 4

# Rows that stay in cache while more than four thresholds are counted, and rows after which the
# counters, of 16 bits for bfloat16, are added up.
_ROWS = 16
_MOST_ROWS = 1 << 14

_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions, as `column_sums.py` and `outliers.py` call them."""

    add_columns: Any
    add_counts: Any

    def column_abs_sums(self, weight: torch.Tensor, rows_summed: int) -> NDArray[np.float64]:
        """Sum |W| over rows: in float32 within `rows_summed` rows, in float64 over these."""
        total = np.zeros(weight.shape[1])
        shift = np.int32(16 if weight.dtype == torch.bfloat16 else 0)
        self.add_columns(_bits(weight), shift, rows_summed, total)
        return total

    def count_above(self, weight: torch.Tensor, limits: NDArray[Any]) -> list[int]:
        """Count the magnitudes above each row of `limits`, shape (thresholds, in), as bits."""
        bits = _bits(weight)
        most = np.iinfo(bits.dtype).max  # as a limit: above every magnitude
        groups = -(-len(limits) // _THRESHOLDS)
        padded = np.full((groups, _THRESHOLDS, bits.shape[1]), most, dtype=bits.dtype)
        padded.reshape(-1, bits.shape[1])[: len(limits)] = limits
        counts = np.zeros(groups * _THRESHOLDS, dtype=np.int64)
        for start in range(0, len(bits), _MOST_ROWS):
            found = np.zeros_like(padded)
            self.add_counts(bits[start : start + _MOST_ROWS], bits.dtype.type(most), padded, found)
            counts += found.sum(axis=2, dtype=np.int64).reshape(-1)
        return [int(count) for count in counts[: len(limits)]]


def kernels_for(weight: torch.Tensor) -> Kernels | None:
    """Return the kernels if numba is there and they serve this matrix, else None.

    They serve large float32 and bfloat16 matrices on a CPU, stored row by row.

    Examples
    --------
    >>> kernels_for(torch.ones(2, 3)) is None  # small
    True
    """
    served = weight.dtype in _INTEGER and weight.device.type == "cpu" and weight.is_contiguous()
    return _compile(weight.dtype) if served and weight.numel() >= _LEAST_VALUES else None


@functools.cache
def _compile(dtype: torch.dtype) -> Kernels | None:
    """Load numba, compile for one type and try the result, once; say so if that cannot be done."""
    try:
        import numba

        jit = numba.njit(nogil=True, cache=True)
        kernels = Kernels(jit(_add_columns), jit(_add_counts))
        trial = torch.ones((5, 3), dtype=dtype)
        kernels.column_abs_sums(trial, 4)
        kernels.count_above(trial, _bits(trial)[:1])
    except ImportError:
        _LOG.info("numba is not installed; LOD is counted without it (pip install numba)")
    except Exception as error:  # a numba that fails here must not stop a measurement
        _LOG.warning("numba cannot be used, LOD is counted without it: %s", error)
    else:
        return kernels
    return None


def _bits(weight: torch.Tensor) -> NDArray[Any]:
    bits: NDArray[Any] = weight.detach().view(_INTEGER[weight.dtype]).numpy()
    return bits


# ---------------------------------------------------------------- what numba compiles
# Four rows at a time, and sums and counts of each column on their own: so the inner loops become
# vector instructions, without any licence to change the order of additions.


def _add_columns(bits: Any, shift: Any, rows_summed: int, total: Any) -> None:
    """Add to `total` the magnitudes, by columns; their bits shifted by `shift` are a float32's."""
    rows, cols = bits.shape
    mask = np.int32(0x7FFFFFFF)
    own = np.empty(cols, dtype=np.float32)
    for start in range(0, rows, rows_summed):
        stop = min(start + rows_summed, rows)
        whole = stop - (stop - start) % 4
        own[:] = 0
        for i in range(start, whole, 4):
            for j in range(cols):
                a = np.int32((np.int32(bits[i, j]) << shift) & mask).view(np.float32)
                b = np.int32((np.int32(bits[i + 1, j]) << shift) & mask).view(np.float32)
                c = np.int32((np.int32(bits[i + 2, j]) << shift) & mask).view(np.float32)
                d = np.int32((np.int32(bits[i + 3, j]) << shift) & mask).view(np.float32)
                own[j] = (((own[j] + a) + b) + c) + d
        for i in range(whole, stop):
            for j in range(cols):
                own[j] += np.int32((np.int32(bits[i, j]) << shift) & mask).view(np.float32)
        for j in range(cols):
            total[j] += own[j]


def _add_counts(bits: Any, keep: Any, limits: Any, found: Any) -> None:
    """Add to `found` how many magnitudes of a column are above `limits`, both (groups, 4, in)."""
    rows, cols = bits.shape
    one = bits.dtype.type
    for start in range(0, rows, _ROWS):
        stop = min(start + _ROWS, rows)
        whole = stop - (stop - start) % 4
        for g in range(len(limits)):
            limit, mine = limits[g], found[g]
            for i in range(start, whole, 4):
                for j in range(cols):
                    a, b = bits[i, j] & keep, bits[i + 1, j] & keep
                    c, d = bits[i + 2, j] & keep, bits[i + 3, j] & keep
                    p, q, r, s = limit[0, j], limit[1, j], limit[2, j], limit[3, j]
                    mine[0, j] += one(a > p) + one(b > p) + one(c > p) + one(d > p)
                    mine[1, j] += one(a > q) + one(b > q) + one(c > q) + one(d > q)
                    mine[2, j] += one(a > r) + one(b > r) + one(c > r) + one(d > r)
                    mine[3, j] += one(a > s) + one(b > s) + one(c > s) + one(d > s)
            for i in range(whole, stop):
                for t in range(4):
                    for j in range(cols):
                        mine[t, j] += one((bits[i, j] & keep) > limit[t, j])
