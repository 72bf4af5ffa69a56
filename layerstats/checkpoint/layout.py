"""What every tensor of a checkpoint is: names and shapes -> layer, module, expert, kind, orientation.

`find_layout(index, config)` sorts all tensors into weight matrices (one `Matrix` a row of matrices.csv, always
(out_features, in_features)) and the skipped ones, each with its reason. Only headers are looked at; a
config.json helps (tied embeddings, layer count) but is not needed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layerstats.checkpoint.index import CheckpointIndex, TensorEntry
from layerstats.checkpoint.roles import (
    MEASURED_DTYPES,
    is_loss,
    matrix_kind,
    skip_reason,
    split_expert,
    turned_conv1d,
    turned_experts,
)
from layerstats.checkpoint.stacks import Blocks, canonical_names, find_stacks, is_token_table

__all__ = ["Layout", "Matrix", "Skipped", "Stack", "find_layout"]

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|decoder_head|unembed|output|proj_out)$")
_EMBEDDING = re.compile(r"emb|wte|wpe|(^|\.)shared$")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix, seen as (out_features, in_features): a row of matrices.csv.

    `name` is the tensor as stored; `layer` counts blocks from 0 and is None outside them; `module` is the short
    name without the expert's number; `transposed` says the file holds (in, out), `fused` that the matrix is slice
    `expert` of a 3-D tensor; `scale_name` names the tensor that an 8-bit matrix must be multiplied with.
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
        """Unique name in the checkpoint: the tensor's, with the expert's number behind it for a slice."""
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

    `lost` tells weights that ought to be measured and cannot be (an unknown dtype, packed data) from biases, norm
    vectors and buffers, which are left out on purpose.
    """

    name: str
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """A block list that does not count as the model's layers: a tower, multi-token-prediction blocks."""

    path: str
    num_blocks: int
    parameters: int


@dataclass(frozen=True)
class Layout:
    """The sorted tensors of a checkpoint: `matrices` by layer (embedding first, head and others last)."""

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
    place = _places(main)
    aside = tuple(prefix + "." for stack in others for prefix in stack.prefixes)
    matrices: list[Matrix] = []
    skipped: list[Skipped] = []
    for name, entry in index.entries.items():
        canonical = names[name]
        layer, rest = _locate(canonical, place)
        # A GGUF tensor is read as float32 whatever its type, but for those that its reader names.
        dtype = "F32" if index.format == "gguf" else entry.dtype
        reason = skip_reason(canonical, dtype, entry.shape, in_block=layer is not None)
        reason = reason or index.metadata.get("layerstats.gguf_unreadable", {}).get(name)
        reason = reason or _missing_scale(entry, index.entries)
        if reason:
            skipped.append(Skipped(name, reason, lost=is_loss(reason)))
            continue
        in_tower = canonical.startswith(aside) if aside else False
        matrices += _rows(entry, layer, rest, in_tower, _scale_of(entry, index.entries))
    width = _hidden_size(matrices)
    turned = _turn(matrices, index.entries, width)
    turned = _mark_head(turned)
    turned.sort(key=_order)
    return Layout(
        num_layers=sum(len(stack.prefixes) for stack in main),
        layers_path=" + ".join(stack.path for stack in main) or None,
        tied_embeddings=_tied(turned, config),
        matrices=tuple(turned),
        skipped=tuple(sorted(skipped, key=lambda skip: skip.name)),
        stacks=tuple(Stack(stack.path, len(stack.prefixes), stack.parameters) for stack in others),
        notes=tuple(_notes(main, config)),
    )


def _places(main: list[Blocks]) -> dict[str, int]:
    prefixes = [prefix for stack in main for prefix in stack.prefixes]
    return {prefix: layer for layer, prefix in enumerate(prefixes)}


def _locate(name: str, place: Mapping[str, int]) -> tuple[int | None, str]:
    """Return the layer of a tensor and its name inside the layer."""
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit() and (layer := place.get(".".join(parts[: position + 1]))) is not None:
            return layer, ".".join(parts[position + 1 :])
    return None, name


def _rows(
    entry: TensorEntry, layer: int | None, rest: str, in_tower: bool, scale: str | None
) -> Iterator[Matrix]:
    """Yield the matrix of a 2-D tensor, or each expert of a 3-D one, as stored."""
    module, expert = split_expert(rest.removesuffix(".weight"))
    kind = matrix_kind(module) if layer is not None else "other"
    if layer is None and not in_tower:
        module = module.removeprefix("model.").removeprefix("transformer.")
        if _EMBEDDING.search(module.rpartition(".")[2].lower()) and not _HEAD.search(module):
            kind = "embed"
    if len(entry.shape) == 2:
        shape = (entry.shape[0], entry.shape[1])
        yield Matrix(
            entry.name, layer, module, expert, kind, shape, entry.dtype, entry.nbytes, scale_name=scale
        )
        return
    count, rows, cols = entry.shape
    for number in range(count):
        yield Matrix(
            entry.name, layer, module, number, kind, (rows, cols), entry.dtype, entry.nbytes // count, fused=True
        )


def _hidden_size(matrices: list[Matrix]) -> int:
    """Return the width of the model: the token embedding's, else what the block matrices share most."""
    tables = [matrix.shape for matrix in matrices if matrix.kind == "embed"]
    if tables:
        return max(tables)[1]
    sizes = Counter(size for matrix in matrices if matrix.layer == 0 for size in set(matrix.shape))
    return max(sizes, key=lambda size: (sizes[size], -size), default=0)


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
    """Find the output head: by name, else the matrix outside the blocks with the token embedding's shape."""
    outside = [matrix for matrix in matrices if matrix.layer is None]
    tables = [matrix.shape for matrix in outside if matrix.kind == "embed"]
    vocabulary = max(tables, default=None)
    candidates = [matrix for matrix in outside if matrix.kind == "other"]
    named = [matrix for matrix in candidates if _HEAD.search(matrix.module)]
    same_shape = [matrix for matrix in candidates if matrix.shape == vocabulary]
    head = next(iter(named or same_shape), None)
    return [
        dataclasses.replace(matrix, kind="head") if matrix is head else matrix for matrix in matrices
    ]


def _order(matrix: Matrix) -> tuple[int, int, str, int]:
    """Sort embedding, blocks by depth, head, others; inside a layer by name and expert."""
    group = {"embed": 0, "head": 2, "other": 3}.get(matrix.kind, 1) if matrix.layer is None else 1
    return group, matrix.layer or 0, matrix.module, matrix.expert if matrix.expert is not None else -1


def _tied(matrices: list[Matrix], config: Mapping[str, Any] | None) -> bool:
    """Tell whether input and output embedding are one tensor.

    Only one of the two is stored, and the config does not say otherwise; or the config says so.
    """
    kinds = {matrix.kind for matrix in matrices}
    said = _from_config(config, "tie_word_embeddings")
    if "embed" in kinds and "head" in kinds:
        return bool(said)
    headless = _from_config(config, "architectures") or []
    if any(str(name).endswith("Model") for name in headless) and said is None:
        return False
    return bool(kinds & {"embed", "head"}) and said is not False


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
        if stored == 1:
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


def _scale_of(entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> str | None:
    """Name the scale of an 8-bit matrix (`weight_scale_inv`, `weight_scale`) if the file holds one."""
    if entry.dtype not in ("F8_E4M3", "F8_E5M2", "I8"):
        return None
    return next((entry.name + end for end in ("_scale_inv", "_scale") if entry.name + end in entries), None)


def _missing_scale(entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> str | None:
    """Refuse integer matrices that stand for other numbers which cannot be worked out here."""
    if not entry.dtype.startswith(("I", "U")) or entry.dtype not in MEASURED_DTYPES:
        return None
    base = entry.name.removesuffix(".weight")
    packed = (".absmax", ".quant_map", ".nested_absmax", ".SCB")
    if any(entry.name + end in entries or base + end in entries for end in packed):
        return f"quantised weights stored as {entry.dtype}; dequantise the checkpoint first"
    return None
