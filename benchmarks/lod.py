"""LOD of one block of 44 million weights: ours, OWL's way, two reads at memory speed.

`python -m benchmarks lod`
"""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.clock import Row, interleaved, read_rate, single_thread
from benchmarks.peers import owl_lod
from layerstats.numerics import block_outliers

#: A block of TinyLlama: q, k, v, o, gate, up, down.
SHAPES = (
    (2048, 2048),
    (256, 2048),
    (256, 2048),
    (2048, 2048),
    (5632, 2048),
    (5632, 2048),
    (2048, 5632),
)
PROMISED = {torch.float32: 12.0, torch.bfloat16: 10.0}
MEMORY_FLOOR = 2.2


def main() -> list[Row]:
    rows = []
    with single_thread():
        rate = read_rate()
        rows.append(
            Row("memory read of this machine, one thread", f"{rate / 1e9:.1f} GB/s", "", None)
        )
        for dtype, promised in PROMISED.items():
            rows += _compare(dtype, promised, rate)
    return rows


def _compare(dtype: torch.dtype, promised: float, rate: float) -> list[Row]:
    draw = np.random.default_rng(0)
    weights = [
        torch.from_numpy(draw.standard_normal(shape).astype(np.float32)).to(dtype)
        for shape in SHAPES
    ]
    norms = [draw.lognormal(0.0, 1.0, shape[1]) for shape in SHAPES]
    seconds, results = interleaved(
        {
            "ours": functools.partial(block_outliers, weights, norms, [7.0], per_matrix=False),
            "four M": functools.partial(
                block_outliers, weights, norms, [3.0, 5.0, 7.0, 13.0], per_matrix=False
            ),
            "plain": functools.partial(_without_numba, weights, norms),
            "OWL": functools.partial(owl_lod, weights, norms, 7.0),
        },
        5,
    )
    total = sum(weight.numel() for weight in weights)
    # The same count: both percentages stand for whole numbers of weights.
    assert round(results["ours"].lod_pct[0] * total / 100) == round(results["OWL"] * total / 100)
    assert results["four M"].lod_pct[2] == results["ours"].lod_pct[0]
    assert results["plain"] == results["ours"]  # bit for bit
    name = f"LOD, 44 M weights, {str(dtype).removeprefix('torch.')}"
    ratio = seconds["OWL"] / seconds["ours"]
    floor = seconds["ours"] / (2 * total * dtype.itemsize / rate)
    is_float32 = dtype == torch.float32
    return [
        Row(
            f"{name} against OWL's code, same count",
            f"{ratio:.1f}x",
            f"≥ {promised}x",
            ratio >= promised,
            f"{seconds['OWL'] * 1e3:.0f} ms against {seconds['ours'] * 1e3:.0f} ms, with numba",
            "LOD: on this machine two reads of the float32 weights at memory speed take "
            f"{2 * total * dtype.itemsize / rate * 1e3:.0f} ms, so the promised ratio "
            "would have to be "
            f"reached at {floor * ratio / promised:.2f} times that floor.",
        ),
        Row(
            f"{name} against OWL's code, without numba",
            f"{seconds['OWL'] / seconds['plain']:.1f}x",
            "",
            None,
            f"{seconds['OWL'] * 1e3:.0f} ms against {seconds['plain'] * 1e3:.0f} ms",
        ),
        Row(
            f"{name} over two reads at memory speed",
            f"{floor:.2f}x",
            f"≤ {MEMORY_FLOOR}x" if is_float32 else "",
            floor <= MEMORY_FLOOR if is_float32 else None,
        ),
        Row(
            f"{name}: four thresholds over one",
            f"{seconds['four M'] / seconds['ours']:.2f}x",
            "",
            None,
        ),
    ]


def _without_numba(weights: list[torch.Tensor], norms: list[np.ndarray]) -> Any:
    """Count as an installation without the extra `fast` does."""
    rooms = ("outliers", "column_sums")
    names = [f"layerstats.numerics.{room}.kernels_for" for room in rooms]
    with patch(names[0], lambda _: None), patch(names[1], lambda _: None):
        return block_outliers(weights, norms, [7.0], per_matrix=False)
