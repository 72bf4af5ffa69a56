"""A GGUF file read as a checkpoint: an index from the header alone, tensors one by one as float32.

Names are Hugging Face's where `gguf_names.py` knows them, and values are what the converter of
llama.cpp was given: its row order of q and k and its 1 + w norms are undone. A tensor of all
experts of a block becomes one entry per expert (a byte range of its own). Nothing is mapped into
memory: a read opens the file, reads that tensor's bytes in pieces and closes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from layerstats.checkpoint.entry import UNREADABLE_KEY, TensorEntry
from layerstats.checkpoint.gguf_header import GgufHeader, GgufTensor, read_array, read_header
from layerstats.checkpoint.gguf_names import EXPERT, heads_to_unpermute, norm_is_shifted, translate
from layerstats.errors import CheckpointError, MissingError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ARRAYS_KEY",
    "NAMES_KEY",
    "gguf_package",
    "read_gguf_array",
    "read_gguf_index",
    "read_gguf_tensor",
]

#: metadata: translated name -> name in the file, for the tensors that were renamed.
NAMES_KEY = "layerstats.gguf_names"
#: metadata: key of an array too long to keep -> its length; `read_gguf_array` reads it.
ARRAYS_KEY = "layerstats.gguf_arrays"

_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_PLAIN = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}
#: Elements dequantised at once: bounds the working memory beside the tensor that is returned (16
#: MB).
_PIECE_ELEMENTS = 1 << 20


def read_gguf_index(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Read names, types, shapes and byte ranges of a GGUF file, and its key-values.

    Parameters
    ----------
    path
        A `.gguf` file; any part `NAME-00001-of-00003.gguf` of a split one stands for all parts.

    Returns
    -------
    entries
        By Hugging Face name, in file order; `dtype` is the quantisation type (`Q4_1`), `shape` is
        (out, in) and `nbytes` counts the stored bytes.
    metadata
        The key-values of the (first) file but for arrays of more than 1,024 elements, and under
        `NAMES_KEY`, `UNREADABLE_KEY`, `ARRAYS_KEY` what was renamed, cannot be dequantised, was
        left out.

    Raises
    ------
    MissingError
        The package gguf or a part of a split file is missing.
    CheckpointError
        The file is truncated, damaged or inconsistent.
    """
    gguf = gguf_package()
    first = read_header(path)
    headers = {path: first}
    if _split_count(first) > 1:
        headers = {part: read_header(part) for part in _parts(path, _split_count(first))}
        first = next(iter(headers.values()))
    architecture = str(first.values.get("general.architecture", ""))
    metadata: dict[str, Any] = dict(first.values)
    entries: dict[str, TensorEntry] = {}
    names: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for file, header in headers.items():
        for entry, stored, reason in _entries_of(gguf, file, header, architecture):
            if entry.name in entries:
                msg = (
                    f"{file}: two tensors stand for {entry.name!r}; the file is damaged or was "
                    "edited"
                )
                raise CheckpointError(msg)
            entries[entry.name] = entry
            if stored != entry.name:
                names[entry.name] = stored
            if reason:
                unreadable[entry.name] = reason
    metadata[NAMES_KEY] = names
    metadata[UNREADABLE_KEY] = unreadable
    metadata[ARRAYS_KEY] = {key: length for key, (_, length) in first.long_arrays.items()}
    return entries, metadata


def read_gguf_array(path: Path, key: str) -> list[Any]:
    """Read one array of the key-values, however long (`tokenizer.ggml.tokens`, the merges).

    Raises
    ------
    MissingError
        The file has no such array.
    """
    header = read_header(path)
    if (count := _split_count(header)) > 1:
        path = _parts(path, count)[0]
    return read_array(path, key)


def read_gguf_tensor(entry: TensorEntry, metadata: Mapping[str, Any]) -> torch.Tensor:
    """Read and dequantise one tensor.

    Parameters
    ----------
    entry, metadata
        From `read_gguf_index`.

    Returns
    -------
    torch.Tensor, shape `entry.shape`, float32
        The values of the Hugging Face checkpoint (up to quantisation noise): rows of q and k in
        their original order, Gemma's norms without the 1 that was added.

    Raises
    ------
    CheckpointError
        The type cannot be dequantised, the file ends early, or the row order cannot be undone.

    Notes
    -----
    Memory beside the result: one piece of about 16 MB, or one head while rows are put back in
    order.
    """
    import torch

    reason = metadata.get(UNREADABLE_KEY, {}).get(entry.name)
    if reason:
        msg = f"{entry.file}: tensor {entry.name!r} {reason}"
        raise CheckpointError(msg)
    tensor = torch.empty(entry.shape, dtype=torch.float32)
    if tensor.numel():
        _dequantize_into(entry, tensor)
    heads = heads_to_unpermute(entry.name, metadata)
    if heads is not None:
        _unpermute(entry, tensor, heads)
    if norm_is_shifted(entry.name, metadata):
        tensor -= 1.0
    return tensor


def gguf_package() -> ModuleType:
    """Return the package gguf, or raise a `MissingError` that says how to get it."""
    try:
        import gguf
    except ImportError as error:
        msg = "reading GGUF needs the package 'gguf'; pip install 'layerstats[gguf]'"
        raise MissingError(msg) from error
    package: ModuleType = gguf
    return package


def _split_count(header: GgufHeader) -> int:
    count = header.values.get("split.count", 1)
    return count if isinstance(count, int) else 1


def _parts(path: Path, count: int) -> list[Path]:
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        msg = (
            f"{path}: one of {count} parts of a split file, but not named "
            f"NAME-00001-of-{count:05d}.gguf; rename it back"
        )
        raise CheckpointError(msg)
    parts = [
        path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    for part in parts:
        if not part.exists():
            msg = f"{part}: part of a split GGUF file is missing; download all {count} parts"
            raise MissingError(msg)
    return parts


def _entries_of(
    gguf: ModuleType, file: Path, header: GgufHeader, architecture: str
) -> Iterator[tuple[TensorEntry, str, str]]:
    """Yield (entry, name in the file, why it is unreadable or "") in the order of the bytes."""
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    seen: set[str] = set()
    end, previous = 0, ""
    for position, tensor in enumerate(ordered):
        if tensor.name in seen:
            msg = f"{file}: tensor {tensor.name!r} is there twice; the file is damaged"
            raise CheckpointError(msg)
        seen.add(tensor.name)
        limit = ordered[position + 1].offset if position + 1 < len(ordered) else header.file_size
        dtype, nbytes, reason = _stored_size(gguf, file, tensor, limit)
        if tensor.offset < end:
            msg = f"{file}: tensors {previous!r} and {tensor.name!r} overlap; the file is damaged"
            raise CheckpointError(msg)
        end, previous = tensor.offset + nbytes, tensor.name
        if end > header.file_size:
            msg = (
                f"{file}: truncated, tensor {tensor.name!r} ends at byte {end} of "
                f"{header.file_size}; "
                "download the file again"
            )
            raise CheckpointError(msg)
        for name, shape, offset, part_bytes in _slices(
            translate(architecture, tensor.name), tensor, nbytes
        ):
            yield TensorEntry(name, file, dtype, shape, part_bytes, offset), tensor.name, reason


def _stored_size(
    gguf: ModuleType, file: Path, tensor: GgufTensor, limit: int
) -> tuple[str, int, str]:
    """Return the type's name, the stored bytes and why it cannot be dequantised ("" if it can)."""
    try:
        kind = gguf.GGMLQuantizationType(tensor.type_id)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        reason = (
            f"is of GGML type {tensor.type_id}, which this version of gguf does not know; upgrade "
            "gguf"
        )
        return f"GGML_{tensor.type_id}", max(0, limit - tensor.offset), reason
    columns = tensor.shape[-1] if tensor.shape else 1
    if columns % block:
        msg = (
            f"{file}: tensor {tensor.name!r} of type {kind.name} has rows of {columns}, no "
            f"multiple of {block}"
        )
        raise CheckpointError(msg)
    reason = ""
    if kind.name not in _PLAIN and not _can_dequantize(gguf, kind, block_bytes):
        reason = (
            f"is of type {kind.name}, which gguf cannot dequantise; use another quantisation of "
            "the model"
        )
    return kind.name, math.prod(tensor.shape) // block * block_bytes, reason


def _can_dequantize(gguf: ModuleType, kind: Any, block_bytes: int) -> bool:
    import numpy as np

    try:
        with np.errstate(all="ignore"):
            gguf.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _slices(
    name: str, tensor: GgufTensor, nbytes: int
) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Yield (name, shape, offset, bytes): the tensor, or each expert of it."""
    shape = tensor.shape
    if EXPERT not in name:
        if name.endswith("shared_expert_gate.weight") and len(shape) == 1:
            shape = (1, *shape)  # the converter drops the only row
        yield name, shape, tensor.offset, nbytes
        return
    if len(shape) != 3 or not shape[0]:
        yield tensor.name, shape, tensor.offset, nbytes
        return
    size = nbytes // shape[0]
    for expert in range(shape[0]):
        yield name.replace(EXPERT, str(expert)), shape[1:], tensor.offset + expert * size, size


def _dequantize_into(entry: TensorEntry, tensor: torch.Tensor) -> None:
    import numpy as np

    gguf = gguf_package()
    kind = getattr(gguf.GGMLQuantizationType, entry.dtype)
    columns = entry.shape[-1] if entry.shape else 1
    rows = tensor.numel() // columns
    row_bytes = entry.nbytes // rows
    target = tensor.view(rows, columns).numpy()
    step = max(1, _PIECE_ELEMENTS // columns)
    try:
        with entry.file.open("rb", buffering=0) as stream, np.errstate(all="ignore"):
            stream.seek(entry.offset)
            for row in range(0, rows, step):
                count = min(step, rows - row)
                raw = bytearray(count * row_bytes)
                _read_fully(stream, raw, entry)
                if entry.dtype in _PLAIN:
                    piece = np.frombuffer(raw, dtype=_PLAIN[entry.dtype]).reshape(count, columns)
                else:
                    piece = gguf.dequantize(
                        np.frombuffer(raw, dtype=np.uint8).reshape(count, row_bytes), kind
                    )
                target[row : row + count] = piece
    except OSError as error:
        msg = f"{entry.file}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error


def _read_fully(stream: Any, raw: bytearray, entry: TensorEntry) -> None:
    view = memoryview(raw)
    done = 0
    while done < len(raw):
        count = stream.readinto(view[done:])
        if not count:
            msg = (
                f"{entry.file}: ends inside tensor {entry.name!r}; the file changed or is truncated"
            )
            raise CheckpointError(msg)
        done += count


def _unpermute(entry: TensorEntry, tensor: torch.Tensor, heads: int) -> None:
    """Put the rows of each head back, in place: from (pair, half) order to (half, pair) order.

    The converter writes row `half * d/2 + pair` of a head (d rows) to row `2 * pair + half`,
    because llama.cpp rotates neighbouring rows and Hugging Face rotates the two halves of a head.
    """
    rows = tensor.shape[0] if tensor.ndim else 0
    if rows % (2 * heads):
        msg = (
            f"{entry.file}: tensor {entry.name!r} has {rows} rows, no multiple of 2 x {heads} heads"
        )
        raise CheckpointError(msg)
    for head in tensor.view(heads, rows // heads, *tensor.shape[1:]):
        pairs = head.clone().view(rows // heads // 2, 2, *tensor.shape[1:])
        head.view(2, rows // heads // 2, *tensor.shape[1:]).copy_(pairs.transpose(0, 1))
