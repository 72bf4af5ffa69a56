"""One tensor in a file: the word that every module of this room shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["UNREADABLE_KEY", "TensorEntry"]

#: Where the metadata of an index holds tensors that are listed but cannot be read: name -> reason.
UNREADABLE_KEY = "layerstats.gguf_unreadable"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint file: `nbytes` bytes at byte `offset` of `file`, not read yet.

    `dtype` is the format's own name (`BF16`; in GGUF files `Q4_1`).
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
