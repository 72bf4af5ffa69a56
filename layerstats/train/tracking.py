"""Layer metrics of a model in training: what `layerstats measure` says, of tensors in memory.

Here belongs the way from named tensors to the registered metrics and back to a line of the log; the
numbers themselves are those of metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from layerstats.checkpoint.entry import TensorEntry
from layerstats.checkpoint.index import CheckpointIndex
from layerstats.checkpoint.layout import Layout, Matrix, find_layout
from layerstats.errors import LayerstatsError, UsageError
from layerstats.metrics import METRICS, MatrixView, Metric, Values, combine, resolve

__all__ = ["check_metrics", "layout_of", "track"]

_NAN = float("nan")


def check_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Look up metrics that need nothing but weights; no name gives none.

    Raises
    ------
    UsageError
        An unknown name, or a metric that needs activations or an adapter's files; the message lists
        those that can be tracked.

    Examples
    --------
    >>> [metric.name for metric in check_metrics(["stable_rank", "frobenius_norm"])]
    ['frobenius_norm', 'stable_rank']
    >>> check_metrics(["lod"])
    Traceback (most recent call last):
    ...
    layerstats.errors.UsageError: track: 'lod' needs activations, which training does not ...
    """
    if not names:
        return ()
    chosen = tuple(resolve(names))
    for found in chosen:
        if found.needs:
            allowed = [one.name for one in METRICS.values() if not one.needs]
            msg = (
                f"track: {found.name!r} needs {found.needs}, which training does not keep; "
                f"available: {', '.join(sorted(allowed))}"
            )
            raise UsageError(msg)
    return chosen


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Sort the parameters of a model in memory as `open_checkpoint` sorts those of a file.

    Parameters
    ----------
    shapes
        Name and shape of every parameter; of a tied one, one name or every name.

    Examples
    --------
    >>> shapes = {f"model.layers.{n}.mlp.up_proj.weight": (8, 4) for n in range(2)}
    >>> [matrix.path for matrix in layout_of(shapes).matrices]
    ['mlp.up_proj', 'mlp.up_proj']
    """
    entries = {
        name: TensorEntry(name, Path(), "F32", tuple(shape), 0, 0) for name, shape in shapes.items()
    }
    return find_layout(CheckpointIndex(Path(), Path(), "safetensors", entries, (), ""))


@torch.no_grad()
def track(
    weights: Mapping[str, torch.Tensor], layout: Layout, metrics: Sequence[str]
) -> dict[str, Any]:
    """Measure metrics of weights in memory, by layer, as the log's entry of kind "track" has them.

    Parameters
    ----------
    weights
        Name -> tensor, any dtype and device. Each is asked for once, one layer at a time, so a
        mapping may make them on the way (weights with adapters added in).
    layout : Layout
        From `layout_of`.
    metrics
        Names that `check_metrics` accepts.

    Returns
    -------
    dict
        Column -> {"layers": [value a block], "embed": value, "head": value}, in the column's unit;
        None where there is no value: a weight is not finite, the metric is not one of embedding and
        head, or the head is the embedding. The column is named like the metric; a metric without
        such a column gives all its own.

    Raises
    ------
    UsageError
        As `check_metrics`.

    Examples
    --------
    >>> weights = {f"model.layers.{n}.mlp.up.weight": torch.full((2, 2), n + 1.0) for n in (0, 1)}
    >>> layout = layout_of({name: tuple(one.shape) for name, one in weights.items()})
    >>> track(weights, layout, ["frobenius_norm"])
    {'frobenius_norm': {'layers': [2.0, 4.0], 'embed': None, 'head': None}}
    """
    chosen = check_metrics(metrics)
    by_layer: list[list[dict[str, Any]]] = []
    columns: dict[str, dict[str, None]] = {found.name: {} for found in chosen}
    for layer in range(layout.num_layers):
        by_layer.append(list(_rows(weights, layout.of_layer(layer), chosen, columns)))
    ends = {
        kind: _end(weights, matrix, [found for found in chosen if found.outside], columns)
        for kind, matrix in _ends(weights, layout).items()
    }
    shown = [name for found in chosen for name in _shown(found.name, list(columns[found.name]))]
    blocks = [combine(rows, shown) for rows in by_layer]
    return {
        name: {
            "layers": [_number(block[name]) for block in blocks],
            "embed": _number(ends.get("embed", {}).get(name, _NAN)),
            "head": _number(ends.get("head", {}).get(name, _NAN)),
        }
        for name in shown
    }


def _rows(
    weights: Mapping[str, torch.Tensor],
    matrices: Iterable[Matrix],
    metrics: Sequence[Metric],
    columns: dict[str, dict[str, None]],
) -> Iterator[dict[str, Any]]:
    """Yield the values of a block's matrices, in the order of the layout."""
    held: tuple[str, torch.Tensor] | None = None
    for matrix in matrices:
        if held is None or held[0] != matrix.name:  # the experts of one tensor follow each other
            held = matrix.name, weights[matrix.name].detach()
        values = _measure(_oriented(held[1], matrix), matrix, metrics, columns)
        yield {"parameters": matrix.shape[0] * matrix.shape[1], **values}


def _oriented(tensor: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Return a matrix as (out_features, in_features)."""
    weight = tensor[matrix.expert] if matrix.fused else tensor
    return weight.T.contiguous() if matrix.transposed else weight


def _measure(
    weight: torch.Tensor,
    matrix: Matrix,
    metrics: Sequence[Metric],
    columns: dict[str, dict[str, None]],
) -> Values:
    """Run metrics on a matrix; one that cannot be measured has no value there.

    As in a measurement of files, where NaN in one matrix does not end the run either: the loop
    itself stops at a loss that is not a number.
    """
    view = MatrixView(matrix, weight)
    values: Values = {}
    for found in metrics:
        try:
            own = found.function(view)
        except LayerstatsError:
            continue
        columns[found.name] |= dict.fromkeys(own)
        values |= own
    return values


def _shown(metric: str, columns: list[str]) -> list[str]:
    """Choose what of a metric goes into the log; a metric that had no value stands there too."""
    return [metric] if metric in columns or not columns else columns


def _ends(weights: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, Matrix]:
    """Return embedding and head; a head that is the embedding is none, as in a file."""
    embed, head = layout.token_embedding, layout.head
    found = {"embed": embed, "head": head}
    if embed is not None and head is not None:
        one, other = weights[embed.name], weights[head.name]
        if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
            del found["head"]
    return {kind: matrix for kind, matrix in found.items() if matrix is not None}


def _end(
    weights: Mapping[str, torch.Tensor],
    matrix: Matrix,
    metrics: Sequence[Metric],
    columns: dict[str, dict[str, None]],
) -> Values:
    weight = _oriented(weights[matrix.name].detach(), matrix)
    return _measure(weight, matrix, metrics, columns) if metrics else {}


def _number(value: Any) -> float | None:
    return float(value) if value == value and abs(value) != float("inf") else None
