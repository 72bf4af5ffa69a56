"""Reading weights: `Checkpoint` reads a tensor, `LayerReader` walks the model one layer at a time.

Bytes are read with `pread` into fresh memory, never mapped, so neither anonymous nor file-backed
pages outlive the layer that is held. The reader fetches the next layer while the current one is
worked on.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from layerstats.checkpoint.identity import weights_sample_hash
from layerstats.checkpoint.index import CheckpointIndex, TensorEntry, read_index, read_json
from layerstats.checkpoint.layout import Layout, Matrix, find_layout
from layerstats.errors import CheckpointError, MissingError, UsageError, choices

__all__ = ["TORCH_DTYPES", "Checkpoint", "Layer", "LayerReader", "open_checkpoint"]

#: What torch calls the dtypes of the safetensors format.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
if hasattr(torch, "float8_e8m0fnu"):  # the scales of MX formats, known to torch from 2.7 on
    TORCH_DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

#: Tensors from this size on get pages of their own.
_OWN_PAGES_BYTES = 1 << 20
#: Numbers of neighbouring weights that share a scale, the usual ones first.
_BLOCKS = (128, 64, 32, 16, 1, 256, 512)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Layer:
    """The weight matrices of one block, in memory.

    `weights` maps a matrix's path (`self_attn.q_proj`, `mlp.experts.3.gate_proj`) to its tensor,
    shape (out_features, in_features), dtype as stored; `matrices` maps the same paths to their
    `Matrix`.
    """

    index: int
    weights: dict[str, torch.Tensor]
    matrices: dict[str, Matrix]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers are read and sorted; weights are read when asked for.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     blocks = {f"h.{n}.fc.weight": torch.ones(3, 2) for n in range(2)}
    ...     save_file(blocks, f"{folder}/model.safetensors")
    ...     checkpoint = open_checkpoint(folder)
    ...     [tuple(layer.weights["fc"].shape) for layer in LayerReader(checkpoint)]
    [(3, 2), (3, 2)]
    """

    path: Path
    index: CheckpointIndex
    layout: Layout
    config: Mapping[str, Any] | None

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor as it is stored (a GGUF tensor as float32).

        Raises
        ------
        MissingError
            No tensor has this name; the message gives the nearest.
        CheckpointError
            The file ends early, or its dtype is unknown to torch.
        """
        entry = self.index.entries.get(name)
        if entry is None:
            msg = f"{self.path}: {choices('tensor', name, self.index.entries)[:300]}"
            raise MissingError(msg)
        if self.index.format == "gguf":
            from layerstats.checkpoint.gguf import read_gguf_tensor

            return read_gguf_tensor(entry, self.index.metadata)
        return _read_range(entry, 0, entry.shape)

    def read_matrix(self, matrix: Matrix) -> torch.Tensor:
        """Read a matrix as (out_features, in_features), 8-bit weights times their scale."""
        entry = self.index.entries[matrix.name]
        if matrix.fused and self.index.format == "safetensors":
            stored = matrix.shape[::-1] if matrix.transposed else matrix.shape
            assert matrix.expert is not None
            weight = _read_range(entry, matrix.expert * matrix.nbytes, stored)
        else:
            weight = self.read(matrix.name)
            weight = weight[matrix.expert] if matrix.fused else weight
        if matrix.scale_name is not None:
            scale = self.read(matrix.scale_name)
            weight = _scaled(weight, scale[matrix.expert] if matrix.fused else scale, matrix)
        return weight.T.contiguous() if matrix.transposed else weight

    def read_rows(self, matrix: Matrix, rows: int) -> Iterator[torch.Tensor]:
        """Yield a matrix in pieces of at most `rows` stored rows: embeddings dwarf any layer."""
        entry = self.index.entries[matrix.name]
        if self.index.format == "gguf" or matrix.fused or matrix.scale_name or matrix.transposed:
            yield self.read_matrix(matrix)
            return
        height, width = matrix.shape
        row_bytes = entry.nbytes // height
        for start in range(0, height, rows):
            count = min(rows, height - start)
            yield _read_range(entry, start * row_bytes, (count, width))

    def read_some_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Read some rows of a stored 2-D tensor, ascending without repetition, runs in one go."""
        entry = self.index.entries[name]
        height, width = entry.shape
        row_bytes = entry.nbytes // height
        result = torch.empty((len(rows), width), dtype=_torch_dtype(entry))
        view = _bytes_of(result)
        with _opened(entry) as descriptor:
            first = 0
            while first < len(rows):
                last = first + 1
                while last < len(rows) and rows[last] == rows[last - 1] + 1:
                    last += 1
                part = view[first * row_bytes : last * row_bytes]
                _fill(descriptor, entry, rows[first] * row_bytes, part)
                first = last
        return result

    @cached_property
    def weights_sample_hash(self) -> str:
        """What tells these weights from others under the same headers, see `identity.py`."""
        return weights_sample_hash(self.index)

    @cached_property
    def largest_layer_bytes(self) -> int:
        """Bytes of the largest layer as stored: what one step of `LayerReader` holds."""
        sizes: dict[int, int] = {}
        for matrix in self.layout.matrices:
            if matrix.layer is not None:
                sizes[matrix.layer] = sizes.get(matrix.layer, 0) + matrix.nbytes
        return max(sizes.values(), default=0)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: read the headers and sort the tensors, no weight is read.

    Parameters
    ----------
    path
        A directory, a `.safetensors` file, a `*.index.json` or a `.gguf` file.

    Returns
    -------
    Checkpoint

    Raises
    ------
    MissingError, CheckpointError, UsageError
        As `read_index`.
    """
    index = read_index(path)
    config_file = index.directory / "config.json"
    config = read_json(config_file) if config_file.is_file() else None
    if config is not None and not isinstance(config, dict):
        msg = f"{config_file}: not a JSON object; download it again"
        raise CheckpointError(msg)
    return Checkpoint(Path(path), index, find_layout(index, config), config)


def _read_range(entry: TensorEntry, start: int, shape: Sequence[int]) -> torch.Tensor:
    """Read a contiguous part of a tensor, `start` bytes from its beginning, into its own memory."""
    tensor = _empty(tuple(shape), _torch_dtype(entry))
    if tensor.numel():
        with _opened(entry) as descriptor:
            _fill(descriptor, entry, start, _bytes_of(tensor))
    return tensor


def _torch_dtype(entry: TensorEntry) -> torch.dtype:
    dtype = TORCH_DTYPES.get(entry.dtype)
    if dtype is None:
        msg = f"{entry.file}: tensor {entry.name!r}: torch cannot hold the dtype {entry.dtype}"
        raise CheckpointError(msg)
    return dtype


def _bytes_of(tensor: torch.Tensor) -> memoryview[Any]:
    return tensor.view(-1).view(torch.uint8).numpy().data


@contextlib.contextmanager
def _opened(entry: TensorEntry) -> Iterator[int]:
    """Open the file of a tensor; what the system says against it becomes a line that names it."""
    try:
        descriptor = os.open(entry.file, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        msg = f"{entry.file}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error


def _fill(descriptor: int, entry: TensorEntry, start: int, view: memoryview[Any]) -> None:
    """Fill a view with the bytes of a tensor from `start` on."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], entry.offset + start + done)
        if count == 0:
            msg = f"{entry.file}: ends inside tensor {entry.name!r}; download it again"
            raise CheckpointError(msg)
        done += count


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Allocate a tensor whose memory goes back to the system the moment it is let go.

    The C library would keep large freed pieces for itself, and a model streamed through would leave
    more than a layer behind: anonymous pages of its own are what bounds the memory of a run.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _OWN_PAGES_BYTES:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _scaled(weight: torch.Tensor, scale: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Multiply an 8-bit matrix with its scale: one number, one per row, or one per block of it."""
    full = weight.to(torch.float32)
    scale = scale.to(torch.float32)
    if scale.numel() == 1:
        return full.mul_(scale.reshape(()))
    rows, cols = full.shape
    if tuple(scale.shape) == (rows,):
        scale = scale.reshape(rows, 1)
    blocks = [_block(size, count) for size, count in zip(full.shape, scale.shape, strict=False)]
    if scale.dim() != 2 or None in blocks:
        msg = (
            f"tensor {matrix.scale_name!r} of shape {list(scale.shape)} "
            f"does not fit {matrix.name!r} of shape {list(full.shape)}"
        )
        raise CheckpointError(msg)
    for dim, (size, block) in enumerate(zip((rows, cols), blocks, strict=True)):
        assert block is not None
        if block < size:
            scale = scale.repeat_interleave(block, dim).narrow(dim, 0, size)
    return full.mul_(scale)


def _block(size: int, count: int) -> int | None:
    """Return how many rows or columns share a scale when `size` of them have `count` scales."""
    return next((block for block in (size, *_BLOCKS) if -(-size // block) == count), None)


class LayerReader:
    """Iterate over the blocks of a checkpoint in file order, one in memory and one on its way.

    The next layer is fetched by a thread as soon as the layer *before* the one just handed out has
    been let go, so a `for` loop holds two layers at the most; whoever keeps layers gets them one by
    one without prefetch.

    Parameters
    ----------
    checkpoint
        From `open_checkpoint`.
    layers
        Which layers to read; all by default. Always in file order, whatever the order given.
    prefetch
        False reads each layer only when it is asked for.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[int] | None = None, *, prefetch: bool = True
    ) -> None:
        self.checkpoint = checkpoint
        self.prefetch = prefetch
        count = checkpoint.layout.num_layers
        wrong = [layer for layer in layers or () if not 0 <= layer < count]
        if wrong:
            msg = f"layer {wrong[0]} is not there; the checkpoint has layers 0 to {count - 1}"
            raise UsageError(msg)
        rows: dict[int, list[Matrix]] = {}
        for matrix in checkpoint.layout.matrices:
            if matrix.layer is not None and (layers is None or matrix.layer in layers):
                rows.setdefault(matrix.layer, []).append(matrix)
        self._matrices = rows
        self._file_numbers = {file: number for number, file in enumerate(checkpoint.index.files)}
        first = {layer: min(map(self._place, matrices)) for layer, matrices in rows.items()}
        self.order: tuple[int, ...] = tuple(sorted(first, key=first.__getitem__))

    def _place(self, matrix: Matrix) -> tuple[int, int, int]:
        """Return where a matrix lies: number of the file, offset, expert."""
        entry = self.checkpoint.index.entries[matrix.name]
        return self._file_numbers[entry.file], entry.offset, matrix.expert or 0

    def __len__(self) -> int:
        return len(self.order)

    def read(self, layer: int) -> Layer:
        """Read one layer, its tensors in the order of the file."""
        matrices = sorted(self._matrices[layer], key=self._place)
        weights = {matrix.path: self.checkpoint.read_matrix(matrix) for matrix in matrices}
        by_path = {matrix.path: matrix for matrix in self._matrices[layer]}
        return Layer(layer, {path: weights[path] for path in by_path}, by_path)

    def __iter__(self) -> Iterator[Layer]:
        if self.prefetch:
            return self._prefetched()
        return (self.read(number) for number in self.order)

    def _prefetched(self) -> Iterator[Layer]:
        """Hand out layer i; a thread reads i + 1 meanwhile, once i - 1 has been let go."""
        stopped = threading.Event()
        before = threading.Event()  # set when the layer before the one handed out is gone
        before.set()
        thread = None
        try:
            # One slot, no variable: this frame must not keep the layer that it has handed out.
            slot = [self.read(self.order[0])] if self.order else []
            for upcoming in self.order[1:]:
                fetched: Future[Layer] = Future()
                # A daemon: nobody has to use an iterator up to be able to leave Python.
                thread = threading.Thread(
                    target=self._fetch,
                    args=(upcoming, before, stopped, fetched),
                    name="layerstats-read",
                    daemon=True,
                )
                thread.start()
                current = threading.Event()
                weakref.finalize(slot[0], current.set).atexit = False
                yield slot.pop()
                before.set()  # needed now, whoever still holds the layer before
                slot.append(fetched.result())
                before = current
            while slot:
                yield slot.pop()
        finally:
            stopped.set()
            before.set()
            if thread is not None:
                thread.join()

    def _fetch(
        self, layer: int, go: threading.Event, stopped: threading.Event, fetched: Future[Layer]
    ) -> None:
        go.wait()
        try:
            if not stopped.is_set():
                fetched.set_result(self.read(layer))
        except BaseException as error:  # handed to whoever waits for the layer
            fetched.set_exception(error)
