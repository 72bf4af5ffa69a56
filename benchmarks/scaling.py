"""Time against the number of layers and of shards: linear in the one, flat in the other.

`python -m benchmarks scaling`
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.clock import Row, interleaved, single_thread
from layerstats import measure

WIDTH = 384
FEW, MANY = 16, 64
MOST_SHARDS = 32


def main() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, single_thread():
        root = Path(folder)
        for name, layers, shards in (
            ("few", FEW, 1),
            ("many", MANY, 1),
            ("cut", MANY, MOST_SHARDS),
        ):
            write(root / name, layers, shards)
        run = functools.partial(measure, metrics=["frobenius_norm", "alpha_mid"], workers=1)
        seconds, results = interleaved(
            {name: functools.partial(run, root / name) for name in ("few", "many", "cut")}, 3
        )
    whole, cut = (results[name].layers["alpha_mid"].iloc[:MANY] for name in ("many", "cut"))
    assert whole.equals(cut), "shards must not change a number"
    growth = seconds["many"] / seconds["few"] / (MANY / FEW)
    by_shards = seconds["cut"] / seconds["many"]
    return [
        Row(
            f"time of {MANY} layers over {MANY // FEW} times that of {FEW}",
            f"{growth:.2f}x",
            "≤ 1.2x",
            growth <= 1.2,
        ),
        Row(
            f"time of {MOST_SHARDS} shards over that of one",
            f"{by_shards:.2f}x",
            "≤ 1.2x",
            by_shards <= 1.2,
        ),
    ]


def write(folder: Path, layers: int, shards: int) -> None:
    """Write layers of two matrices each."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    names = [
        f"model.layers.{layer}.mlp.{part}.weight"
        for layer in range(layers)
        for part in ("up", "down")
    ]
    tensors = {name: torch.randn(WIDTH, WIDTH, generator=draw).to(torch.bfloat16) for name in names}
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
