"""The same runs on a GPU; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layerstats.train import METHODS, train
from tests.train.tiny import config, log, weights_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_the_cpu(tmp_path: Path, method: str) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        train(config(tmp_path, method, out=device, device=device, projection="svd"))
        losses.append([entry["loss"] for entry in log(tmp_path / device)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    memory = log(tmp_path / "cuda")[-1]["memory"]
    assert memory["measured_by"] == "cuda allocator"
    assert memory["peak"] >= memory["weights"] + memory["gradients"] + memory["optimizer"]


@pytest.mark.parametrize("method", ["lora", "lisa", "owlore"])
@pytest.mark.parametrize("state", ["drop", "offload"])
def test_resumed_in_the_middle(tmp_path: Path, method: str, state: str) -> None:
    """Bitwise on one device as long as its kernels are deterministic."""
    options = {"device": "cuda", "save_every": 5, "state": state, "lr_schedule": "constant"}
    whole = config(tmp_path, method, out="whole", **options)
    broken = replace(whole, out=str(tmp_path / "broken"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(whole)
        train(replace(broken, steps=7))
        train(broken, resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (weights_of(tmp_path / one / "model") for one in ("whole", "broken"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


def test_autocast_and_bfloat16(tmp_path: Path) -> None:
    for options in ({"autocast": True}, {"dtype": "bfloat16"}):
        out = next(iter(options))
        train(config(tmp_path, "lisa", out=out, device="cuda", checkpointing=True, **options))
        assert log(tmp_path / out)[-1]["loss"] < log(tmp_path / out)[0]["loss"] + 0.5
