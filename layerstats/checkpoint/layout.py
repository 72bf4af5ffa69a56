"""What every tensor of a checkpoint is: names and shapes -> layer, module, kind, orientation.

`find_layout(index, config)` sorts all tensors into weight matrices (one `Matrix` a row of
matrices.csv, always (out_features, in_features)) and the skipped ones, each with its reason. Only
headers are looked at; a config.json helps (tied embeddings, layer count) but is not needed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layerstats.checkpoint.entry import UNREADABLE_KEY
from layerstats.checkpoint.index import CheckpointIndex, TensorEntry
from layerstats.checkpoint.quantised import packed_reason, scale_name
from layerstats.checkpoint.roles import (
    is_loss,
    matrix_kind,
    skip_reason,
    split_expert,
    turned_conv1d,
    turned_experts,
)
from layerstats.checkpoint.stacks import (
    Blocks,
    canonical_names,
    find_stacks,
    find_token_table,
    is_token_table,
)

__all__ = ["Layout", "Matrix", "Skipped", "Stack", "find_layout"]

_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|output_layer|decoder_head|unembed|output|proj_out"
    r"|predictions\.decoder)$"
)
#: Architectures that end before the words, so that a missing head says nothing about ties.
_HEADLESS = re.compile(
    r"(?<!LMHead)(?<!DoubleHeads)(?<!EncoderDecoder)(?<!MT)(Model|Encoder|Backbone|Transformer)$"
    r"|Classification|ForCTC|Retriev|QuestionAnswering|MultipleChoice|Detection|Segmentation"
)
_NUMBER = re.compile(r"(?:(?<=\.)|^)[0-9]+(?=\.)")
_EMBEDDING = re.compile(r"emb|wte|wpe|(^|\.)shared$")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix, seen as (out_features, in_features): a row of matrices.csv.

    `name` is the tensor as stored; `layer` counts blocks from 0 and is None outside them; `module`
    is the short name without the expert's number; `transposed` says the file holds (in, out),
    `fused` that the matrix is slice `expert` of a 3-D tensor; `scale_name` names the tensor that an
    8-bit matrix must be multiplied with.
    """

    name: str
    layer: int | None
    module: str
    expert: int | None
    kind: str
    shape: tuple[int, int]
    dtype: str
    nbytes: int
    transposed: bool = False
    fused: bool = False
    scale_name: str | None = None

    @property
    def key(self) -> str:
        """Unique name in the checkpoint: the tensor's, for a slice with the expert's number."""
        return f"{self.name}[{self.expert}]" if self.fused else self.name

    @property
    def path(self) -> str:
        """Unique name inside the layer, `mlp.experts.3.gate_proj`."""
        if self.expert is None:
            return self.module
        if "expert" not in self.module:
            return f"{self.module}[{self.expert}]"
        return re.sub(r"([^.]*expert[^.]*)", rf"\1.{self.expert}", self.module, count=1)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor that is in no matrix statistic, and why.

    `lost` tells weights that ought to be measured and cannot be (an unknown dtype, packed data)
    from biases, norm vectors and buffers, which are left out on purpose.
    """

    name: str
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """A block list that is not among the model's layers: a tower, multi-token prediction."""

    path: str
    num_blocks: int
    parameters: int


@dataclass(frozen=True)
class Layout:
    """The sorted tensors of a checkpoint: `matrices` by layer, embedding first, head last."""

    num_layers: int
    layers_path: str | None
    tied_embeddings: bool
    matrices: tuple[Matrix, ...]
    skipped: tuple[Skipped, ...]
    stacks: tuple[Stack, ...] = ()
    notes: tuple[str, ...] = ()

    def of_layer(self, layer: int) -> tuple[Matrix, ...]:
        """Return the matrices of one block."""
        return tuple(matrix for matrix in self.matrices if matrix.layer == layer)

    @property
    def token_embedding(self) -> Matrix | None:
        """The token embedding: of the matrices called embeddings, the one with most rows."""
        tables = [matrix for matrix in self.matrices if matrix.kind == "embed"]
        tokens = [matrix for matrix in tables if is_token_table(matrix.module, matrix.shape)]
        return max(tokens or tables, key=lambda matrix: matrix.shape[0], default=None)

    @property
    def head(self) -> Matrix | None:
        """The output head if the file stores one."""
        return next((matrix for matrix in self.matrices if matrix.kind == "head"), None)


def find_layout(index: CheckpointIndex, config: Mapping[str, Any] | None = None) -> Layout:
    """Sort the tensors of a checkpoint by what they are.

    Parameters
    ----------
    index
        From `read_index`.
    config
        The content of config.json if there is one.

    Returns
    -------
    Layout
        The same for every shard layout of the same tensors.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = {"h.0.fc.weight": (8, 4), "h.1.fc.weight": (8, 4), "h.0.ln.bias": (4,)}
    >>> entries = {n: TensorEntry(n, Path("x"), "F32", s, 0, 0) for n, s in names.items()}
    >>> layout = find_layout(CheckpointIndex(Path("x"), Path("x"), "safetensors", entries, (), ""))
    >>> layout.num_layers, layout.layers_path, [skip.reason for skip in layout.skipped]
    (2, 'h', ['bias'])
    """
    names = canonical_names({name: entry.shape for name, entry in index.entries.items()})
    shapes = {names[name]: entry.shape for name, entry in index.entries.items()}
    main, others = find_stacks(shapes)
    table = find_token_table(main + others, shapes)
    place = _places(main)
    located = {name: _locate(new, place) for name, new in names.items()}
    width = _hidden_size(index.entries, located, shapes[table][1] if table else 0)
    aside = tuple(prefix + "." for stack in others for prefix in stack.prefixes)
    unreadable = index.metadata.get(UNREADABLE_KEY, {})
    matrices: list[Matrix] = []
    skipped: list[Skipped] = []
    for name, entry in index.entries.items():
        canonical, (layer, rest) = names[name], located[name]
        # A GGUF tensor is read as float32 whatever its type, but for those that its reader names.
        dtype = "F32" if index.format == "gguf" else entry.dtype
        reason = skip_reason(canonical, dtype, entry.shape, in_block=layer is not None)
        reason = (
            reason
            or unreadable.get(name)
            or packed_reason(entry, index.entries)
            or _no_experts(entry, width)
        )
        if reason:
            skipped.append(Skipped(name, reason, lost=is_loss(reason)))
            continue
        kind = matrix_kind(rest) if layer is not None else "other"
        if layer is None and not (aside and canonical.startswith(aside)):
            kind = "embed" if canonical == table else _kind_outside(rest)
            rest = rest.removeprefix("model.").removeprefix("transformer.")
        matrices += _rows(entry, layer, rest, kind, scale_name(entry, index.entries))
    matrices = _mark_head(_turn(matrices, index.entries, width))
    matrices.sort(key=_order)
    return Layout(
        num_layers=sum(len(stack.prefixes) for stack in main),
        layers_path=" + ".join(_shown(stack) for stack in main) or None,
        tied_embeddings=_tied(matrices, table, config),
        matrices=tuple(matrices),
        skipped=tuple(sorted(skipped, key=lambda skip: skip.name)),
        stacks=tuple(Stack(stack.path, len(stack.prefixes), stack.parameters) for stack in others),
        notes=tuple(_notes(main, config)),
    )


def _shown(stack: Blocks) -> str:
    return stack.path if stack.beside is None else f"{stack.path} + {stack.beside.path}"


def _places(main: list[Blocks]) -> dict[str, tuple[int, str]]:
    """Map the prefix of a block to its layer and to what its module names begin with.

    Names begin behind the block's number; where two lists make up the blocks, with the list's own
    name.
    """
    blocks = [(stack, at) for stack in main for at in range(len(stack.prefixes))]
    places: dict[str, tuple[int, str]] = {}
    for layer, (stack, at) in enumerate(blocks):
        places[stack.prefixes[at]] = layer, ""
        if stack.beside is not None:
            for part in (stack, stack.beside):
                places[part.prefixes[at]] = layer, part.path.rpartition(".")[2] + "."
    return places


def _locate(name: str, places: Mapping[str, tuple[int, str]]) -> tuple[int | None, str]:
    """Return the layer of a tensor and its name inside the layer."""
    for number in _NUMBER.finditer(name):
        if (place := places.get(name[: number.end()])) is not None:
            return place[0], place[1] + name[number.end() + 1 :]
    return None, name


def _kind_outside(name: str) -> str:
    """Tell embeddings from whatever else is outside the blocks."""
    module = name.removesuffix(".weight")
    leaf = module.rpartition(".")[2].lower()
    return "embed" if _EMBEDDING.search(leaf) and not _HEAD.search(module) else "other"


def _rows(
    entry: TensorEntry, layer: int | None, rest: str, kind: str, scale: str | None
) -> Iterator[Matrix]:
    """Yield the matrix of a 2-D tensor, or each expert of a 3-D one, as stored."""
    module, expert = split_expert(rest.removesuffix(".weight"))
    rows, cols = entry.shape[-2:]
    matrix = Matrix(
        name=entry.name,
        layer=layer,
        module=module,
        expert=expert,
        kind=kind,
        shape=(rows, cols),
        dtype=entry.dtype,
        nbytes=entry.nbytes,
        scale_name=scale,
    )
    if len(entry.shape) == 2:
        yield matrix
        return
    count = entry.shape[0]
    for number in range(count):
        yield dataclasses.replace(matrix, expert=number, nbytes=entry.nbytes // count, fused=True)


def _hidden_size(
    entries: Mapping[str, TensorEntry], located: Mapping[str, tuple[int | None, str]], table: int
) -> int:
    """Return the size that the blocks' matrices share most, the token embedding's on a tie."""
    sizes = Counter(
        size
        for name, entry in entries.items()
        if located[name][0] is not None and len(entry.shape) == 2 and not name.endswith("bias")
        for size in set(entry.shape)
    )
    return max(sizes, key=lambda size: (sizes[size], size == table, -size), default=table)


def _no_experts(entry: TensorEntry, width: int) -> str | None:
    """Refuse a 3-D tensor that is one linear map with its heads apart, as XLNet has them."""
    if len(entry.shape) == 3 and entry.shape[0] == width and "expert" not in entry.name:
        return f"3-D tensor of shape {list(entry.shape)} that is no stack of experts"
    return None


def _turn(matrices: list[Matrix], entries: Mapping[str, TensorEntry], width: int) -> list[Matrix]:
    """Give every matrix the orientation (out_features, in_features)."""
    biases = {
        name.removesuffix(".bias"): entry.shape[0]
        for name, entry in entries.items()
        if name.endswith(".bias") and len(entry.shape) == 1
    }
    conv1d = turned_conv1d(
        (matrix.name, matrix.shape, biases.get(matrix.name.removesuffix(".weight")))
        for matrix in matrices
        if matrix.layer is not None and not matrix.fused
    )
    fused = turned_experts(
        ((matrix.name, matrix.shape) for matrix in matrices if matrix.fused), width
    )
    turned = conv1d | fused
    return [
        dataclasses.replace(matrix, shape=matrix.shape[::-1], transposed=True)
        if matrix.name in turned
        else matrix
        for matrix in matrices
    ]


def _mark_head(matrices: list[Matrix]) -> list[Matrix]:
    """Find the output head: by name, else a matrix outside the blocks shaped as the embedding."""
    outside = [matrix for matrix in matrices if matrix.layer is None]
    tables = [matrix.shape for matrix in outside if matrix.kind == "embed"]
    vocabulary = max(tables, default=None)
    candidates = sorted(
        (matrix for matrix in outside if matrix.kind == "other"), key=lambda matrix: matrix.name
    )
    named = [matrix for matrix in candidates if _HEAD.search(matrix.module)]
    same_shape = [matrix for matrix in candidates if matrix.shape == vocabulary]
    head = next(iter(named or same_shape), None)
    return [
        dataclasses.replace(matrix, kind="head") if matrix is head else matrix
        for matrix in matrices
    ]


def _order(matrix: Matrix) -> tuple[int, int, str, int, str]:
    """Sort embedding, blocks by depth, head, others; inside a layer by name and expert."""
    outside = {"embed": 0, "head": 2, "other": 3}
    group = outside[matrix.kind] if matrix.layer is None else 1
    expert = -1 if matrix.expert is None else matrix.expert
    return group, matrix.layer or 0, matrix.module, expert, matrix.name


def _tied(matrices: list[Matrix], table: str | None, config: Mapping[str, Any] | None) -> bool:
    """Tell whether input and output embedding are one tensor.

    Only one of the two is stored, although the architecture has both; or both are, and the config
    says that they are tied. A nested config may speak of another part of the model, so it does not
    outweigh a head that is missing.
    """
    head = any(matrix.kind == "head" for matrix in matrices)
    said = _from_config(config, "tie_word_embeddings")
    if table and head:
        return bool(said)
    if not (table or head):
        return False
    architectures = (config or {}).get("architectures") or []
    if architectures:
        return not any(_HEADLESS.search(str(name)) for name in architectures)
    return said is not False


def _from_config(config: Mapping[str, Any] | None, key: str) -> Any:
    """Look a key up in config.json, in the text part first where a multimodal model has one."""
    if not config:
        return None
    for part in ("text_config", "llm_config", "language_config"):
        nested = config.get(part)
        if isinstance(nested, Mapping) and key in nested:
            return nested[key]
    return config.get(key)


def _notes(main: list[Blocks], config: Mapping[str, Any] | None) -> Iterator[str]:
    if not main:
        yield "no list of blocks found in the tensor names; only whole-model matrices are listed"
        return
    stored = sum(len(stack.prefixes) for stack in main)
    said = _from_config(config, "num_hidden_layers")
    if isinstance(said, int) and len(main) == 1 and said > stored:
        gaps = _gaps(main[0])
        if stored == 1 and not gaps:
            yield f"the file stores 1 block, which the model uses {said} times: one layer"
        elif gaps:
            yield f"blocks {gaps} of {main[0].path} hold no weight matrix; layers count the others"
        else:
            yield f"config.json says {said} blocks, the file holds {stored}"
    if len(main) == 2:
        first, second = (len(stack.prefixes) for stack in main)
        yield f"encoder-decoder: layers 0-{first - 1} encoder, {first}-{first + second - 1} decoder"


def _gaps(stack: Blocks) -> list[int]:
    numbers = [int(re.findall(r"\d+", prefix)[-1]) for prefix in stack.prefixes]
    return sorted(set(range(numbers[-1] + 1)) - set(numbers))
