"""How far weights went: two sets of named tensors compared bit by bit, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from layerstats.errors import CheckpointError, MissingError, choices

__all__ = ["Movement", "movement"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Movement:
    """How far a part of the model went.

    Attributes
    ----------
    moved : bool
        Whether a single bit of it changed.
    update_norm : float
        ||W_end - W_start||_F over all its tensors, float64, unit of the weights.
    relative_update : float or None
        The same over ||W_start||_F; None where that is 0.
    tensors, tensors_moved : int
    dtype : str
        Of its first tensor, at the end.
    """

    moved: bool
    update_norm: float
    relative_update: float | None
    tensors: int
    tensors_moved: int
    dtype: str


def movement(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], names: Sequence[str]
) -> Movement:
    r"""Compare some tensors before and after training.

    .. math:: \|\Delta\|_F = \sqrt{\textstyle\sum_p \|W_p^{end} - W_p^{start}\|_F^2}

    Parameters
    ----------
    start, end
        Name -> tensor, any dtype and device; each name is asked for once. A start of another dtype
        is compared as the end's dtype has it.
    names
        What belongs together.

    Raises
    ------
    MissingError
        A name is missing in `start` or `end`.
    CheckpointError
        It has another shape there.

    Examples
    --------
    >>> went = movement({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 3.0])}, ["w"])
    >>> went.moved, went.update_norm
    (True, 2.0)
    """
    update: list[float] = []
    before: list[float] = []
    moved = 0
    dtype = ""
    for name in names:
        one, other = _pair(start, end, name)
        dtype = dtype or str(other.dtype).removeprefix("torch.")
        changed = False
        for old, new in _chunks(one, other):
            # Bits and not values: NaN is not equal to itself, and -0.0 is equal to 0.0.
            changed = changed or not torch.equal(old.view(torch.uint8), new.view(torch.uint8))
            wide = old.to(torch.float64)
            before.append(float(wide.square().sum()))
            update.append(float((new.to(torch.float64) - wide).square_().sum()))
        moved += changed
    size, norm = _root(before), _root(update)
    relative = norm / size if size else None
    return Movement(moved > 0, norm, relative, len(names), moved, dtype)


def _root(squares: list[float]) -> float:
    # fsum refuses an infinity beside its opposite, and weights may have become NaN.
    return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else float("nan")


def _pair(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    for weights, when in ((start, "start"), (end, "end")):
        if name not in weights:
            msg = f"weights at the {when}: {choices('parameter', name, weights)[:300]}"
            raise MissingError(msg)
    one, other = start[name].detach(), end[name].detach()
    if one.shape != other.shape:
        msg = (
            f"{name} has shape {list(other.shape)}, at the start it had {list(one.shape)}; compare "
            "with the model that the run began with"
        )
        raise CheckpointError(msg)
    return one.to(other.dtype), other


def _chunks(one: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield both tensors in pieces: float64 copies of an embedding would be large."""
    flat, other_flat = one.reshape(-1), other.reshape(-1)
    for begin in range(0, flat.numel(), _CHUNK):
        new = other_flat[begin : begin + _CHUNK]
        yield flat[begin : begin + _CHUNK].to(new.device), new
