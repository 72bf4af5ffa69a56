"""Vectors over layers before a rule sees them: checked, mapped, turned round, made comparable.

Here belong the small, documented steps between a measured column and weights: `map_scores`,
`mirror`, `shares` and `sharpen`. Each takes a vector and returns one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerstats.errors import UsageError, choices

__all__ = ["NORMALISE", "check_scores", "map_scores", "mirror", "shares", "sharpen"]

FloatArray = NDArray[np.float64]

TEMPBALANCE_RANGE = (0.5, 1.5)
"""Where TempBalance (arXiv:2312.00359) maps alpha linearly, as a learning rate's factor."""

NORMALISE = ("sum", "rank")


def check_scores(scores: ArrayLike, *, what: str = "scores") -> FloatArray:
    """Return scores as a float64 vector, or say which layer's value cannot be used.

    Raises
    ------
    UsageError
        Not one-dimensional, empty, or a value that is missing or infinite.

    Examples
    --------
    >>> check_scores([1, 2])
    array([1., 2.])
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        msg = f"{what}: not a list of numbers; give one number a layer"
        raise UsageError(msg) from None
    if values.ndim != 1 or values.size == 0:
        msg = f"{what}: has shape {values.shape}; give one number a layer"
        raise UsageError(msg)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        msg = (
            f"{what}: layer {bad[0]} has no finite value ({values[bad[0]]}); "
            "measure that layer, or give a list of scores without gaps"
        )
        raise UsageError(msg)
    return values


def map_scores(values: FloatArray, metric: str | None) -> tuple[FloatArray, dict[str, Any]]:
    """Turn a metric into weights that are not negative, where the metric's sign calls for it.

    Only `heavy_tail` (= -alpha, negative for every layer) has a map: linear from its smallest to
    its largest value onto 0.5 .. 1.5, so that the heaviest tail gets three times the weight of the
    lightest; layers that are all equal get 1. That is the range TempBalance maps alpha to. A ratio
    of values, as for LOD, would have no meaning: alpha is an exponent. Other metrics pass as they
    are and must not be negative.

    Returns
    -------
    weights : ndarray, shape (num_layers,)
    parameters : dict
        What was done, for the schedule's provenance; empty when nothing was.

    References
    ----------
    Zhou et al. (2023), TempBalance, arXiv:2312.00359.

    Examples
    --------
    >>> map_scores(np.array([-4.0, -3.0, -2.0]), "heavy_tail")[0]
    array([0.5, 1. , 1.5])
    """
    if metric != "heavy_tail":
        return values, {}
    low, high = TEMPBALANCE_RANGE
    parameters = {"score_map": {"kind": "linear", "low": low, "high": high}}
    spread = values.max() - values.min()
    if spread == 0:
        return np.ones_like(values), parameters
    return low + (high - low) * (values - values.min()) / spread, parameters


def mirror(values: FloatArray) -> FloatArray:
    """Turn a column round within its own range: ``max + min - x``.

    The layer with the largest value gets the smallest and the other way round; range and spread
    stay, and values that were not negative stay so. (OwLore's program takes ``max - x``, which
    gives its top layer probability 0: rule owlore-reverse.)

    Examples
    --------
    >>> mirror(np.array([4.0, 1.0, 2.0]))
    array([1., 4., 3.])
    """
    return np.asarray((values.max() - values) + values.min())


def shares(values: FloatArray, normalise: str, *, what: str = "scores") -> FloatArray:
    """Make columns of different units comparable: parts of a whole that sum to 1.

    "sum": ``x_l / sum x``, which keeps ratios. "rank": ``r_l / sum r`` with r = 1 for the smallest
    value to N for the largest (equal values share their mean rank), which keeps the order only.

    Examples
    --------
    >>> shares(np.array([1.0, 3.0]), "sum"), shares(np.array([1.0, 3.0, 3.0]), "rank")
    (array([0.25, 0.75]), array([0.16666667, 0.41666667, 0.41666667]))
    """
    if normalise not in NORMALISE:
        raise UsageError(choices("normalise", str(normalise), NORMALISE))
    if normalise == "rank":
        below = (values[:, None] > values).sum(axis=1)
        equal = (values[:, None] == values).sum(axis=1)
        values = below + (equal + 1) / 2
    if values.min() < 0:
        worst = int(values.argmin())
        msg = (
            f"{what}: layer {worst} is {values[worst]:g}, and a share cannot be negative; "
            "blend ranks (--normalise rank) or use another column"
        )
        raise UsageError(msg)
    if values.max() == 0:
        msg = f"{what}: every layer is 0, so it says nothing; leave it out of the blend"
        raise UsageError(msg)
    scaled = values / values.max()
    return np.asarray(scaled / math.fsum(scaled.tolist()))


def sharpen(weights: FloatArray, temperature: float) -> FloatArray:
    """Raise weights to the power ``1 / temperature``, the largest scaled to 1.

    Above 1 the layers become more alike (all alike in the limit), below 1 the heavy ones stand out
    more; at 1 the weights are returned as they are. Zeros stay 0, and the unit of the weights does
    not matter.

    Raises
    ------
    UsageError
        A temperature that is not above 0 and finite.

    Examples
    --------
    >>> sharpen(np.array([4.0, 1.0]), 2.0)
    array([1. , 0.5])
    """
    if not (math.isfinite(temperature) and temperature > 0):
        msg = f"temperature must be above 0 and finite, got {temperature}"
        raise UsageError(msg)
    if temperature == 1:
        return weights
    return np.asarray((weights / weights.max()) ** (1.0 / temperature))
