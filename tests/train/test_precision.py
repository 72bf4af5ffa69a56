"""bfloat16 weights, and float32 weights with a bfloat16 forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerstats.train import train
from tests.train.tiny import config, log, weights_of


@pytest.mark.parametrize("method", ["full", "lora", "galore", "lisa", "owlore"])
def test_bfloat16_weights_and_states(tmp_path: Path, method: str) -> None:
    settings = config(tmp_path, method, steps=30, dtype="bfloat16", save_every=30, lr=3e-3)
    result = train(settings)
    losses = [entry["loss"] for entry in log(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    assert {one.dtype for one in weights_of(result.out / "model").values()} == {torch.bfloat16}
    states = weights_of(result.out / "checkpoints" / "step-000030")
    moments = {one.dtype for name, one in states.items() if "::exp_avg" in name}
    # peft keeps its adapters in float32.
    assert moments == {torch.float32 if method == "lora" else torch.bfloat16}


@pytest.mark.parametrize("method", ["full", "lisa"])
def test_autocast_computes_in_bfloat16_and_keeps_float32(tmp_path: Path, method: str) -> None:
    for autocast in (False, True):
        train(config(tmp_path, method, out=str(autocast), autocast=autocast))
    plain, cast = ([e["loss"] for e in log(tmp_path / out)] for out in ("False", "True"))
    assert plain == pytest.approx(cast, rel=0.02)
    assert plain != cast
    found = weights_of(tmp_path / "True" / "model")
    assert {one.dtype for one in found.values()} == {torch.float32}
