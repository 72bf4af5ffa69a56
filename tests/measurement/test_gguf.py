"""A GGUF file goes through inspect and measure like any checkpoint, quantised types and all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from layerstats.cli import run
from layerstats.errors import CheckpointError
from layerstats.measurement import measure
from tests.checkpoint import tiny_gguf
from tests.conftest import llama_tensors, write_checkpoint

METRICS = ["frobenius_norm", "mean_abs", "alpha_mid"]


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_1])
def test_gguf_measures_as_the_same_weights_in_safetensors(kind: Type, tmp_path: Path) -> None:
    tensors = tiny_gguf.dense_tensors()
    file = tiny_gguf.write(tmp_path / "tiny.gguf", tensors, kind=kind)
    read_back = {
        name: torch.from_numpy(np.ascontiguousarray(tiny_gguf.quantized(weight, kind)))
        for name, weight in tensors.items()
    }
    plain = write_checkpoint(tmp_path / "plain", read_back)
    ours, expected = measure(file, metrics=METRICS), measure(plain, metrics=METRICS)
    assert ours.num_layers == expected.num_layers == tiny_gguf.LAYERS
    assert list(ours.matrices["name"]) == list(expected.matrices["name"])
    for name in METRICS:
        # Whole rows may come in another order (rotary pairs): no norm or spectrum depends on it.
        np.testing.assert_allclose(ours.matrices[name], expected.matrices[name], rtol=1e-6)


def test_inspect_shows_stored_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_gguf.write(tmp_path / "t.gguf", tiny_gguf.dense_tensors(), kind=Type.Q8_0)
    assert run(["inspect", str(file), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert {row["dtype"] for row in page["matrices"]} == {"Q8_0"}
    assert len(page["matrices"]) == 7 * tiny_gguf.LAYERS + 1
    assert page["layers_path"] == "model.layers"


def test_layers_of_packed_weights_are_named_and_the_others_measured(tmp_path: Path) -> None:
    tensors = llama_tensors()
    for name in [
        name for name in tensors if name.startswith("model.layers.1.") and "norm" not in name
    ]:
        del tensors[name]
        packed = torch.zeros(4, 4, dtype=torch.int32)
        tensors[name.replace(".weight", ".qweight")] = packed
    stats = measure(write_checkpoint(tmp_path / "mixed", tensors), metrics=METRICS)
    rows = stats.layers.set_index("name")
    assert (rows.drop("layer 1", errors="ignore")["status"] == "ok").all()
    assert len([skip for skip in stats.meta["skipped"] if skip["lost"]]) == 7


def test_nothing_to_measure_is_one_line(tmp_path: Path) -> None:
    tensors = {f"h.{layer}.fc.qweight": torch.zeros(8, 8, dtype=torch.int32) for layer in range(3)}
    folder = write_checkpoint(tmp_path / "packed", tensors)
    with pytest.raises(CheckpointError, match="no weight matrix that can be measured"):
        measure(folder, metrics=METRICS)
