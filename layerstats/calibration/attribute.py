"""Sums of squares by model parameter -> by matrix of the checkpoint.

Mostly a parameter is one stored tensor under another name. Where transformers joins, splits or
turns tensors while loading (per-expert tensors -> one 3-D parameter, fused qkv -> three), the way
of each input feature is found by sending numbered tensors through the same conversion: nothing
about the conversions themselves is assumed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.calibration import hf
from layerstats.calibration.record import Seen, Slot
from layerstats.calibration.stack import Stack

if TYPE_CHECKING:
    from layerstats.checkpoint.layout import Matrix

__all__ = ["attribute", "complete_experts"]

Columns = NDArray[np.int64]
#: Where the input features of one stored matrix ended up: (number of the made parameter, expert,
#: its columns).
Way = tuple[int, int | None, Columns]
_ELEMENTS = 1 << 22
_MIXED = "transformers mixes its input features while loading, or it was read the wrong way round"
_UNUSED = "no linear map of the block used it"


@dataclass
class Attribution:
    """Sums of squares and tokens by `Matrix.key`, and why a matrix of a block has none.

    `groups` has the sums of each group of windows, shape (groups, in_features), where they are
    kept.
    """

    sums: dict[str, NDArray[np.float64]]
    tokens: dict[str, int]
    unseen: dict[str, str]
    groups: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ways:
    """The parameters made by one conversion, and the ways of each matrix that went into it."""

    names: list[str]
    of_matrix: list[list[Way]]


def complete_experts(totals: dict[Slot, Seen], shapes: Mapping[str, torch.Size]) -> None:
    """Add zeros for each expert of a 3-D parameter that no token reached while others were."""
    reached = {slot.parameter: seen for slot, seen in totals.items() if slot.expert is not None}
    for name, example in reached.items():
        transposed, groups = example.transposed, example.groups
        count, rows, cols = shapes[name]
        width = rows if transposed else cols
        for expert in range(count):
            none = None if groups is None else np.zeros((len(groups), width))
            totals.setdefault(Slot(name, expert), Seen(np.zeros(width), 0, transposed, none))


def attribute(stack: Stack, totals: Mapping[Slot, Seen], odd: Mapping[str, str]) -> Attribution:
    """Give each matrix of the blocks the sums of squares of its input features.

    Parameters
    ----------
    stack
        The model and its plan; no block need be loaded.
    totals
        What each parameter saw.
    odd
        Parameter -> why it has no sums although it was used.

    Returns
    -------
    Attribution
        Each matrix of the layout that belongs to a block is in `sums` or in `unseen`.
    """
    result = Attribution({}, {}, {})
    converted: dict[str, list[Matrix]] = defaultdict(list)
    matrices = [matrix for matrix in stack.checkpoint.layout.matrices if matrix.layer is not None]
    for matrix in matrices:
        target = stack.plan.target.get(matrix.name)
        if target is None:
            result.unseen[matrix.key] = "the model built from config.json has no place for it"
        elif stack.plan.pattern[matrix.name] is not None:
            converted[target].append(matrix)
        else:
            slot = Slot(target, matrix.expert if matrix.fused else None)
            _assign(result, matrix, slot, totals, odd)
    known: dict[tuple[object, ...], _Ways] = {}
    for target, group in converted.items():
        sources = stack.plan.sources(target)
        rank = {name: number for number, name in enumerate(sources)}
        group = sorted(group, key=lambda matrix: (rank[matrix.name], matrix.expert or 0))
        ways = _find_ways(stack, target, sources, group, totals, known)
        _assign_converted(result, ways, group, totals, odd)
    _unreached_modules(result, matrices)
    return result


def _assign(
    result: Attribution,
    matrix: Matrix,
    slot: Slot,
    totals: Mapping[Slot, Seen],
    odd: Mapping[str, str],
) -> None:
    seen = totals.get(slot)
    if seen is None:
        result.unseen[matrix.key] = odd.get(slot.parameter, _UNUSED)
    elif seen.transposed != matrix.transposed or len(seen.sums) != matrix.shape[1]:
        result.unseen[matrix.key] = _other_way(matrix)
    else:
        result.sums[matrix.key], result.tokens[matrix.key] = seen.sums, seen.tokens
        if seen.groups is not None:
            result.groups[matrix.key] = seen.groups


def _other_way(matrix: Matrix) -> str:
    used = "(out, in)" if matrix.transposed else "(in, out)"
    return f"the model uses it as {used}, its name and shape were read the other way round"


def _assign_converted(
    result: Attribution,
    ways: _Ways,
    group: list[Matrix],
    totals: Mapping[Slot, Seen],
    odd: Mapping[str, str],
) -> None:
    """Assign the matrices that transformers converts together."""
    for matrix, found in zip(group, ways.of_matrix, strict=True):
        seen = [
            (total, columns)
            for number, expert, columns in found
            if (total := totals.get(Slot(ways.names[number], expert))) is not None
        ]
        vectors = [total.sums[columns] for total, columns in seen]
        if not seen:
            reasons = [odd[name] for name in ways.names if name in odd]
            used = any(Slot(name, None) in totals or Slot(name, 0) in totals for name in ways.names)
            reasons.append(_MIXED if used else _UNUSED)
            result.unseen[matrix.key] = reasons[0]
        elif any(not np.array_equal(vectors[0], other) for other in vectors[1:]):
            result.unseen[matrix.key] = "its parts are used with different inputs"
        else:
            total, columns = seen[0]
            result.sums[matrix.key], result.tokens[matrix.key] = vectors[0], total.tokens
            if total.groups is not None:
                result.groups[matrix.key] = total.groups[:, columns]


def _find_ways(
    stack: Stack,
    target: str,
    sources: list[str],
    group: list[Matrix],
    totals: Mapping[Slot, Seen],
    known: dict[tuple[object, ...], _Ways],
) -> _Ways:
    """Find the ways of a group of matrices; blocks that are alike share one search."""
    prefix = stack.block_prefix(target)
    lies = {
        s.parameter: seen.transposed for s, seen in totals.items() if s.parameter.startswith(prefix)
    }
    shapes = [stack.checkpoint.index.entries[name].shape for name in sources]
    key = (
        target.removeprefix(prefix),
        tuple(shapes),
        tuple(stack.plan.pattern[name] for name in sources),
        tuple((matrix.shape, matrix.transposed) for matrix in group),
        frozenset((name.removeprefix(prefix), turned) for name, turned in lies.items()),
    )
    if key not in known:
        try:
            made = hf.convert(stack.model, stack.plan, _numbered(stack, sources, group))
        except Exception:  # a conversion may refuse whole numbers: then nobody knows the way
            made = {}
        names = sorted(made)
        known[key] = _Ways(
            [name.removeprefix(prefix) for name in names], _trace(made, names, lies, group)
        )
    found = known[key]
    return _Ways([prefix + name for name in found.names], found.of_matrix)


def _numbered(stack: Stack, sources: list[str], group: list[Matrix]) -> dict[str, torch.Tensor]:
    """Return for each source a tensor with the number of the input feature in place of each weight.

    Matrix i of the group owns the numbers from i * width on, so a number tells matrix and feature.
    """
    width = max(matrix.shape[1] for matrix in group)
    entries = stack.checkpoint.index.entries
    tensors: dict[str, torch.Tensor] = {}
    for name in sources:
        rows = [(i, matrix) for i, matrix in enumerate(group) if matrix.name == name]
        parts = []
        for i, matrix in rows:
            features = torch.arange(matrix.shape[1], dtype=torch.int32) + i * width
            # Expanded views cost nothing until the conversion joins them.
            whole = features.expand(matrix.shape)
            parts.append(whole.T if matrix.transposed else whole)
        if not parts:
            tensors[name] = torch.full(entries[name].shape, -1, dtype=torch.int32)
        else:
            tensors[name] = torch.stack(parts) if rows[0][1].fused else parts[0]
    return tensors


def _trace(
    made: Mapping[str, torch.Tensor],
    names: list[str],
    transposed: Mapping[str, bool],
    group: list[Matrix],
) -> list[list[Way]]:
    """Find for each matrix the parameters, experts and columns its numbers went to."""
    width = max(matrix.shape[1] for matrix in group)
    found: list[list[Way]] = [[] for _ in group]
    for number, name in enumerate(names):
        if name not in transposed:
            continue
        tensor = made[name].transpose(-1, -2) if transposed[name] else made[name]
        experts = tensor.unbind(0) if tensor.dim() == 3 else (tensor,)
        for index, rows in enumerate(experts):
            columns = _columns(rows, len(group) * width)
            expert = index if tensor.dim() == 3 else None
            for i in sorted(set((np.flatnonzero(columns >= 0) // width).tolist())):
                own = columns[i * width : i * width + group[i].shape[1]]
                if (own >= 0).all():
                    found[i].append((number, expert, own))
    return found


def _columns(rows: torch.Tensor, count: int) -> Columns:
    """Return for each number the column of `rows` it stands in; -1: none, -2: several."""
    place = torch.full((count,), -1, dtype=torch.int64)
    step = max(1, _ELEMENTS // max(1, rows.shape[1]))
    for chunk in torch.split(rows, step):
        numbers = chunk.long()
        column = torch.arange(rows.shape[1]).expand_as(numbers)
        valid = numbers >= 0
        numbers, column = numbers[valid], column[valid]
        fresh = place[numbers] == -1
        place[numbers[fresh]] = column[fresh]
        place[numbers[place[numbers] != column]] = -2
    return place.numpy()


def _unreached_modules(result: Attribution, matrices: list[Matrix]) -> None:
    """Give zeros to experts that are modules of their own and were not called while others were."""
    seen = {(m.layer, m.module) for m in matrices if m.expert is not None and m.key in result.sums}
    for matrix in matrices:
        idle = result.unseen.get(matrix.key) == _UNUSED
        if idle and matrix.expert is not None and (matrix.layer, matrix.module) in seen:
            del result.unseen[matrix.key]
            result.sums[matrix.key] = np.zeros(matrix.shape[1])
            result.tokens[matrix.key] = 0
            if result.groups:
                groups = len(next(iter(result.groups.values())))
                result.groups[matrix.key] = np.zeros((groups, matrix.shape[1]))
