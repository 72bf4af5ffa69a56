"""The bytes at the front of a GGUF file -> key-values and tensor descriptions, nothing else.

A small reader of its own instead of the package's: it never maps the file, jumps over the long
arrays (vocabulary, merges), checks every length against the file's size, and needs neither numpy
nor torch. What the names and numbers mean is decided in `gguf_names.py` and `gguf.py`.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from layerstats.errors import CheckpointError, MissingError

__all__ = ["GgufHeader", "GgufTensor", "read_array", "read_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
#: value type of the format -> struct code (little endian)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
#: An array longer than this (a vocabulary, merges, scores) is measured, jumped over and read on
#: demand.
LONG_ARRAY = 1024
_MAX_NAME_BYTES = 65_535
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the header describes it: `shape` in numpy order, `offset` from the start."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the weights: short key-values, long arrays as (place, length), tensors."""

    values: dict[str, Any]
    long_arrays: dict[str, tuple[int, int]]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    file_size: int


class _Cursor:
    """Reads forward through a file and turns a read past its end into a `CheckpointError`."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size

    def fail(self, reason: str) -> NoReturn:
        msg = f"{self.file}: {reason}; download the file again"
        raise CheckpointError(msg)

    def _need(self, count: int) -> None:
        if count > self.size - self.stream.tell():
            self.fail("GGUF header ends too early or a length in it is damaged")

    def bytes(self, count: int) -> bytes:
        if count > 4096:  # a long read is checked first, so that a damaged length allocates nothing
            self._need(count)
        data = self.stream.read(count)
        if len(data) != count:
            self.fail("GGUF header ends too early or a length in it is damaged")
        return data

    def number(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, self.bytes(size))[0]

    def string(self) -> str:
        # Vocabularies of other byte encodings do occur in the wild; a bad byte must not lose the
        # file.
        return self.bytes(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if depth >= _MAX_DEPTH:
                self.fail(f"GGUF header nests arrays more than {_MAX_DEPTH} deep")
            inner, length = self.number("I"), self.number("Q")
            return self.items(inner, length, depth)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        self.fail(f"GGUF header has a value of unknown type {kind}")

    def items(self, inner: int, length: int, depth: int) -> list[Any]:
        if inner in _SCALARS:
            code = _SCALARS[inner]
            raw = self.bytes(length * struct.calcsize("<" + code))
            return list(struct.unpack(f"<{length}{code}", raw))
        self._need(8 * length)  # every string and every array takes at least its own length field
        return [self.value(inner, depth + 1) for _ in range(length)]

    def skip_items(self, inner: int, length: int) -> None:
        if inner in _SCALARS:
            count = length * struct.calcsize("<" + _SCALARS[inner])
            self._need(count)
            self.stream.seek(count, os.SEEK_CUR)
            return
        if inner != _STRING:
            self.items(inner, length, 0)
            return
        self._need(8 * length)
        for _ in range(length):
            self.bytes(self.number("Q"))


def read_header(path: Path) -> GgufHeader:
    """Read everything of a GGUF file that stands before its weights.

    Parameters
    ----------
    path
        A `.gguf` file of version 2 or 3, little endian.

    Returns
    -------
    GgufHeader
        Arrays of more than 1,024 elements are not in `values`; `read_array` reads them.

    Raises
    ------
    MissingError
        The file is not there.
    CheckpointError
        Not a GGUF file, another version, truncated, or inconsistent.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise MissingError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error
    with stream:
        cursor = _Cursor(path, stream)
        tensor_count, value_count = _read_preamble(cursor)
        values: dict[str, Any] = {}
        long_arrays: dict[str, tuple[int, int]] = {}
        for _ in range(value_count):
            _read_pair(cursor, values, long_arrays)
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
        described = [_read_tensor(cursor) for _ in range(tensor_count)]
        start = -(-stream.tell() // alignment) * alignment
    tensors = tuple(
        GgufTensor(name, kind, shape, start + at) for name, kind, shape, at in described
    )
    return GgufHeader(values, long_arrays, tensors, start, cursor.size)


def read_array(path: Path, key: str) -> list[Any]:
    """Read one array of the header, a long one too (`tokenizer.ggml.tokens`, the merges).

    Raises
    ------
    MissingError
        The file has no such array.
    """
    header = read_header(path)
    if isinstance(header.values.get(key), list):
        return list(header.values[key])
    if key not in header.long_arrays:
        msg = f"{path}: has no array {key!r}"
        raise MissingError(msg)
    place, length = header.long_arrays[key]
    with path.open("rb") as stream:
        cursor = _Cursor(path, stream)
        stream.seek(place)
        return cursor.items(cursor.number("I"), length if cursor.number("Q") == length else 0, 0)


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    if cursor.size == 0:
        cursor.fail("the file is empty")
    if cursor.stream.read(4) != _MAGIC:
        msg = f"{cursor.file}: not a GGUF file (it does not start with 'GGUF')"
        raise CheckpointError(msg)
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = version & 0xFFFF == 0
        what = "big-endian" if swapped else f"of version {version}"
        msg = (
            f"{cursor.file}: a GGUF file {what}; versions 2 and 3 in little endian are read, "
            "convert it again"
        )
        raise CheckpointError(msg)
    return cursor.number("Q"), cursor.number("Q")


def _read_pair(
    cursor: _Cursor, values: dict[str, Any], long_arrays: dict[str, tuple[int, int]]
) -> None:
    key = cursor.string()
    if key in values or key in long_arrays:
        cursor.fail(f"GGUF header holds the key {key!r} twice")
    kind = cursor.number("I")
    if kind != _ARRAY:
        values[key] = cursor.value(kind)
        return
    place = cursor.stream.tell()
    inner, length = cursor.number("I"), cursor.number("Q")
    if inner not in _SCALARS and inner not in (_STRING, _ARRAY):
        cursor.fail(f"GGUF header has an array of unknown type {inner}")
    if length > LONG_ARRAY:
        cursor.skip_items(inner, length)
        long_arrays[key] = (place, length)
    else:
        values[key] = cursor.items(inner, length, 0)


def _read_tensor(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    length = cursor.number("Q")
    if not 0 < length <= _MAX_NAME_BYTES:
        cursor.fail("GGUF header has a tensor name of impossible length")
    name = cursor.bytes(length).decode("utf-8", errors="replace")
    dimensions = cursor.number("I")
    if dimensions > _MAX_DIMENSIONS:
        cursor.fail(
            f"GGUF tensor {name!r} has {dimensions} dimensions, more than {_MAX_DIMENSIONS}"
        )
    # GGUF writes the fastest dimension first, numpy and safetensors write it last.
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    if 0 in shape:
        cursor.fail(f"GGUF tensor {name!r} has an empty dimension {list(shape)}")
    return name, cursor.number("I"), shape, cursor.number("Q")
