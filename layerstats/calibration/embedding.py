"""Embedding tables stay in the file: only the rows of the tokens at hand are read.

`RowFetch` watches the model outside its blocks and serves each `embedding(ids, table)` whose table
has no memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from layerstats.errors import CheckpointError, LayerstatsError, UsageError

if TYPE_CHECKING:
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["RowFetch", "read_rows"]


class RowFetch(TorchFunctionMode):
    """Serve look-ups in tables that are on the meta device from the checkpoint.

    Parameters
    ----------
    tables
        `id(parameter)` -> stored name of the table.
    fetch
        (stored name, ascending row numbers) -> those rows.
    device
        Where the rows are wanted.
    tokens
        `id(parameter)` of the table of tokens; others are tables of positions.
    """

    def __init__(
        self,
        tables: Mapping[int, str],
        fetch: Callable[[str, torch.Tensor], torch.Tensor],
        device: torch.device,
        *,
        tokens: int,
    ) -> None:
        super().__init__()
        self._tables, self._fetch, self._device = tables, fetch, device
        self._tokens = tokens

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding and len(args) > 1 and id(args[1]) in self._tables:
            ids, table = args[0], args[1]
            name = self._tables[id(table)]
            rows, place = ids.unique(return_inverse=True)
            if int(rows[-1]) >= table.shape[0] or int(rows[0]) < 0:
                raise self._no_row(table, name, int(rows[-1]))
            compact = self._fetch(name, rows.cpu()).to(device=self._device, dtype=table.dtype)
            # padding_idx only matters for gradients, and would point outside the compact table.
            return torch.nn.functional.embedding(place, compact)
        result = func(*args, **kwargs)
        moved = (
            isinstance(result, torch.Tensor)
            and result.is_meta
            and getattr(func, "__name__", "") == "to"
        )
        # Llama 4 moves the ids to where its table is: here that would be nowhere.
        return args[0] if moved and not args[0].is_floating_point() else result

    def _no_row(self, table: torch.Tensor, name: str, row: int) -> LayerstatsError:
        if id(table) == self._tokens:
            return CheckpointError(
                f"{name}: token id {row} of the text, but {table.shape[0]} rows; "
                "tokenizer and weights do not belong together"
            )
        return UsageError(
            f"{name}: position {row} is asked for, but there are {table.shape[0]}; "
            "pass a smaller seq_len"
        )


def read_rows(checkpoint: Checkpoint, name: str, rows: torch.Tensor) -> torch.Tensor:
    """Read some rows of a stored 2-D tensor, neighbours in one go.

    Parameters
    ----------
    rows
        int64, ascending, without repetition.

    Returns
    -------
    torch.Tensor
        Shape (len(rows), width), dtype as stored.
    """
    from layerstats.checkpoint.reader import TORCH_DTYPES

    entry = checkpoint.index.entries[name]
    dtype = TORCH_DTYPES.get(entry.dtype)
    if dtype is None:
        msg = f"{entry.file}: tensor {name!r} has dtype {entry.dtype}, which torch cannot hold"
        raise CheckpointError(msg)
    height, width = entry.shape
    row_bytes = entry.nbytes // height
    result = torch.empty((len(rows), width), dtype=dtype)
    view = result.view(torch.uint8).numpy().reshape(-1).data
    numbers = rows.tolist()
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        first = 0
        while first < len(numbers):
            last = first
            while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
                last += 1
            done, stop = first * row_bytes, (last + 1) * row_bytes
            while done < stop:
                position = entry.offset + numbers[first] * row_bytes + done - first * row_bytes
                count = os.preadv(descriptor, [view[done:stop]], position)
                if count == 0:
                    msg = f"{entry.file}: ends in the middle of tensor {name!r}; download it again"
                    raise CheckpointError(msg)
                done += count
            first = last + 1
    finally:
        os.close(descriptor)
    return result
