"""What transformers joins, splits or turns while loading finds its way back to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from layerstats.calibration import calibrate
from layerstats.calibration.attribute import complete_experts
from layerstats.calibration.record import Seen, Slot
from layerstats.checkpoint.reader import open_checkpoint
from tests.calibration.conftest import SAMPLES, SEQ_LEN, Family
from tests.calibration.test_full_model import measured, rewrite, tensors_of


def test_split_and_turned_weights(own: Family, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that splits a fused tensor, one that turns, and one that mixes input features."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Concatenate, Split, Transpose, WeightConverter

    directory = own("llama")
    expected = measured(directory, text)
    tensors = tensors_of(directory)
    for i in range(4):
        start = f"model.layers.{i}."
        parts = [tensors.pop(f"{start}self_attn.{part}_proj.weight") for part in "qkv"]
        tensors[f"{start}self_attn.att_proj.weight"] = torch.cat(parts)
        tensors[f"{start}mlp.turned.weight"] = tensors.pop(
            f"{start}mlp.up_proj.weight"
        ).T.contiguous()
        left, right = tensors.pop(f"{start}mlp.down_proj.weight").chunk(2, dim=1)
        tensors[f"{start}mlp.left.weight"] = left.contiguous()
        tensors[f"{start}mlp.right.weight"] = right.contiguous()
    rewrite(directory, tensors)
    names = [f"self_attn.{part}_proj.weight" for part in "qkv"]
    halves = ["mlp.left.weight", "mlp.right.weight"]

    def mapping(*args: object, **kwargs: object) -> list[WeightConverter]:
        return [
            WeightConverter("self_attn.att_proj.weight", names, operations=[Split(dim=0)]),
            WeightConverter(
                "mlp.turned.weight", "mlp.up_proj.weight", operations=[Transpose(0, 1)]
            ),
            WeightConverter(halves, "mlp.down_proj.weight", operations=[Concatenate(dim=1)]),
        ]

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", mapping)
    found = calibrate(open_checkpoint(directory), text, samples=SAMPLES, seq_len=SEQ_LEN)
    for i in range(4):
        start = f"model.layers.{i}."
        fused = found.norms[f"{start}self_attn.att_proj.weight"]
        np.testing.assert_array_equal(fused, expected.norms[f"{start}self_attn.q_proj.weight"])
        # The halves split the input features between them.
        halves_norm = [found.norms[f"{start}mlp.{side}.weight"] for side in ("left", "right")]
        np.testing.assert_array_equal(
            np.concatenate(halves_norm), expected.norms[f"{start}mlp.down_proj.weight"]
        )
        # Nothing says that this one is stored the other way: no norms rather than wrong ones.
        assert "the wrong way round" in found.unseen[f"{start}mlp.turned.weight"]


def test_complete_experts_only_where_others_were_reached() -> None:
    totals = {Slot("a", 1): Seen(np.ones(3), 5, False), Slot("b", 0): Seen(np.ones(7), 5, True)}
    shapes = {"a": torch.Size((3, 2, 3)), "b": torch.Size((2, 7, 4)), "c": torch.Size((2, 2, 2))}
    complete_experts(totals, shapes)
    assert {(slot.parameter, slot.expert) for slot in totals} == {
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1),
    }  # fmt: skip
    assert totals[Slot("a", 2)].sums.tolist() == [0, 0, 0]
    assert totals[Slot("b", 1)].sums.shape == (7,)


def test_every_block_matrix_is_seen_or_named(own: Family, text: Path) -> None:
    """A matrix that the model has no place for is named with the reason."""
    directory = own("llama")
    tensors = tensors_of(directory)
    tensors["model.layers.2.mlp.extra.weight"] = torch.ones(64, 64)
    rewrite(directory, tensors)
    found = measured(directory, text)
    assert found.unseen == {
        "model.layers.2.mlp.extra.weight": "the model built from config.json has no place for it"
    }
    assert "model.layers.2.mlp.extra.weight" in found.info["unexpected_tensors"]


def test_parameters_no_linear_map_used_are_listed(family: Family, text: Path) -> None:
    found = measured(family("gpt_oss"), text)
    listed = {name.rpartition(".")[2] for name in found.info["parameters_without_norms"]}
    assert listed == {"gate_up_proj_bias", "down_proj_bias"}
