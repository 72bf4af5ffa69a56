"""How measured values become the two tables and the metadata of `LayerStats`.

Rows come in the order of the layout, whatever the order in which layers were read or resumed, so
that the same checkpoint and the same question always give the same files.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from layerstats.checkpoint.layout import Layout, Matrix
from layerstats.metrics import Metric, MetricOptions, Values, combine
from layerstats.stats import (
    FORMAT,
    LAYER_COLUMNS,
    MATRIX_COLUMNS,
    VERSION,
    column_unit,
    is_whole,
    lod_column,
    whole_numbers,
)

if TYPE_CHECKING:
    from layerstats.calibration import ActivationNorms
    from layerstats.checkpoint.lora import Adapter
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["LayerResult", "MatrixResult", "metadata", "tabulate"]

_IDENTITY = (*LAYER_COLUMNS, *MATRIX_COLUMNS, "status")


@dataclass(frozen=True)
class MatrixResult:
    """Values measured on one matrix (or one block as a whole), and why others are missing."""

    values: Values
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerResult:
    """Values of one layer: of the block as a whole and, by `Matrix.key`, of its matrices.

    `redraws` has, by column of the block, the values for other choices of calibration windows.
    """

    block: Values
    matrices: dict[str, MatrixResult] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    redraws: dict[str, list[float]] = field(default_factory=dict)


#: Words that say something of one matrix and nothing of a block.
_OF_MATRICES_ALONE = ("alpha_precision",)

#: A block of which nothing can be measured, such as packed weights in one layer.
_NOTHING = LayerResult({}, problems=("holds no matrix that can be measured",))


def tabulate(
    layout: Layout,
    results: Mapping[int | None, LayerResult],
    metrics: Sequence[Metric],
    options: MetricOptions,
    *,
    trust: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of matrices and of layers."""
    rows = [_matrix_row(matrix, results) for matrix in layout.matrices]
    ends = ("", "_lo", "_hi") if trust else ("",)
    lods = options.m if any(found.name == "lod" for found in metrics) else ()
    block_columns = [lod_column(m) + end for m in lods for end in ends]
    measured = [column for row in rows for column in row if column not in _IDENTITY]
    matrix_columns = list(dict.fromkeys(measured))
    own = [
        column
        for column in matrix_columns
        if not column.startswith("lod_m") and column not in _OF_MATRICES_ALONE
    ]
    layers = [
        _layer_row(
            layer,
            [row for row in rows if row["layer"] == layer],
            results.get(layer, _NOTHING),
            own,
            block_columns,
        )
        for layer in range(layout.num_layers)
    ]
    for kind, matrix in (("embed", layout.token_embedding), ("head", layout.head)):
        if matrix is not None:
            row = next(row for row in rows if row["name"] == matrix.name)
            layers.append(_outside_row(kind, row))
    layer_table = pd.DataFrame(layers).reindex(
        columns=[*LAYER_COLUMNS, *own, *block_columns, "status"]
    )
    matrix_table = pd.DataFrame(rows).reindex(columns=[*MATRIX_COLUMNS, *matrix_columns, "status"])
    return _typed(matrix_table), _typed(layer_table)


def _matrix_row(matrix: Matrix, results: Mapping[int | None, LayerResult]) -> dict[str, Any]:
    result = results[matrix.layer].matrices[matrix.key]
    rows, cols = matrix.shape
    return {
        "layer": matrix.layer,
        "name": matrix.name,
        "module": matrix.module,
        "expert": matrix.expert,
        "kind": matrix.kind,
        "rows": rows,
        "cols": cols,
        "dtype": matrix.dtype,
        "parameters": rows * cols,
        **result.values,
        "status": "; ".join(result.problems) or "ok",
    }


def _layer_row(
    layer: int,
    rows: Sequence[dict[str, Any]],
    result: LayerResult,
    own: Sequence[str],
    block_columns: Sequence[str],
) -> dict[str, Any]:
    problems = [
        *result.problems,
        *(f"{row['module']}: {row['status']}" for row in rows if row["status"] != "ok"),
    ]
    return {
        "layer": layer,
        "name": f"layer {layer}",
        "kind": "block",
        "num_matrices": len(rows),
        "parameters": sum(row["parameters"] for row in rows),
        **combine(rows, own),
        **{column: result.block.get(column, float("nan")) for column in block_columns},
        "status": "; ".join(problems) or "ok",
    }


def _outside_row(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Show embedding or head in layers.csv: the norms, and nothing that belongs to blocks."""
    values = {column: value for column, value in row.items() if column not in MATRIX_COLUMNS}
    identity = {
        "layer": None,
        "name": row["name"],
        "kind": kind,
        "num_matrices": 1,
        "parameters": row["parameters"],
    }
    return identity | values


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Give columns the types that reading the file back gives."""
    of_matrices = "module" in table.columns
    for column in table.columns:
        if column in ("alpha_flag", "alpha_precision") and of_matrices:
            table[column] = table[column].fillna("")
        elif is_whole(column, table):
            table[column] = whole_numbers(table[column])
    return table


def metadata(
    checkpoint: Checkpoint,
    identity: Mapping[str, str],
    asked: Mapping[str, Any],
    seen: ActivationNorms | None,
    adapter: Adapter | None,
    matrices: pd.DataFrame,
    seconds: float,
) -> dict[str, Any]:
    """Return the page that says what was measured, how, and what was left out."""
    layout, index = checkpoint.layout, checkpoint.index
    measured = [column for column in matrices.columns if column not in _IDENTITY]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created_by": f"layerstats {importlib.metadata.version('layerstats')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "checkpoint": {
            "path": str(checkpoint.path),
            "id": (checkpoint.config or {}).get("_name_or_path") or checkpoint.path.resolve().name,
            "format": index.format,
            "files": [{"name": file.name, "bytes": file.stat().st_size} for file in index.files],
            "header_hash": identity["headers"],
            "weights_sample_hash": identity["weights"],
            "parameters": sum(matrix.shape[0] * matrix.shape[1] for matrix in layout.matrices),
            "num_layers": layout.num_layers,
            "layers_path": layout.layers_path,
            "tied_embeddings": layout.tied_embeddings,
        },
        "metrics": list(asked["metrics"]),
        "parameters": {
            "m": asked["m"],
            "lower_bound": asked["lower_bound"],
            "precision": asked["precision"],
            "histogram_bins": 100,
        },
        "calibration": seen.info if seen else None,
        "unseen": seen.unseen if seen else {},
        "adapter": _adapter_page(adapter, matrices),
        "skipped": [
            {"name": skip.name, "reason": skip.reason, "lost": skip.lost} for skip in layout.skipped
        ],
        "stacks": [{"path": stack.path, "num_blocks": stack.num_blocks} for stack in layout.stacks],
        "notes": list(layout.notes),
        "units": {column: column_unit(column) for column in measured},
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("torch", "numpy", "scipy", "transformers")
            },
        },
    }


def _adapter_page(adapter: Adapter | None, matrices: pd.DataFrame) -> dict[str, Any] | None:
    if adapter is None:
        return None
    left_out = [*adapter.skipped, *adapter.unmatched(matrices["name"])]
    return {
        "path": str(adapter.path),
        "pairs": len(adapter.pairs),
        "skipped": [{"name": skip.name, "reason": skip.reason} for skip in left_out],
        "notes": list(adapter.notes),
    }
