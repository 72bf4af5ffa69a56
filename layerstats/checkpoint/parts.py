"""Which part of a model a parameter belongs to: a block, embedding, head, norm, or none of these.

Names and shapes in, names out: the same words for a checkpoint's tensors and for the parameters of
a model in memory. `stacks.py` finds the blocks, `layout.py` the embedding and the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerstats.checkpoint.entry import TensorEntry
from layerstats.checkpoint.index import CheckpointIndex
from layerstats.checkpoint.layout import find_layout
from layerstats.checkpoint.roles import skip_reason
from layerstats.checkpoint.stacks import Blocks, canonical_names, find_stacks

__all__ = ["Parts", "find_parts"]


@dataclass(frozen=True)
class Parts:
    """The names of all parameters, sorted by what they belong to.

    `layers[l]` are those of block l, norms and biases too; `outside` has the keys `embed`, `head`,
    `norm` and `other` (towers, projectors, task heads, multi-token prediction). `matrices` are the
    attention and MLP weights of all blocks (experts too, no router), which a low-rank method takes.
    """

    layers_path: str | None
    layers: tuple[tuple[str, ...], ...]
    outside: Mapping[str, tuple[str, ...]]
    matrices: frozenset[str] = frozenset()


def find_parts(shapes: Mapping[str, tuple[int, ...]]) -> Parts:
    """Sort the parameters of a model by the part they belong to.

    Parameters
    ----------
    shapes
        Name and shape of every parameter; of a tied one, every name.

    Returns
    -------
    Parts
        Each name is in it once.

    Examples
    --------
    >>> shapes = {f"model.layers.{n}.mlp.up.weight": (8, 4) for n in range(2)}
    >>> shapes |= {f"model.layers.{n}.mlp.down.weight": (4, 8) for n in range(2)}
    >>> shapes |= {"model.embed_tokens.weight": (16, 4), "model.norm.weight": (4,)}
    >>> parts = find_parts(shapes | {"lm_head.weight": (16, 4), "score.weight": (2, 4)})
    >>> parts.layers_path, parts.layers[1]
    ('model.layers', ('model.layers.1.mlp.up.weight', 'model.layers.1.mlp.down.weight'))
    >>> parts.outside["norm"], parts.outside["other"]
    (('model.norm.weight',), ('score.weight',))
    """
    names = canonical_names(shapes)
    main, others = find_stacks({names[name]: shape for name, shape in shapes.items()})
    entries = {
        name: TensorEntry(name, Path(), "F32", tuple(shape), 0, 0) for name, shape in shapes.items()
    }
    layout = find_layout(CheckpointIndex(Path(), Path(), "safetensors", entries, (), ""))
    kinds = {
        _owner(names[matrix.name]): matrix.kind
        for matrix in layout.matrices
        if matrix.layer is None
    }
    table = layout.token_embedding
    towers = tuple(_towers(main, others, None if table is None else names[table.name]))
    places = _places(main)
    layers: list[list[str]] = [[] for _ in range(layout.num_layers)]
    outside: dict[str, list[str]] = {"embed": [], "head": [], "norm": [], "other": []}
    for name, canonical in names.items():
        layer = _layer(canonical, places)
        if layer is not None:
            layers[layer].append(name)
        else:
            outside[_group(canonical, shapes[name], kinds, towers)].append(name)
    return Parts(
        layout.layers_path,
        tuple(map(tuple, layers)),
        {group: tuple(members) for group, members in outside.items()},
        frozenset(
            matrix.name
            for matrix in layout.matrices
            if matrix.layer is not None
            and matrix.kind in ("attn", "mlp")
            and not _is_router(matrix.module)
        ),
    )


def _is_router(module: str) -> bool:
    """Tell a map that chooses experts (gate, shared_expert_gate, router) from their weights."""
    return "router" in module or module.rpartition(".")[2].endswith("gate")


def _places(main: list[Blocks]) -> dict[str, int]:
    """Map the prefix of every block to its layer."""
    places: dict[str, int] = {}
    layer = 0
    for stack in main:
        for at, prefix in enumerate(stack.prefixes):
            places[prefix] = layer
            if stack.beside is not None:
                places[stack.beside.prefixes[at]] = layer
            layer += 1
    return places


def _layer(name: str, places: Mapping[str, int]) -> int | None:
    parts = name.split(".")
    for position, part in enumerate(parts[:-1], start=1):
        if part.isdecimal() and (layer := places.get(".".join(parts[:position]))) is not None:
            return layer
    return None


def _owner(name: str) -> str:
    """Return what a weight and its bias have in common."""
    return name.removesuffix(".weight").removesuffix(".bias")


def _group(
    name: str, shape: tuple[int, ...], kinds: Mapping[str, str], towers: tuple[str, ...]
) -> str:
    if (name + ".").startswith(towers):
        return "other"
    if (kind := kinds.get(_owner(name))) is not None:
        return kind
    # The bias of a norm is part of it.
    weight = _owner(name) + ".weight" if name.endswith(".bias") else name
    is_norm = skip_reason(weight, "F32", shape, in_block=False) == "norm weight"
    return "norm" if is_norm else "other"


def _towers(main: list[Blocks], others: list[Blocks], table: str | None) -> Iterator[str]:
    """Yield the shortest prefixes that hold a further stack and what belongs to it alone."""
    anchors = [stack.prefixes[0].split(".") for stack in main]
    anchors += [table.split(".")] if table else []
    for stack in others:
        for prefix in stack.prefixes:
            parts = prefix.split(".")
            shared = max(_shared(parts, anchor) for anchor in anchors)
            yield ".".join(parts[: shared + 1]) + "."


def _shared(one: list[str], other: list[str]) -> int:
    """Count the words that two paths begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
