"""GGUF files that are cut, changed or beyond the package: named in one line, never read wrongly."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstats.checkpoint.entry import UNREADABLE_KEY
from layerstats.checkpoint.gguf import read_gguf_index, read_gguf_tensor
from layerstats.errors import CheckpointError, LayerstatsError, MissingError
from tests.checkpoint import tiny_gguf as tiny


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


def type_field(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    """The bytes of a tensor's description up to its type."""
    raw = len(name).to_bytes(8, "little") + name.encode() + len(shape).to_bytes(4, "little")
    return raw + b"".join(size.to_bytes(8, "little") for size in shape) + kind.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("kind", "word"), [(Type.Q8_K.value, "Q8_K"), (4, "GGML type 4"), (9999, "GGML type 9999")]
)
def test_a_type_that_cannot_be_dequantised_is_named_and_not_fatal(tmp_path, kind, word):
    name, shape = "blk.1.ffn_down.weight", (256, 64)
    path = tmp_path / "m.gguf"
    tensors = tiny.dense_tensors()
    tensors["model.layers.1.mlp.down_proj.weight"] = np.ones((64, 256), dtype=np.float32)
    tiny.write(path, tensors)
    patch(path, type_field(name, shape, 0), type_field(name, shape, kind))
    entries, metadata = read_gguf_index(path)
    assert list(metadata[UNREADABLE_KEY]) == ["model.layers.1.mlp.down_proj.weight"]
    entry = entries["model.layers.1.mlp.down_proj.weight"]
    assert entry.shape == (64, 256)
    with pytest.raises(CheckpointError, match=word) as caught:
        read_gguf_tensor(entry, metadata)
    assert "down_proj" in str(caught.value)
    other = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(
        read_gguf_tensor(entries[other], metadata).numpy(), tensors[other]
    )


def test_damage_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    good = tiny.write(path, tiny.dense_tensors()).read_bytes()
    cases = {
        b"": "empty",
        b"\x00" * 64: "not a GGUF file",
        good[:4] + (1).to_bytes(4, "little") + good[8:]: "version 1",
        good[:4] + (3).to_bytes(4, "big") + good[8:]: "big-endian",
        good[:-1]: "truncated",
        good[:200]: "ends too early",
        good.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"): "twice",
    }
    for data, word in cases.items():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=word) as caught:
            read_gguf_index(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingError, match="none"):
        read_gguf_index(tmp_path / "none.gguf")


def test_overlapping_tensors_are_refused(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors())
    header = type_field("blk.1.ffn_up.weight", (64, 96), 0)
    data = path.read_bytes()
    place = data.index(header) + len(header)
    path.write_bytes(data[:place] + (32).to_bytes(8, "little") + data[place + 8 :])
    with pytest.raises(CheckpointError, match="overlap"):
        read_gguf_index(path)


def test_a_file_that_shrinks_after_the_index_is_refused(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors())
    entries, metadata = read_gguf_index(path)
    last = max(entries.values(), key=lambda entry: entry.offset)
    path.write_bytes(path.read_bytes()[: last.offset + 8])
    with pytest.raises(CheckpointError, match="ends inside"):
        read_gguf_tensor(last, metadata)


def test_heads_that_do_not_divide_the_rows_are_refused(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors())
    entries, metadata = read_gguf_index(path)
    entry = entries["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(CheckpointError, match="q_proj"):
        read_gguf_tensor(entry, metadata | {"llama.attention.head_count": 7})
    with pytest.raises(CheckpointError, match="head_count"):
        read_gguf_tensor(entry, metadata | {"llama.attention.head_count": None})


def test_the_package_is_asked_for_by_name(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match=r"pip install 'layerstats\[gguf\]'"):
        read_gguf_index(path)


fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(cut=st.integers(0, 100_000))
def test_a_cut_file_never_gives_values(tmp_path, cut):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), kind=Type.Q8_0)
    data = path.read_bytes()
    path.write_bytes(data[: cut % len(data)])
    with pytest.raises(CheckpointError):
        read_gguf_index(path)


@fuzz
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_changed_header_byte_gives_values_or_a_plain_error(tmp_path, place, value):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), kind=Type.Q8_0)
    data = bytearray(path.read_bytes())
    data[place] = value
    path.write_bytes(data)
    with contextlib.suppress(LayerstatsError):  # any other error fails the test
        entries, metadata = read_gguf_index(path)
        for entry in entries.values():
            read_gguf_tensor(entry, metadata)
