"""Blocks of rows that fit in cache: how this room reads a matrix without copying all of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["row_blocks", "rows_per_block"]

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
