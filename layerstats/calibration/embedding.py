"""Embedding tables stay in the file: only the rows of the tokens at hand are read.

`RowFetch` watches the model outside its blocks and serves each `embedding(ids, table)` whose table
has no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from layerstats.errors import CheckpointError, LayerstatsError, UsageError

__all__ = ["RowFetch"]


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
            "pass a smaller seq_len (--seq-len)"
        )
