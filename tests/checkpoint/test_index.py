"""Headers only: what is accepted, and that everything damaged or hostile gets one clear line."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from layerstats.checkpoint.index import DTYPE_BITS, read_index
from layerstats.checkpoint.layout import find_layout
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from tests.conftest import llama_tensors, write_checkpoint

INDEX = "model.safetensors.index.json"


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a safetensors file with any header, text or object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def record(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refuses(path: Path, *words: str, kind: type[LayerstatsError] = CheckpointError) -> None:
    """Check class, exit code and that the message is one line with these words in it."""
    with pytest.raises(LayerstatsError) as caught:
        read_index(path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for word in words:
        assert word in message


# What is accepted


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_entries_say_where_the_bytes_are(tmp_path: Path, shards: int) -> None:
    tensors = llama_tensors()
    index = read_index(write_checkpoint(tmp_path / "m", tensors, shards))
    assert set(index.entries) == set(tensors)
    assert len(index.files) == shards
    for name, entry in index.entries.items():
        assert entry.shape == tuple(tensors[name].shape)
        stored = entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert stored == tensors[name].numpy().tobytes()


def test_layout_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    layouts = [
        find_layout(read_index(write_checkpoint(tmp_path / str(shards), llama_tensors(), shards)))
        for shards in (1, 2, 7)
    ]
    assert layouts[0] == layouts[1] == layouts[2]


def test_directory_index_file_and_single_file_are_the_same(tmp_path: Path, tiny: Path) -> None:
    assert read_index(tiny).header_hash == read_index(tiny / INDEX).header_hash
    alone = write_checkpoint(tmp_path / "one", llama_tensors())
    assert read_index(alone).header_hash == read_index(alone / "model.safetensors").header_hash


def test_the_hash_knows_every_header(tmp_path: Path) -> None:
    tensors = llama_tensors()
    first = read_index(write_checkpoint(tmp_path / "a", tensors, 2)).header_hash
    assert read_index(write_checkpoint(tmp_path / "b", tensors, 2)).header_hash == first
    del tensors["model.norm.weight"]
    assert read_index(write_checkpoint(tmp_path / "c", tensors, 2)).header_hash != first


def test_shards_without_an_index_and_adapters_beside_them(tiny: Path) -> None:
    (tiny / INDEX).unlink()
    save_file({"x.lora_A.weight": torch.ones(2, 2)}, tiny / "adapter_model.safetensors")
    save_file({"y": torch.ones(2, 2)}, tiny / "consolidated.safetensors")
    assert set(read_index(tiny).entries) == set(llama_tensors())


def test_mistral_s_own_file_alone(tmp_path: Path) -> None:
    save_file({"layers.0.w.weight": torch.ones(2, 2)}, tmp_path / "consolidated.safetensors")
    assert list(read_index(tmp_path).entries) == ["layers.0.w.weight"]


@pytest.mark.parametrize("below", ["", "text_encoder"])
def test_links_of_the_hub_cache_are_followed(tmp_path: Path, below: str) -> None:
    source = write_checkpoint(tmp_path / "source", llama_tensors(), 3)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc" / below
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        (blobs / f"{number:064x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{number:064x}", start=snapshot))
    index = read_index(snapshot)
    assert set(index.entries) == set(llama_tensors())
    assert index.directory == snapshot


def test_every_dtype_of_the_format(tmp_path: Path) -> None:
    """Four-bit and six-bit numbers fill whole bytes."""
    header, end = {}, 0
    for dtype, bits in DTYPE_BITS.items():
        size = 8 * bits // 8
        header[dtype.lower()] = record(end, end + size, [2, 4], dtype)
        end += size
    index = read_index(raw_file(tmp_path / "model.safetensors", header, bytes(end)))
    assert {entry.dtype for entry in index.entries.values()} == set(DTYPE_BITS)


def test_scalars_empty_tensors_and_metadata(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "scalar": record(0, 4, []),
        "empty": record(4, 4, [0, 7]),
        "last": record(4, 8, [1]),
    }
    index = read_index(raw_file(tmp_path / "model.safetensors", header, bytes(8)))
    assert index.metadata == {"format": "pt"}
    assert [entry.nbytes for entry in index.entries.values()] == [4, 0, 4]


def test_neither_torch_nor_matplotlib_is_imported() -> None:
    code = (
        "import sys, layerstats.checkpoint.index, layerstats.checkpoint.layout;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What is missing or not a checkpoint


def test_missing_path(tmp_path: Path) -> None:
    refuses(tmp_path / "nothing", "nothing", "no such file", kind=MissingError)


def test_empty_directory(tmp_path: Path) -> None:
    refuses(tmp_path, "no .safetensors or .gguf", kind=MissingError)


def test_only_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refuses(tmp_path, "never opened", "safetensors", kind=UsageError)


def test_adapter_directory(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refuses(tmp_path, "--adapter", kind=UsageError)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"x")
    refuses(tmp_path / "weights.npz", "weights.npz", kind=UsageError)


def test_two_indexes(tmp_path: Path, tiny: Path) -> None:
    for variant in ("a", "b"):
        (tiny / f"{variant}.safetensors.index.json").write_bytes((tiny / INDEX).read_bytes())
    assert read_index(tiny).files  # model.safetensors.index.json is the one that is meant
    (tiny / INDEX).unlink()
    refuses(tiny, "a.safetensors.index.json, b.safetensors.index.json", kind=UsageError)


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shard(tiny: Path, with_index: bool) -> None:
    (tiny / "model-00002-of-00003.safetensors").unlink()
    if not with_index:
        (tiny / INDEX).unlink()
    refuses(tiny, "model-00002-of-00003.safetensors", "missing", kind=MissingError)


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    refuses(tmp_path, "model.safetensors")


def test_a_directory_and_a_pipe_in_place_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    refuses(tmp_path, "a.safetensors", "not a regular file")
    (tmp_path / "a.safetensors").rmdir()
    os.mkfifo(tmp_path / "b.safetensors")
    refuses(tmp_path, "b.safetensors", "not a regular file")


# Damaged files


def test_swapped_shards(tiny: Path) -> None:
    one, two = (tiny / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    other = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(other)
    refuses(tiny, "model-00001-of-00003.safetensors", "it is in model-00002-of-00003.safetensors")


def test_an_index_that_names_a_tensor_too_many(tiny: Path) -> None:
    document = json.loads((tiny / INDEX).read_text())
    document["weight_map"]["extra.weight"] = "model-00003-of-00003.safetensors"
    (tiny / INDEX).write_text(json.dumps(document))
    refuses(tiny, "model-00003-of-00003.safetensors", "'extra.weight'")


def test_the_same_tensor_in_two_shards(tiny: Path) -> None:
    file = tiny / "model-00002-of-00003.safetensors"
    save_file({"model.norm.weight": torch.ones(16)}, file)
    refuses(tiny, "model.norm.weight", "model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"weight_map": {}}', '{"weight_map": []}', "\udc80", "[" * 9999],
)
def test_damaged_index_file(tiny: Path, text: str) -> None:
    (tiny / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    refuses(tiny, INDEX)


@pytest.mark.parametrize("shard", [None, 3, ["a"], {}, True])
def test_index_entry_without_a_file_name(tiny: Path, shard: Any) -> None:
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    refuses(tiny, INDEX, "'w'")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 2000, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    file = write_checkpoint(tmp_path / "m", llama_tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuses(file.parent, "model.safetensors", "download it again")


def test_bytes_behind_the_last_tensor(tmp_path: Path) -> None:
    file = raw_file(tmp_path / "model.safetensors", {"w": record(0, 4, [1])}, bytes(9))
    refuses(file, "5 bytes belong to no tensor")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 99_000_000, 17])
def test_header_longer_than_the_file_or_than_allowed(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(14))
    refuses(file, "model.safetensors", str(length))


def test_a_header_over_the_limit_is_not_read_although_the_file_is_as_long(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(100_000_100)  # a hole, no bytes on the disk
    refuses(file, "100000001")


GOOD = {"a": record(0, 8, [2]), "b": record(8, 16, [2])}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"not json", ["malformed header"]),
        (b"[1, 2]", ["not a JSON object"]),
        (b"\xff\xfe{}", ["malformed header"]),
        (b"{" * 5000, ["malformed header"]),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["malformed header"]),
        ({}, ["no tensor"]),
        ({"__metadata__": 3, **GOOD}, ["__metadata__"]),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
         b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', ["'a'", "twice"]),
        (GOOD | {"b": record(4, 12, [2])}, ["'a'", "'b'", "overlap"]),
        (GOOD | {"b": record(0, 8, [2])}, ["overlap"]),
        ({"a": GOOD["a"], "b": record(12, 16, [1])}, ["8 bytes belong to no tensor"]),
        ({"b": GOOD["b"]}, ["belong to no tensor"]),
        (GOOD | {"b": record(8, 24, [4])}, ["'b'", "truncated"]),
        (GOOD | {"b": record(8, 2**70, [4])}, ["'b'", "truncated"]),
        (GOOD | {"b": record(16, 8, [2])}, ["'b'", "malformed"]),
        (GOOD | {"b": record(8, 16, [3])}, ["'b'", "12 bytes"]),
        (GOOD | {"b": record(8, 16, [2**40, 2**40])}, ["'b'", "bytes"]),
        (GOOD | {"b": record(8, 16, [-2])}, ["'b'", "malformed"]),
        (GOOD | {"b": record(8, 16, [2.0])}, ["'b'", "malformed"]),  # type: ignore[list-item]
        (GOOD | {"b": record(8, 16, [True, 2])}, ["'b'", "malformed"]),
        (GOOD | {"b": record(8, 16, "2")}, ["'b'", "malformed"]),  # type: ignore[arg-type]
        (GOOD | {"b": record(-8, 0, [2])}, ["'b'", "malformed"]),
        (GOOD | {"b": record(8, 16, [2], "F33")}, ["'b'", "'F33'", "known:"]),
        (GOOD | {"b": record(8, 16, [2], None)}, ["'b'", "None"]),  # type: ignore[arg-type]
        (GOOD | {"b": record(8, 16, [2], ["F32"])}, ["'b'"]),  # type: ignore[arg-type]
        (GOOD | {"b": None}, ["'b'", "malformed"]),
        (GOOD | {"b": []}, ["'b'", "malformed"]),
        (GOOD | {"b": {"dtype": "F32", "shape": [2]}}, ["'b'", "malformed"]),
        (GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, ["'b'"]),
        (GOOD | {"line\nbreak": record(8, 24, [4])}, ["line\\nbreak"]),
    ],
)  # fmt: skip
def test_malformed_header(tmp_path: Path, header: Any, words: list[str]) -> None:
    refuses(
        raw_file(tmp_path / "model.safetensors", header, bytes(16)), "model.safetensors", *words
    )


# Files outside the directory


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "a/../../secret.safetensors", "{}/secret.safetensors", "", "a\0b"],
)
def test_index_that_names_a_file_outside(tmp_path: Path, tiny: Path, shard: str) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": shard.format(tmp_path)}}))
    refuses(tiny, INDEX, "outside", "refused")


@pytest.mark.parametrize("where", ["secret.safetensors", "blobs/secret.safetensors"])
@pytest.mark.parametrize("relative", [True, False])
def test_links_that_leave_the_directory(
    tmp_path: Path, tiny: Path, where: str, relative: bool
) -> None:
    """A folder called blobs is the hub's only beside a folder called snapshots."""
    secret = tmp_path / where
    secret.parent.mkdir(exist_ok=True)
    save_file({"w": torch.ones(1)}, secret)
    (tiny / "x.safetensors").symlink_to(os.path.relpath(secret, start=tiny) if relative else secret)
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": "x.safetensors"}}))
    refuses(tiny, "x.safetensors", "refused")


def test_links_through_a_linked_folder(tmp_path: Path, tiny: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    save_file({"w": torch.ones(1)}, outside / "x.safetensors")
    (tiny / "sub").symlink_to(outside)
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": "sub/x.safetensors"}}))
    refuses(tiny, "sub/x.safetensors", "refused")


def test_links_and_folders_that_stay_inside_are_fine(tiny: Path) -> None:
    (tiny / "sub").mkdir()
    save_file({"w": torch.ones(1)}, tiny / "sub" / "x.safetensors")
    (tiny / "link.safetensors").symlink_to("sub/x.safetensors")
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": "link.safetensors"}}))
    assert list(read_index(tiny).entries) == ["w"]


@pytest.mark.parametrize("shard", ["x" * 5000, "\ud800", "a/" * 3000])
def test_index_with_impossible_file_names(tiny: Path, shard: str) -> None:
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(LayerstatsError):
        read_index(tiny)
