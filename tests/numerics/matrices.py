"""Deterministic matrices of known kinds for the tests of this room."""

from __future__ import annotations

import numpy as np
import torch


def gaussian(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


def trained_like(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """Noise, a heavy-tailed low-rank part and uneven columns, as in a trained layer; float32."""
    rng = np.random.default_rng(seed)
    rank = max(min(rows, columns) // 4, 1)
    strengths = 3.0 * (1 - rng.random(rank)) ** -0.4
    spikes = rng.standard_normal((rows, rank)) * strengths @ rng.standard_normal((rank, columns))
    noise = rng.standard_normal((rows, columns))
    scales = np.exp(0.3 * rng.standard_normal(columns))
    matrix = 0.02 * (noise + spikes / np.sqrt(min(rows, columns))) * scales
    return torch.from_numpy(matrix.astype(np.float32))


def student_t(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_t(3, (rows, columns))
    return torch.from_numpy(values.astype(np.float32))


def rank_deficient(rows: int, columns: int, *, rank: int, seed: int = 0) -> torch.Tensor:
    return gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)


SHAPES = [(48, 96), (96, 48), (64, 64), (150, 40)]
KINDS = {"trained": trained_like, "student": student_t, "gaussian": gaussian}
