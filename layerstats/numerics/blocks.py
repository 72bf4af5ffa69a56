"""Blocks of rows that fit in cache: how this room reads a matrix without copying all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray

__all__ = ["exact_dtype", "row_blocks", "rows_per_block", "stored_blocks"]

# Up to 131,072 values: half a megabyte as float32, which stays in a core's second-level cache.
_CPU_VALUES = 1 << 17
_DEVICE_VALUES = 1 << 24


def rows_per_block(weight: torch.Tensor) -> int:
    """Return how many rows `row_blocks` takes at a time, a power of two.

    It depends on the matrix and its kind of device alone, never on threads or free memory, so that
    sums do not depend on them either.

    Examples
    --------
    >>> rows_per_block(torch.zeros(200, 9000)), rows_per_block(torch.zeros(2, 200_000))
    (8, 1)
    """
    limit = _CPU_VALUES if weight.device.type == "cpu" else _DEVICE_VALUES
    fitting = max(limit // weight.shape[1], 1)
    return 1 << (fitting.bit_length() - 1)


def row_blocks(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield contiguous blocks of rows, in order: views of the matrix if it is contiguous.

    Examples
    --------
    >>> [tuple(block.shape) for block in row_blocks(torch.zeros(20, 9000))]
    [(8, 9000), (8, 9000), (4, 9000)]
    """
    step = rows_per_block(weight)
    weight = weight.detach()
    for start in range(0, weight.shape[0], step):
        yield weight[start : start + step].contiguous()


def exact_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return a type with float arithmetic that holds every value of the stored type exactly."""
    if weight.dtype in (torch.bfloat16, torch.float16, torch.float32):
        return weight.dtype
    narrow = weight.element_size() <= 2  # float8, int8, int16
    return torch.float32 if narrow else torch.float64


def stored_blocks(
    weight: torch.Tensor, dtype: torch.dtype, buffer: torch.Tensor
) -> Iterator[NDArray[Any]]:
    """Yield blocks of rows in `dtype`: views if they are stored so, else copies in `buffer`."""
    if weight.dtype == dtype and weight.is_contiguous():
        whole: NDArray[Any] = weight.detach().numpy()  # slices of it cost a tenth of a tensor's
        step = rows_per_block(weight)
        yield from (whole[start : start + step] for start in range(0, len(whole), step))
    else:
        for rows in row_blocks(weight):
            copy: NDArray[Any] = buffer[: len(rows)].copy_(rows).numpy()
            yield copy
