"""Writes a checkpoint directory as Hugging Face lays it out: shards, their index, JSON files.

The directory appears whole or not at all (`staged_directory`), and one tensor is in memory at a
time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["PARTIAL_SUFFIX", "staged_directory", "write_json", "write_shards"]

#: Ending of the directory that is being written; it begins with a dot and the final name.
PARTIAL_SUFFIX = ".partial"

_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that becomes `path` when the block ends well.

    Raises
    ------
    UsageError
        `path` exists, before or after the block; nothing of it is touched.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new"
    >>> with staged_directory(target) as stage:
    ...     _ = (stage / "a.txt").write_text("whole")
    >>> [file.name for file in target.iterdir()]
    ['a.txt']
    """
    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    stage.mkdir()
    try:
        yield stage
        # A rename onto an empty directory would succeed on POSIX, so look once more.
        _refuse_existing(path)
        try:
            stage.rename(path)
        except OSError as error:
            _refuse_existing(path)
            msg = f"{path}: cannot be created ({error.strerror}); choose another place"
            raise UsageError(msg) from error
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(stage)
        raise


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        msg = f"{path}: exists already; choose another directory or remove it"
        raise UsageError(msg)


def write_json(path: Path, value: Any) -> None:
    """Write strict, readable JSON (never NaN or Infinity) with a newline at the end."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def write_shards(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write tensors as safetensors, split over files in the order given.

    Parameters
    ----------
    directory
        An existing directory.
    shapes
        Name -> shape, in the order to write.
    read
        Gives a tensor by name; called once for each.
    dtype
        `float32`, `float16` or `bfloat16`.
    max_shard_bytes
        A file is closed before its tensors would exceed this; a larger tensor gets a file of its
        own.

    Returns
    -------
    list of Path
        `model.safetensors`, or `model-00001-of-0000N.safetensors` ... beside
        `model.safetensors.index.json`.

    Raises
    ------
    UsageError
        Unknown dtype, or a shard size below 1.
    """
    if dtype not in _DTYPES:
        msg = f"dtype {dtype!r} cannot be written; allowed: {', '.join(_DTYPES)}"
        raise UsageError(msg)
    if max_shard_bytes < 1:
        msg = f"max_shard_bytes is {max_shard_bytes}; give at least 1"
        raise UsageError(msg)
    sizes = {name: _DTYPES[dtype][1] * _elements(shape) for name, shape in shapes.items()}
    shards = _plan(sizes, max_shard_bytes)
    if len(shards) == 1:
        files = [directory / "model.safetensors"]
    else:
        files = [
            directory / f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            for i in range(1, len(shards) + 1)
        ]
    for file, names in zip(files, shards, strict=True):
        _write_shard(file, {name: shapes[name] for name in names}, read, dtype)
    if len(shards) > 1:
        owner = {
            name: file.name for file, names in zip(files, shards, strict=True) for name in names
        }
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": dict(sorted(owner.items())),
        }
        write_json(directory / "model.safetensors.index.json", index)
    return files


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _plan(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Fill shards greedily in order.

    Examples
    --------
    >>> _plan({"a": 4, "b": 4, "c": 9, "d": 1}, 8)
    [['a', 'b'], ['c'], ['d']]
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    dtype: str,
) -> None:
    import torch

    code, width = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + width * _elements(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data that begins at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name).to(getattr(torch, dtype)).contiguous()
            if tuple(tensor.shape) != shape:
                msg = f"tensor {name!r} has shape {tuple(tensor.shape)}, planned was {shape}"
                raise ValueError(msg)
            stream.write(tensor.view(-1).view(torch.uint8).numpy().data)
