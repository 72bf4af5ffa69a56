"""Literal LOD: score by score, in float64, everything joined."""

from __future__ import annotations

import numpy as np
import torch


def scores(weight: torch.Tensor, norms: np.ndarray) -> np.ndarray:
    """A_ij = ||X_j|| |W_ij|."""
    return np.abs(weight.to(torch.float64).numpy()) * norms[None, :]


def lod_pct(all_scores: list[np.ndarray], m: float) -> float:
    """Percent of the scores above m times their one mean."""
    joined = np.concatenate([s.reshape(-1) for s in all_scores])
    return 100.0 * float(np.count_nonzero(joined > m * joined.mean())) / joined.size


def outlier_counts(all_scores: list[np.ndarray], m: float) -> list[int]:
    """Outliers of the block in each of its matrices."""
    mean = np.concatenate([s.reshape(-1) for s in all_scores]).mean()
    return [int(np.count_nonzero(s > m * mean)) for s in all_scores]
