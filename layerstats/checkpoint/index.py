"""Where every tensor of a checkpoint lies, read from the file headers alone.

`read_index(path)` takes what a user points at (a directory, a `.safetensors` file, an
`*.index.json`, a `.gguf` file) and answers with a `CheckpointIndex`. No weight is read, torch is
not imported, and every safety check of the library on foreign files lives here: sizes, offsets,
duplicate names, paths that leave the directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.checkpoint.entry import TensorEntry
from layerstats.errors import CheckpointError, MissingError, UsageError

__all__ = ["DTYPE_BITS", "CheckpointIndex", "TensorEntry", "read_index", "read_json"]

#: Bits per element of every dtype of the safetensors format (F4 and F6 are packed).
DTYPE_BITS: dict[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}

#: The same bound as the safetensors library: a longer header is refused before it is read.
MAX_HEADER_BYTES = 100_000_000

_NUMBERED_SHARD = re.compile(r"(.*?)([0-9]+)-of-([0-9]+)\.safetensors$")
_WEIGHT_FILES_OF_OTHERS = ("adapter_", "consolidated", "training_args", "optimizer", "rng_state")


@dataclass(frozen=True)
class CheckpointIndex:
    """All tensors of a checkpoint and where they are.

    `path` is what the user gave, `directory` is where `config.json` and the tokenizer would be,
    `header_hash` is a sha256 over the headers (file names, tensor names, dtypes, shapes, offsets;
    no weights), `metadata` holds the key-values of a GGUF file or the `__metadata__` of safetensors
    files.
    """

    path: Path
    directory: Path
    format: str
    entries: Mapping[str, TensorEntry]
    files: tuple[Path, ...]
    header_hash: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_index(path: str | os.PathLike[str]) -> CheckpointIndex:
    """Read the headers of a checkpoint.

    Parameters
    ----------
    path
        A directory (with `*.safetensors.index.json`, with one or more `.safetensors` files, or with
        one `.gguf` file), a `.safetensors` file, an index file, or a `.gguf` file.

    Returns
    -------
    CheckpointIndex
        Entries in the order of files and, inside a file, of byte offsets.

    Raises
    ------
    MissingError
        Nothing is there, or a shard that the index names is missing.
    CheckpointError
        A file is truncated, malformed, inconsistent, or points outside its directory.
    UsageError
        The file is of a kind that is not read (`.bin`, `.pt`, an adapter directory).
    """
    given = Path(path)
    if not given.exists():
        msg = (
            f"{given}: no such file or directory; "
            f"give a checkpoint directory, .safetensors, .index.json or .gguf{_hub_advice(given)}"
        )
        raise MissingError(msg)
    target = _main_file(given) if given.is_dir() else given
    if target.suffix == ".gguf":
        return _gguf_index(given, target)
    if target.name.endswith(".index.json"):
        shards = _indexed_shards(target)
    elif target.is_dir():
        shards = {file: None for file in _loose_shards(target)}
    elif target.suffix == ".safetensors":
        shards = {target: None}
    else:
        msg = (
            f"{target}: not a checkpoint; give a directory, .safetensors, .index.json or .gguf file"
        )
        raise UsageError(msg)
    directory = target if target.is_dir() else target.parent
    return _safetensors_index(given, directory, shards)


def _hub_advice(given: Path) -> str:
    """Say what to do where the path has the form of a model's name on the hub, `owner/name`."""
    name = given.as_posix()
    if given.is_absolute() or name.count("/") != 1 or given.suffix in (".safetensors", ".gguf"):
        return ""
    return (
        f" (if it is a model on the hub, download it: hf download {name} --local-dir {given.name})"
    )


def _main_file(directory: Path) -> Path:
    """Choose what to open in a directory: an index, the single file, a GGUF file, or itself."""
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        plain = [file for file in indexes if file.name == "model.safetensors.index.json"]
        if not plain:
            names = ", ".join(file.name for file in indexes)
            msg = f"{directory}: more than one index ({names}); give the path of the one to read"
            raise UsageError(msg)
        indexes = plain
    if indexes:
        return indexes[0]
    single = directory / "model.safetensors"
    if single.exists() or single.is_symlink():
        return single
    if _loose_shards(directory):
        return directory
    ggufs = sorted(directory.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        msg = f"{directory}: more than one GGUF file ({names}); give the path of the one to read"
        raise UsageError(msg)
    raise _nothing_to_read(directory)


def _nothing_to_read(directory: Path) -> MissingError | UsageError:
    if (directory / "adapter_config.json").exists():
        msg = (
            f"{directory}: a LoRA adapter, not a checkpoint; "
            f"give its base model and --adapter {directory}"
        )
        return UsageError(msg)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        msg = (
            f"{directory}: holds only pickled weights (.bin/.pt), which are never opened; "
            "save the model with safetensors (model.save_pretrained) first"
        )
        return UsageError(msg)
    return MissingError(f"{directory}: no .safetensors or .gguf file in this directory")


def _loose_shards(directory: Path) -> list[Path]:
    """List the weight files of a directory that has no index, and miss none of a numbered set."""
    files = sorted(directory.glob("*.safetensors"))
    own = [file for file in files if not file.name.startswith(_WEIGHT_FILES_OF_OTHERS)]
    # Mistral publishes its own format beside the hub's; alone, it is the checkpoint.
    shards = own or [file for file in files if file.name.startswith("consolidated")]
    present = {file.name for file in shards}
    for file in shards:
        if not (match := _NUMBERED_SHARD.match(file.name)) or len(match[3]) > 5:
            continue
        for number in range(1, int(match[3]) + 1):
            name = f"{match[1]}{number:0{len(match[2])}d}-of-{match[3]}.safetensors"
            if name not in present:
                msg = (
                    f"{directory / name}: missing beside {file.name}; download the checkpoint again"
                )
                raise MissingError(msg)
    return shards


def _indexed_shards(index_file: Path) -> dict[Path, set[str] | None]:
    """Return each shard that an index names with the tensors that should be in it."""
    document = read_json(index_file)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{index_file}: no weight_map; the index is damaged, download it again"
        raise CheckpointError(msg)
    shards: dict[Path, set[str] | None] = {}
    checked: dict[str, Path] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            msg = f"{index_file}: tensor {tensor!r} has no file name; the index is damaged"
            raise CheckpointError(msg)
        if shard not in checked:
            checked[shard] = _inside(index_file, shard)
            shards[checked[shard]] = set()
        names = shards[checked[shard]]
        assert names is not None
        names.add(tensor)
    return dict(sorted(shards.items()))


def _inside(index_file: Path, shard: str) -> Path:
    """Return the path of a shard, refusing every way out of the checkpoint's directory.

    Symlinked shards are fine where they stay inside, or where the directory is a snapshot of the
    hub's cache, which holds nothing but links to the `blobs` folder beside `snapshots`.
    """
    directory = index_file.parent
    refused = f"{index_file}: names the shard {shard!r}, which lies outside {directory}; refused"
    if not shard or Path(shard).is_absolute() or ".." in Path(shard).parts or "\0" in shard:
        raise CheckpointError(refused)
    file = directory / shard
    try:
        real, home = Path(os.path.realpath(file)), Path(os.path.realpath(directory))
        present = file.exists()
    except (OSError, ValueError) as error:
        msg = f"{index_file}: the shard {shard[:80]!r} is no file name; the index is damaged"
        raise CheckpointError(msg) from error
    blobs = [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"]
    if not real.is_relative_to(home) and real.parent not in blobs:
        raise CheckpointError(refused)
    if not present:
        msg = f"{file}: missing, although {index_file.name} names it; download the checkpoint again"
        raise MissingError(msg)
    return file


def _safetensors_index(
    given: Path, directory: Path, shards: Mapping[Path, set[str] | None]
) -> CheckpointIndex:
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, Any] = {}
    digest = hashlib.sha256()
    misplaced: list[tuple[Path, set[str]]] = []
    for file, expected in shards.items():
        found, shard_metadata, header = _read_header(file)
        digest.update(file.name.encode() + b"\0" + header)
        metadata.update(shard_metadata)
        for entry in found:
            if entry.name in entries:
                msg = (
                    f"{file}: tensor {entry.name!r} is also in {entries[entry.name].file.name}; "
                    "one of the two is not part of this checkpoint"
                )
                raise CheckpointError(msg)
            entries[entry.name] = entry
        if expected is not None and (absent := expected - {entry.name for entry in found}):
            misplaced.append((file, absent))
    for file, absent in misplaced:
        name = min(absent)
        where = f"; it is in {entries[name].file.name}" if name in entries else ""
        msg = (
            f"{file}: lacks {len(absent)} of the tensors the index places there, "
            f"such as {name!r}{where}; shards and index do not belong together"
        )
        raise CheckpointError(msg)
    if not entries:
        msg = f"{given}: holds no tensor; download the checkpoint again"
        raise CheckpointError(msg)
    return CheckpointIndex(
        given, directory, "safetensors", entries, tuple(shards), digest.hexdigest(), metadata
    )


def _read_header(file: Path) -> tuple[list[TensorEntry], dict[str, str], bytes]:
    """Read and check the header of one safetensors file: 8 bytes of length, JSON, then the data."""
    if file.exists() and not file.is_file():
        msg = f"{file}: not a regular file; give a .safetensors file or its directory"
        raise CheckpointError(msg)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                msg = (
                    f"{file}: {size} bytes, but its header claims {length}; "
                    "empty, truncated or not a safetensors file: download it again"
                )
                raise CheckpointError(msg)
            raw = stream.read(length)
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        msg = f"{file}: malformed header ({error}); download it again"
        raise CheckpointError(msg) from error
    if not isinstance(header, dict):
        msg = f"{file}: malformed header (not a JSON object); download it again"
        raise CheckpointError(msg)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        msg = f"{file}: malformed header (__metadata__ is not an object); download it again"
        raise CheckpointError(msg)
    begin = 8 + length
    entries = sorted(
        (_entry(file, name, info, begin, size) for name, info in header.items()),
        key=lambda entry: (entry.offset, entry.nbytes),
    )
    _check_contiguous(file, entries, begin, size)
    return entries, metadata, raw


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            msg = f"the name {key!r} appears twice"
            raise ValueError(msg)
        result[key] = value
    return result


def _entry(file: Path, name: str, info: Any, begin: int, size: int) -> TensorEntry:
    """Check a header record: known dtype, whole shape, offsets in the file, bytes as elements."""
    try:
        dtype, shape = info["dtype"], tuple(info["shape"])
        start, stop = info["data_offsets"]
        whole = [start, stop, *shape]
        well_formed = all(type(number) is int and number >= 0 for number in whole) and start <= stop
    except (TypeError, KeyError, ValueError):
        well_formed, dtype = False, None
    if not well_formed:
        shown = repr(info)[:120]
        msg = f"{file}: tensor {name!r} has a malformed header entry {shown}; download it again"
        raise CheckpointError(msg)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        known = ", ".join(DTYPE_BITS)
        msg = f"{file}: tensor {name!r} has the unknown dtype {dtype!r}; known: {known}"
        raise CheckpointError(msg)
    if begin + stop > size:
        msg = (
            f"{file}: truncated: tensor {name!r} ends at byte {begin + stop}, "
            f"the file has {size}; download it again"
        )
        raise CheckpointError(msg)
    needed = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8)
    if stop - start != needed:
        msg = (
            f"{file}: tensor {name!r} {list(shape)} {dtype} needs {needed} bytes, "
            f"its offsets give {stop - start}; the header is damaged"
        )
        raise CheckpointError(msg)
    return TensorEntry(name, file, dtype, shape, needed, begin + start)


def _check_contiguous(file: Path, entries: list[TensorEntry], begin: int, size: int) -> None:
    """Refuse overlaps, holes and bytes left over, as the format's own library does."""
    end, last = begin, None
    for entry in entries:
        if entry.offset < end:
            msg = f"{file}: tensors {last!r} and {entry.name!r} overlap; the header is damaged"
            raise CheckpointError(msg)
        if entry.offset > end:
            break
        end, last = end + entry.nbytes, entry.name
    if end != size:
        msg = f"{file}: {size - end} bytes belong to no tensor; damaged, download it again"
        raise CheckpointError(msg)


def _gguf_index(given: Path, file: Path) -> CheckpointIndex:
    # Imported here: the package `gguf` is an extra, and most checkpoints do not need it.
    from layerstats.checkpoint.gguf import read_gguf_index

    entries, metadata = read_gguf_index(file)
    lines = [
        f"{entry.name} {entry.dtype} {entry.shape} {entry.offset}" for entry in entries.values()
    ]
    header_hash = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    files = tuple(dict.fromkeys(entry.file for entry in entries.values()))
    return CheckpointIndex(
        given, file.parent, "gguf", entries, files or (file,), header_hash, metadata
    )


def read_json(file: Path) -> Any:
    """Read a small JSON file of a checkpoint; a damaged one is a `CheckpointError` naming it."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{file}: not valid JSON ({error}); download it again"
        raise CheckpointError(msg) from error
