"""`layerstats inspect`: what is in a checkpoint, from its headers alone.

Neither torch nor matplotlib is imported here, so it answers at once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerstats.cli.console import amount, emit_json, print_table

if TYPE_CHECKING:
    from layerstats.checkpoint.index import CheckpointIndex
    from layerstats.checkpoint.layout import Layout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(inspect)


def inspect(
    ckpt: str = typer.Argument(
        ..., metavar="CKPT", help="Directory, .safetensors, .index.json or .gguf file."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Show layers, matrices, dtypes and bytes of a checkpoint, and what will be skipped and why."""
    from layerstats.checkpoint.index import read_index, read_json
    from layerstats.checkpoint.layout import find_layout

    index = read_index(ckpt)
    config_file = index.directory / "config.json"
    config = read_json(config_file) if config_file.is_file() else None
    layout = find_layout(index, config if isinstance(config, dict) else None)
    if json:
        emit_json(_document(index, layout))
    else:
        _print(Path(ckpt), index, layout)


def _document(index: CheckpointIndex, layout: Layout) -> dict[str, Any]:
    return {
        "path": str(index.path),
        "format": index.format,
        "num_layers": layout.num_layers,
        "layers_path": layout.layers_path,
        "tied_embeddings": layout.tied_embeddings,
        "parameters": _parameters(index),
        "bytes": sum(entry.nbytes for entry in index.entries.values()),
        "header_hash": index.header_hash,
        "files": [str(file) for file in index.files],
        "notes": list(layout.notes),
        "stacks": [
            {"path": stack.path, "num_blocks": stack.num_blocks, "parameters": stack.parameters}
            for stack in layout.stacks
        ],
        "matrices": [
            {
                "name": matrix.name,
                "layer": matrix.layer,
                "module": matrix.module,
                "expert": matrix.expert,
                "kind": matrix.kind,
                "shape": list(matrix.shape),
                "dtype": matrix.dtype,
                "bytes": matrix.nbytes,
                "transposed": matrix.transposed,
                "fused": matrix.fused,
            }
            for matrix in layout.matrices
        ],
        "skipped": [
            {"name": skip.name, "reason": skip.reason, "lost": skip.lost} for skip in layout.skipped
        ],
    }


def _parameters(index: CheckpointIndex) -> int:
    from math import prod

    return sum(prod(entry.shape) for entry in index.entries.values())


def _print(path: Path, index: CheckpointIndex, layout: Layout) -> None:
    size = sum(entry.nbytes for entry in index.entries.values())
    where = f" at {layout.layers_path}" if layout.layers_path else ""
    tied = "tied" if layout.tied_embeddings else "not tied"
    print(
        f"{path}: {layout.num_layers} layers{where}, {amount(_parameters(index))} "
        f"parameters, {amount(size, 'B')}"
    )
    print(
        f"{index.format}, {len(index.files)} file(s), {len(index.entries)} tensors, "
        f"embeddings {tied}"
    )
    for text in layout.notes:
        print(f"note: {text}")
    for stack in layout.stacks:
        print(
            f"other stack: {stack.path}, {stack.num_blocks} blocks, "
            f"{amount(stack.parameters)} parameters"
        )
    print()
    # Matrices of the same module in several layers share a line.
    groups: dict[tuple[Any, ...], list[int]] = {}
    for matrix in layout.matrices:
        key = (matrix.module, matrix.kind, f"{matrix.shape[0]} x {matrix.shape[1]}", matrix.dtype)
        groups.setdefault(key, []).append(matrix.layer if matrix.layer is not None else -1)
    print_table(
        ("module", "kind", "out x in", "dtype", "layers", "matrices"),
        [(*key, _ranges(layers), len(layers)) for key, layers in groups.items()],
    )
    if layout.skipped:
        reasons = Counter(skip.reason for skip in layout.skipped)
        first = {skip.reason: skip.name for skip in reversed(layout.skipped)}
        print("\nnot measured:")
        print_table(
            ("tensors", "reason", "such as"),
            [(count, reason, first[reason]) for reason, count in reasons.most_common()],
        )


def _ranges(layers: list[int]) -> str:
    """Write layer numbers as ranges: [0, 1, 2, 5] -> '0-2, 5'."""
    numbers = sorted(set(layers))
    if numbers == [-1]:
        return "-"
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
