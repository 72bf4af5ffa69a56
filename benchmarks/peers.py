"""What a user would run instead, doing the work as those programs do it.

weightwatcher is the installed package. AlphaPruning's estimator and OWL's outlier ratio are no
packages: their work is restated here from their published formulas, with the same operations,
dtypes and copies.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["alphapruning_peak", "owl_lod", "weightwatcher_alpha"]


def weightwatcher_alpha(weight: torch.Tensor) -> float:
    """Run `weightwatcher.analyze` with its defaults on one matrix and return its alpha."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        from weightwatcher import WeightWatcher

        watcher = WeightWatcher(log_level=logging.CRITICAL)
        logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
        details = watcher.analyze(model={"matrix.weight": weight.float()})
    return float(details["alpha"].iloc[0])


def alphapruning_peak(weight: torch.Tensor, bins: int = 100) -> float:
    """Fix-finger alpha as AlphaPruning finds it: a float32 SVD, a loop over candidates in torch."""
    eigenvalues = torch.square(torch.linalg.svdvals(weight.float()).flatten())
    eigenvalues, _ = torch.sort(eigenvalues, descending=False)
    nonzero, size = eigenvalues, len(eigenvalues)
    logs = torch.log(nonzero)
    log10 = torch.log10(nonzero)
    low, high = log10.min(), log10.max()
    counts = torch.histc(log10, bins, min=float(low), max=float(high))
    edges = torch.linspace(float(low), float(high), bins + 1)
    peak = 10 ** edges[torch.argmax(counts)]
    lowest, highest = torch.log10(0.95 * peak), 1.5 * peak
    alphas = torch.zeros(size - 1)
    distances = torch.ones(size - 1)
    for position, xmin in enumerate(nonzero[:-1]):
        if xmin < lowest:
            continue
        if xmin > highest:
            break
        count = float(size - position)
        steps = torch.arange(count)
        alpha = 1 + count / (torch.sum(logs[position:]) - count * logs[position])
        alphas[position] = alpha
        if alpha > 1:
            fitted = 1 - (nonzero[position:] / xmin) ** (-alpha + 1)
            distances[position] = torch.max(torch.abs(fitted - steps / count))
    return float(alphas[torch.argmin(distances)])


def owl_lod(weights: Sequence[torch.Tensor], norms: Sequence[np.ndarray], m: float) -> float:
    """Outlier ratio as OWL counts it: a block's scores in one float32 tensor, mean, comparison."""
    scores = []
    for weight, norm in zip(weights, norms, strict=True):
        scaler = torch.from_numpy(norm**2).float()
        scores.append(torch.abs(weight) * torch.sqrt(scaler.reshape((1, -1))))
    flat = torch.cat([score.flatten().cpu() for score in scores])
    return float((flat > flat.mean() * m).float().sum()) / flat.numel() * 100
