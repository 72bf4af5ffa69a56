"""The Marchenko-Pastur law by integrating its density numerically, and Spectrum's own score."""

from __future__ import annotations

import numpy as np
from scipy import integrate


def marchenko_pastur_below(x: float, beta: float) -> float:
    """Share of the law below x: the integral of sqrt((b - t)(t - a)) / (2 pi beta t)."""
    a, b = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2

    def density_of_root(s: float) -> float:  # t = s^2 takes away the pole of a square matrix
        t = s * s
        return 2 * s * max((b - t) * (t - a), 0.0) ** 0.5 / (2 * np.pi * beta * t)

    return float(integrate.quad(density_of_root, a**0.5, min(x, b) ** 0.5, limit=500)[0])


def spectrum_score(singular_values: np.ndarray, shape: tuple[int, int]) -> float:
    """Work out the score as the Spectrum script does."""
    quartiles = np.quantile(singular_values, [0.25, 0.75])
    sigma = (quartiles[1] - quartiles[0]) / 1.3490
    threshold = sigma * (1 + (min(shape) / max(shape)) ** 0.5)
    above = singular_values > threshold
    noise = singular_values[~above].sum()
    ratio = singular_values[above].sum() / noise if noise else float("inf")
    return float(ratio / singular_values.max())
