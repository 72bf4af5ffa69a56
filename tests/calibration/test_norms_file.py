"""Norms that are saved come back bit for bit, and refuse to be used with another checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from layerstats.calibration import ActivationNorms
from layerstats.checkpoint.reader import open_checkpoint
from layerstats.errors import CheckpointError, LayerstatsError, MissingError
from tests.calibration.conftest import Family
from tests.calibration.test_full_model import assert_same, measured, rewrite, tensors_of


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_round_trip(name: str, family: Family, text: Path, tmp_path: Path) -> None:
    found = measured(family(name), text)
    path = found.save(tmp_path / "norms.safetensors")
    again = ActivationNorms.load(path, checkpoint=open_checkpoint(family(name)))
    assert_same(found, again)
    assert again.info == found.info
    assert [file.name for file in tmp_path.iterdir()] == ["norms.safetensors"]
    # The same norms give the same bytes.
    assert again.save(tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_info_says_how_it_was_done(family: Family, text: Path) -> None:
    info = measured(family("llama"), text).info
    expected = {
        "dtype": "float32",
        "device": "cpu",
        "attention": "sdpa",
        "walk": "replay",
        "samples": 4,
    }
    assert expected.items() <= info.items()
    assert set(info["versions"]) == {"torch", "transformers"}
    assert len(info["text_sha256"]) == 64


def test_another_checkpoint_is_refused(family: Family, text: Path, tmp_path: Path) -> None:
    path = measured(family("llama"), text).save(tmp_path / "n.safetensors")
    with pytest.raises(CheckpointError, match=r"made with another checkpoint .* headers differ"):
        ActivationNorms.load(path, checkpoint=open_checkpoint(family("qwen2")))
    assert ActivationNorms.load(path).norms


def test_a_fine_tune_of_the_same_shape_is_refused(own: Family, text: Path, tmp_path: Path) -> None:
    directory = own("llama")
    rewrite(directory, tensors_of(directory))
    path = measured(directory, text).save(tmp_path / "n.safetensors")
    tensors = tensors_of(directory)
    tensors["model.layers.3.mlp.down_proj.weight"] *= 1.01
    rewrite(directory, tensors)
    with pytest.raises(CheckpointError, match="names and shapes agree but the weights differ"):
        ActivationNorms.load(path, checkpoint=open_checkpoint(directory))


def test_other_shapes_are_refused(family: Family, text: Path, tmp_path: Path) -> None:
    found = measured(family("llama"), text)
    checkpoint = open_checkpoint(family("llama"))
    key = "model.layers.0.mlp.up_proj.weight"
    short = ActivationNorms({**found.norms, key: np.ones(3)}, found.tokens, {}, found.info)
    with pytest.raises(CheckpointError, match=r"up_proj.weight' has 3 features, not 64"):
        ActivationNorms.load(short.save(tmp_path / "a.safetensors"), checkpoint=checkpoint)
    rest = {k: v for k, v in found.norms.items() if k != key}
    partial = ActivationNorms(rest, found.tokens, {}, found.info)
    with pytest.raises(CheckpointError, match="holds nothing for the matrix"):
        ActivationNorms.load(partial.save(tmp_path / "b.safetensors"), checkpoint=checkpoint)


@pytest.mark.parametrize("kind", ["missing", "text", "other tensors", "newer", "float32"])
def test_bad_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    document = '{"format": "layerstats-activation-norms", "version": %d, '
    document += '"tokens": {}, "unseen": {}, "info": {}}'
    if kind == "text":
        path.write_text("norms", encoding="utf-8")
    elif kind == "other tensors":
        save_file({"a": np.ones(2)}, path)
    elif kind == "newer":
        save_file({"a": np.ones(2)}, path, metadata={"layerstats": document % 2})
    elif kind == "float32":
        save_file({"a": np.ones(2, np.float32)}, path, metadata={"layerstats": document % 1})
    error = MissingError if kind == "missing" else CheckpointError
    with pytest.raises(error) as caught:
        ActivationNorms.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LayerstatsError, match="cannot be written"):
        ActivationNorms({}, {}, {}, {}).save(tmp_path / "no" / "n.safetensors")
