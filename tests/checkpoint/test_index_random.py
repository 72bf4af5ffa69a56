"""Random damage to headers, files and indexes: read or refused, never anything else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from layerstats.checkpoint.index import DTYPE_BITS, read_index
from layerstats.checkpoint.layout import find_layout
from layerstats.errors import LayerstatsError
from tests.checkpoint.test_index import INDEX, raw_file


def _damage(change: Callable[[], object]) -> None:
    """Nothing but a LayerstatsError may come out."""
    with contextlib.suppress(LayerstatsError):
        change()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BITS, "F31"]) | _VALUES,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | _VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | _VALUES,
    },
)
_FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_FAST
@given(
    header=st.dictionaries(st.text(max_size=6), _RECORDS | _VALUES, max_size=4),
    size=st.integers(0, 40),
)
def test_any_header_is_read_or_refused(tmp_path: Path, header: Any, size: int) -> None:
    file = raw_file(tmp_path / "model.safetensors", header, bytes(size))

    def use() -> None:
        index = read_index(file)
        # Whatever is accepted can be laid out, and lies inside the file.
        layout = find_layout(index)
        assert {m.name for m in layout.matrices} | {s.name for s in layout.skipped} == set(
            header
        ) - {"__metadata__"}
        assert sum(entry.nbytes for entry in index.entries.values()) == size

    _damage(use)


@_FAST
@given(data=st.data())
def test_any_changed_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    tensors = {f"h.{layer}.w.weight": torch.zeros(2, 3) for layer in range(2)}
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    stored = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stored) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "insert"]))
        if change == "byte":
            stored[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del stored[at : at + data.draw(st.integers(1, 20))]
            stored = stored or bytearray(1)
        else:
            stored[at:at] = data.draw(st.binary(max_size=9))
    file.write_bytes(stored)
    _damage(lambda: find_layout(read_index(file)))


@_FAST
@given(
    document=_VALUES
    | st.fixed_dictionaries(
        {"weight_map": _VALUES | st.dictionaries(st.text(max_size=4), st.text(max_size=8))}
    )
)
def test_any_index_file_is_read_or_refused(tmp_path: Path, document: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps(document))
    _damage(lambda: read_index(tmp_path))
