"""What goes into each weight: sums of squares of the inputs of every linear map of a block.

A `Recorder` watches one block while it runs. It sees every torch function called and picks those
products (`linear`, `matmul`, `bmm`, `addmm`, …) in which one factor lies in the memory of a
parameter of the block; the other factor is the input. So Linear, Conv1D, bare router weights and
each expert of a 3-D parameter are caught by one mechanism, and nothing of a model's code has to be
known. What no product used is missing from `harvest`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

__all__ = ["Recorder", "Seen", "Slot", "row_square_sums"]

#: Products by name: where the two factors stand among the positional arguments, and how they are
#: called.
_PRODUCTS: dict[str, tuple[int, tuple[str, str]]] = {
    "linear": (0, ("input", "weight")),
    "matmul": (0, ("input", "other")),
    "mm": (0, ("input", "mat2")),
    "bmm": (0, ("input", "mat2")),
    "addmm": (1, ("mat1", "mat2")),
    "baddbmm": (1, ("batch1", "batch2")),
}
#: Calls that copy a weight to another dtype or device before it is used (routers in half
#: precision).
_CASTS = frozenset(
    ("to", "type", "float", "double", "half", "bfloat16", "type_as", "contiguous", "clone")
)
#: Elements squared at a time: the float64 copy stays at 2 MiB, which caches hold.
_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Slot:
    """One weight matrix of a block: a 2-D parameter, or one expert (row) of a 3-D parameter."""

    parameter: str
    expert: int | None


@dataclass(slots=True)
class Seen:
    """What a slot saw: sums of squares per input feature, tokens, whether it lies as (in, out).

    `groups` has the sums of each group of windows, shape (groups, features), where they are kept.
    """

    sums: NDArray[np.float64]
    tokens: int
    transposed: bool
    groups: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a factor lies: parameter, element offset in it, shape and strides of the view."""

    parameter: str
    owner: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def row_square_sums(rows: torch.Tensor) -> torch.Tensor:
    """Return the sums over all rows of the squared entries, sum_i x_ij^2, accumulated in float64.

    Parameters
    ----------
    rows
        Tensor, shape (..., features), any floating dtype.

    Returns
    -------
    torch.Tensor
        Shape (features,), float64, non-negative.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    total = torch.zeros(flat.shape[1], dtype=torch.float64, device=flat.device)
    step = max(1, _CHUNK_ELEMENTS // max(1, flat.shape[1]))
    for chunk in torch.split(flat, step):
        # float64 input would be squared in place otherwise.
        wide = chunk.to(torch.float64, copy=True)
        total += wide.mul_(wide).sum(0)
    return total


class Recorder(TorchFunctionMode):
    """Watch the products of one block; enter it around each call of the block.

    Parameters
    ----------
    parameters
        Name and tensor of each parameter of the block (1-D ones are not watched).
    groups
        How many groups of windows to keep sums of, beside those of all windows; 1 for none.

    Attributes
    ----------
    group : int
        The group of the window that runs; who enters the recorder sets it.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], *, groups: int = 1) -> None:
        super().__init__()
        self.group = 0
        self._groups = groups
        self._by_group: dict[Slot, torch.Tensor] = {}
        self._by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor in parameters.items():
            if tensor.dim() in (2, 3):
                storage = tensor.untyped_storage().data_ptr()
                self._by_storage.setdefault(storage, []).append((name, tensor))
        self._copies: dict[int, tuple[weakref.ref[torch.Tensor], _Place]] = {}
        self._parts: dict[Slot, dict[tuple[int, ...], tuple[torch.Tensor, int, bool]]] = {}
        self._odd: dict[str, str] = {}
        self._last: list[tuple[tuple[Any, ...], torch.Tensor, torch.Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            self._product(name, args, kwargs)
        result = func(*args, **kwargs)
        if name in _CASTS and args and isinstance(result, torch.Tensor) and result is not args[0]:
            place = self._place(args[0])
            if place is not None and result.stride() == place.strides:
                self._copies[result.untyped_storage().data_ptr()] = (weakref.ref(result), place)
        elif name == "einsum":
            self._note_einsum(args)
        return result

    def harvest(self) -> tuple[dict[Slot, Seen], dict[str, str]]:
        """Return what each slot saw, and why a parameter that was used has no sums.

        Returns
        -------
        seen, odd
            Sums by slot; and parameter name -> reason for uses that are no plain linear map.
        """
        seen: dict[Slot, Seen] = {}
        odd = dict(self._odd)
        for slot, parts in self._parts.items():
            sums, tokens, transposed = next(iter(parts.values()))
            first = sums.cpu().numpy()
            # A fused weight used slice by slice (q, k, v): all must have seen the same input.
            if any(
                not np.array_equal(other.cpu().numpy(), first, equal_nan=True)
                or turned != transposed
                for other, _, turned in parts.values()
            ):
                odd[slot.parameter] = "its parts are used with different inputs"
                continue
            kept = self._by_group.get(slot)
            groups = None if kept is None else kept.cpu().numpy()
            seen[slot] = Seen(first, tokens, transposed, groups)
        seen = {slot: value for slot, value in seen.items() if slot.parameter not in odd}
        return seen, odd

    def close(self) -> None:
        """Let go of the block's parameters and of the last inputs."""
        self._by_storage.clear()
        self._copies.clear()
        self._last.clear()
        self._parts.clear()
        self._by_group.clear()

    def _note_einsum(self, args: tuple[Any, ...]) -> None:
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        for operand in operands:
            place = self._place(operand)
            if place is not None:
                self._odd[place.parameter] = "it is used by einsum, which is not followed"

    def _product(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        first, names = _PRODUCTS[name]
        left, right = (
            args[first + i]
            if len(args) > first + i
            else kwargs.get(names[i], kwargs.get("tensor2"))
            for i in (0, 1)
        )
        place = self._place(right)
        if place is not None:
            self._use(place, left, input_axis=-1 if name == "linear" else -2)
            return
        place = self._place(left)
        # W @ x: the inputs are the columns of x.
        if place is not None and isinstance(right, torch.Tensor):
            columns = right.transpose(-1, -2) if right.dim() > 1 else right
            self._use(place, columns, input_axis=-1)

    def _place(self, tensor: Any) -> _Place | None:
        """Say in which parameter a tensor lies, None if in none."""
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.dim() == 0:
            return None
        storage = tensor.untyped_storage().data_ptr()
        address = tensor.data_ptr()
        for name, owner in self._by_storage.get(storage, ()):
            offset = address - owner.data_ptr()
            if 0 <= offset < owner.numel() * owner.element_size():
                offset //= owner.element_size()
                return _Place(name, owner, offset, tuple(tensor.shape), tensor.stride())
        known = self._copies.get(storage)
        copy = known[0]() if known is not None else None
        # The address may have been given to another tensor since the copy died.
        if known is None or copy is None or copy.untyped_storage().data_ptr() != storage:
            return None
        place = known[1]
        offset = place.offset + (address - copy.data_ptr()) // copy.element_size()
        return _Place(place.parameter, place.owner, offset, tuple(tensor.shape), tensor.stride())

    def _use(self, place: _Place, rows: Any, *, input_axis: int) -> None:
        """Add the input `rows` of a product whose other factor lies at `place`."""
        owner = place.owner
        if not isinstance(rows, torch.Tensor) or len(place.shape) < 2:
            self._odd[place.parameter] = "it is used as a vector"
            return
        if len(place.shape) > owner.dim():
            self._odd[place.parameter] = "it is used reshaped into several matrices"
            return
        width = place.shape[input_axis]
        transposed = _is_transposed(owner, place, input_axis)
        if width != owner.shape[-2 if transposed else -1] or rows.shape[-1] != width:
            self._odd[place.parameter] = "only a part of its input features is used at a time"
            return
        if len(place.shape) == 3:
            self._use_stack(place, rows, transposed)
            return
        expert, inside = None, place.offset
        if owner.dim() == 3:
            expert, inside = divmod(place.offset, owner.stride(0))
        part = (inside, *place.shape)
        self._add(
            Slot(place.parameter, expert), part, self._square_sums(rows), _count(rows), transposed
        )

    def _use_stack(self, place: _Place, rows: torch.Tensor, transposed: bool) -> None:
        """Add the inputs of a product with several experts at once.

        Such models (Llama 4) send every token to every expert and zero the rows of those that were
        not routed: a row of zeros adds nothing to the sums and is not counted as a token.
        """
        count = place.shape[0]
        batch = np.broadcast_shapes(tuple(rows.shape[:-2]), (count,))
        rows = rows.expand(*batch, *rows.shape[-2:])
        first = place.offset // place.owner.stride(0)
        for index in range(count):
            mine = rows.select(-3, index).reshape(-1, rows.shape[-1])
            tokens = int((mine != 0).any(-1).sum())
            slot = Slot(place.parameter, first + index)
            self._add(slot, (0, *place.shape[1:]), row_square_sums(mine), tokens, transposed)

    def _add(
        self, slot: Slot, part: tuple[int, ...], sums: torch.Tensor, tokens: int, transposed: bool
    ) -> None:
        parts = self._parts.setdefault(slot, {})
        if part in parts:
            before, count, _ = parts[part]
            parts[part] = (before + sums, count + tokens, transposed)
        else:
            parts[part] = (sums, tokens, transposed)
        # All parts of a weight used slice by slice must see the same input: one tells of all.
        if self._groups > 1 and part == next(iter(parts)):
            if slot not in self._by_group:
                self._by_group[slot] = sums.new_zeros(self._groups, len(sums))
            self._by_group[slot][self.group] += sums

    def _square_sums(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sums of `rows`, computed once for q, k, v or gate and up (same input)."""
        key = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, rows._version)
        for known, _, sums in self._last:
            if known == key:
                return sums
        sums = row_square_sums(rows)
        # Holding `rows` keeps its address from being given to another tensor.
        self._last = [*self._last[-1:], (key, rows, sums)]
        return sums


def _count(rows: torch.Tensor) -> int:
    return rows.numel() // max(1, rows.shape[-1])


def _is_transposed(owner: torch.Tensor, place: _Place, input_axis: int) -> bool:
    """Tell whether the input features run along the last but one axis of the parameter."""
    last, before = owner.stride(-1), owner.stride(-2)
    step = place.strides[input_axis]
    other = place.strides[-1 if input_axis == -2 else -2]
    # A dimension of size 1 has an arbitrary stride: then the other axis decides.
    if place.shape[input_axis] == 1:
        return other == last
    return step == before and step != last
