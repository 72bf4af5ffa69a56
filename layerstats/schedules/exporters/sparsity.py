"""Sparsity by layer for pruning programs, as OWL or AlphaPruning spread it from a metric."""

from __future__ import annotations

import numpy as np

from layerstats.errors import UsageError, choices
from layerstats.schedules.exporters.parts import header, layer_weights
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)
from layerstats.schedules.scores import FloatArray
from layerstats.stats import strict_json

__all__ = ["alphapruning_sparsity", "owl_sparsity", "sparsity"]

MEAN = 0.7
SPREADS = {"owl": 0.08, "alphapruning": 0.3}
"""OWL's lambda and AlphaPruning's epsilon, as their examples for Llama have them."""


@exporter(
    "sparsity",
    summary="a sparsity ratio by layer, as OWL or AlphaPruning spread it",
    reference="OWL, arXiv:2310.05175, lib/prune_all.py; AlphaPruning, arXiv:2410.10912",
    options=("stats", "metric", "sparsity", "spread", "method"),
)
def sparsity(request: ExportRequest) -> Export:
    """Write `sparsity.json` and `sparsity.txt` (one ratio a line).

    A large score means: prune less. With --method alphapruning the score should be heavy_tail, so
    that well trained layers (small alpha) keep more.
    """
    schedule = request.schedule
    method = request.method or "owl"
    if method not in SPREADS:
        raise UsageError(choices("method", method, SPREADS))
    mean = MEAN if request.sparsity is None else request.sparsity
    spread = SPREADS[method] if request.spread is None else request.spread
    scores, name = layer_weights(request)
    if method == "owl":
        ratios = owl_sparsity(scores, mean, spread)
    else:
        sizes = None
        if request.stats is not None:
            sizes = request.stats.blocks["parameters"].to_numpy(dtype=np.float64)
        ratios = alphapruning_sparsity(-scores, mean, spread, sizes=sizes)
    notes = [
        f"sparsity {ratios.min():.4g} to {ratios.max():.4g} from {name}, method {method}, spread "
        f"{spread:g}; the more a layer scores, the less it is pruned",
        _mean_note(method, mean, request),
        "pruning has no intervals: probabilities, seed and sampling play no part",
    ]
    document = {
        "format": "layerstats-sparsity",
        "version": 1,
        "method": method,
        "mean": mean,
        "spread": spread,
        "scores_from": name,
        "sparsity": ratios.tolist(),
        "notes": notes,
    }
    lines = "".join(f"{ratio!r}\n" for ratio in ratios.tolist())
    title = "Sparsity of each layer, from layer 0, a ratio a line"
    return Export(
        "sparsity",
        (
            ExportedFile("sparsity.json", strict_json(document, indent=2) + "\n"),
            ExportedFile("sparsity.txt", header(title, schedule, notes) + lines),
        ),
        tuple(notes),
    )


def owl_sparsity(scores: FloatArray, mean: float, spread: float) -> FloatArray:
    """Return OWL's sparsity: ``s_l = S - (x_l - mean x)``, ``x = 2 lambda (D - min) / range``.

    The plain mean over layers is S; layers of equal score all get S.

    Examples
    --------
    >>> owl_sparsity(np.array([1.0, 2.0, 3.0]), 0.7, 0.08).round(6).tolist()
    [0.78, 0.7, 0.62]
    """
    _check(mean, spread)
    scaled = 2 * spread * _unit(scores)
    return _inside(mean - (scaled - scaled.mean()))


def alphapruning_sparsity(
    alphas: FloatArray, mean: float, spread: float, *, sizes: FloatArray | None = None
) -> FloatArray:
    """Return AlphaPruning's sparsity: ``s_l = c (1 - eps + 2 eps (alpha - min) / range)``.

    c makes the mean over parameters (`sizes`; over layers without them) equal to S.

    Examples
    --------
    >>> alphapruning_sparsity(np.array([2.0, 3.0, 4.0]), 0.5, 0.2).round(6).tolist()
    [0.4, 0.5, 0.6]
    """
    _check(mean, spread)
    ratios = 1 - spread + 2 * spread * _unit(alphas)
    weights = np.ones_like(ratios) if sizes is None else sizes
    return _inside(ratios * (mean * weights.sum() / np.sum(weights * ratios)))


def _unit(values: FloatArray) -> FloatArray:
    extent = values.max() - values.min()
    if extent == 0:
        return np.full_like(values, 0.5)
    return np.asarray((values - values.min()) / extent)


def _check(mean: float, spread: float) -> None:
    if not 0 < mean < 1:
        msg = f"sparsity must be between 0 and 1, got {mean:g}"
        raise UsageError(msg)
    if not 0 <= spread < 1:
        msg = f"spread must be from 0 to below 1, got {spread:g}"
        raise UsageError(msg)


def _inside(ratios: FloatArray) -> FloatArray:
    if ratios.min() < 0 or ratios.max() >= 1:
        msg = (
            f"the layers' sparsities would go from {ratios.min():.3g} to {ratios.max():.3g}; "
            "lower --spread until they are from 0 to below 1"
        )
        raise UsageError(msg)
    return ratios


def _mean_note(method: str, mean: float, request: ExportRequest) -> str:
    if method == "alphapruning" and request.stats is not None:
        return f"the mean over parameters is {mean:g}"
    text = f"the mean over layers is {mean:g}"
    if method == "alphapruning":
        text += "; with --stats it is the mean over parameters, as AlphaPruning has it"
    return text
