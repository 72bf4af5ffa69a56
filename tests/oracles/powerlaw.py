"""Literal power-law fits: the double loop of the reference programs, float64 and (one) float32.

Nothing is vectorised or pruned. `values` are ascending, positive, at least two.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def tail_alpha_and_distance(values: np.ndarray, i: int) -> tuple[float, float]:
    """Hill exponent and one-sided KS distance of the tail values[i:]."""
    logs = np.log(values)
    n = len(values) - i
    if (
        values[-1] == values[i]
    ):  # 0 / 0 in the reference programs; infinitely steep by definition here
        return math.inf, (n - 1) / n
    excess = np.sum(logs[i:]) - n * logs[i]
    alpha = 1 + n / excess if excess else math.inf
    if alpha <= 1:
        return float(alpha), 1.0
    fitted = 1 - (values[i:] / values[i]) ** (-alpha + 1)
    counted = np.arange(n) / n
    return float(alpha), float(np.max(np.abs(fitted - counted)))


def best_of(values: np.ndarray, candidates: list[int]) -> tuple[float, float, int, float]:
    """(alpha, xmin, k, D) of the first smallest D among the candidates."""
    best = None
    for i in candidates:
        alpha, distance = tail_alpha_and_distance(values, i)
        if best is None or distance < best[3]:
            best = (alpha, float(values[i]), len(values) - i, distance)
    assert best is not None
    return best


def fit_mid(values: np.ndarray) -> tuple[float, float, int, float]:
    return best_of(values, [int(len(values) / 2)])


def fit_ks(values: np.ndarray) -> tuple[float, float, int, float]:
    return best_of(values, list(range(len(values) - 1)))


def peak_window(values: np.ndarray, edge: float, lower_bound: str) -> list[int]:
    """Candidates of the fix-finger rule for a peak whose bin begins at log10(x) = edge."""
    x = 10.0**edge
    lowest = math.log10(0.95 * x) if lower_bound == "reference" else 0.95 * x
    candidates = []
    for i, value in enumerate(values[:-1]):
        if value < lowest:
            continue
        if value > 1.5 * x:
            break
        candidates.append(i)
    return candidates


def fit_peak(
    values: np.ndarray, bins: int = 100, lower_bound: str = "reference"
) -> tuple[float, float, int, float]:
    counts, edges = np.histogram(np.log10(values), bins=bins)
    if (
        values[0] == values[-1]
    ):  # numpy widens an empty range to +-0.5; any bin edge would be arbitrary
        edges = np.full(bins + 1, np.log10(values[0]))
    return best_of(values, peak_window(values, float(edges[np.argmax(counts)]), lower_bound))


def fit_peak_range(values: np.ndarray, bins: int = 100) -> tuple[float, float]:
    """Smallest and largest alpha over the bins exactly tied for fullest."""
    counts, edges = np.histogram(np.log10(values), bins=bins)
    alphas = []
    for b in np.flatnonzero(counts == counts.max()):
        window = peak_window(values, float(edges[b]), "reference")
        if window:
            alphas.append(best_of(values, window)[0])
    return min(alphas), max(alphas)


def alphapruning_peak(weight: torch.Tensor, bins: int = 100) -> float:
    """The fix-finger alpha as AlphaPruning works it out, all in float32."""
    eigenvalues = torch.sort(torch.square(torch.linalg.svdvals(weight.float()))).values
    logs = torch.log(eigenvalues)
    size = len(eigenvalues)
    log10 = torch.log10(eigenvalues)
    counts = torch.histc(log10, bins, min=float(log10.min()), max=float(log10.max()))
    edges = torch.linspace(float(log10.min()), float(log10.max()), bins + 1)
    peak = 10 ** edges[torch.argmax(counts)]
    alphas, distances = torch.zeros(size - 1), torch.ones(size - 1)
    for i, value in enumerate(eigenvalues[:-1]):
        if value < torch.log10(0.95 * peak):
            continue
        if value > 1.5 * peak:
            break
        n = float(size - i)
        alphas[i] = 1 + n / (torch.sum(logs[i:]) - n * logs[i])
        if alphas[i] > 1:
            fitted = 1 - (eigenvalues[i:] / value) ** (-alphas[i] + 1)
            distances[i] = torch.max(torch.abs(fitted - torch.arange(n) / n))
    return float(alphas[torch.argmin(distances)])
