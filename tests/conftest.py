"""Fixtures for all tests: checkpoints made on the spot, and the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from safetensors.torch import save_file

from layerstats.errors import NetworkError

if TYPE_CHECKING:
    from layerstats.demo_data import WordProblems

# A busy machine must not fail a law by its clock; CI tries the same examples every time.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real checkpoint SmolLM2-135M, fetched once and cached."""
    from layerstats.demo_data import demo_checkpoint

    try:
        return demo_checkpoint()
    except NetworkError as error:
        pytest.skip(f"the real checkpoint is not to be had here: {error}")


@pytest.fixture(scope="session")
def word_problems() -> WordProblems:
    """The word problems of the demo, made once and cached."""
    from layerstats.demo_data import word_problems

    try:
        return word_problems()
    except NetworkError as error:
        pytest.skip(f"the word problems are not to be had here: {error}")


@pytest.fixture(scope="session")
def moby_dick() -> Path:
    """The calibration text that the package ships."""
    from layerstats.demo_data import calibration_text

    return calibration_text()


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> Path:
    """Write tensors as a checkpoint of one or several shards, cut in the middle of blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def llama_tensors(
    layers: int = 4, width: int = 16, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random tensors with the names of a small Llama; weights are no more than numbers here."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    tensors = {"model.embed_tokens.weight": random(40, width), "model.norm.weight": random(width)}
    for layer in range(layers):
        start = f"model.layers.{layer}."
        tensors |= {f"{start}self_attn.{part}_proj.weight": random(width, width) for part in "qkvo"}
        tensors |= {
            f"{start}mlp.{part}_proj.weight": random(3 * width, width) for part in ("gate", "up")
        }
        tensors[f"{start}mlp.down_proj.weight"] = random(width, 3 * width)
        tensors[f"{start}input_layernorm.weight"] = random(width)
    return tensors


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of four Llama-shaped blocks in three shards."""
    return write_checkpoint(tmp_path / "tiny", llama_tensors(), shards=3)
