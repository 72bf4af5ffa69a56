"""Literal norms: everything turned to float64 at once, every product formed."""

from __future__ import annotations

import numpy as np
import torch


def frobenius_norm(weight: torch.Tensor) -> float:
    return float(np.sqrt(np.sum(weight.to(torch.float64).numpy() ** 2)))


def mean_abs(weight: torch.Tensor) -> float:
    return float(np.mean(np.abs(weight.to(torch.float64).numpy())))


def low_rank_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.linalg.norm(b.to(torch.float64).numpy() @ a.to(torch.float64).numpy()))


def updated_norm(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    product = b.to(torch.float64).numpy() @ a.to(torch.float64).numpy()
    return float(np.linalg.norm(weight.to(torch.float64).numpy() + scale * product))


def eigenvalues(weight: torch.Tensor) -> np.ndarray:
    """Squared singular values, ascending."""
    return np.sort(np.linalg.svd(weight.to(torch.float64).numpy(), compute_uv=False) ** 2)
