"""Water-filling: shares in proportion to weights, between a floor and a ceiling, with an exact sum.

Here belongs the step from scores to inclusion probabilities, and the same step for other shares
(the ranks of an adapter).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerstats.errors import UsageError

__all__ = ["fill_between", "water_fill"]

FloatArray = NDArray[np.float64]


def water_fill(scores: ArrayLike, expected_active: float, *, floor: float = 0.0) -> FloatArray:
    """Turn scores into inclusion probabilities that sum to `expected_active`, none above 1.

    ``pi_l = max(floor, min(1, c * score_l))`` with the one c that gives ``sum pi =
    expected_active``. Clipping ``gamma * p`` at 1, as a plain reading of the papers does, would
    lose the mass above 1; here the layers at 1 (and at the floor) are set aside and the rest is
    scaled again until none is outside.

    Parameters
    ----------
    scores : array_like, shape (num_layers,)
        Finite, none negative. A layer with score 0 gets the floor.
    expected_active : float
        Number of layers per interval (gamma), above 0. At `num_layers` or more every layer gets 1.
    floor : float
        No probability is below it; from 0 to ``expected_active / num_layers``.

    Returns
    -------
    ndarray, shape (num_layers,), float64
        Values in [floor, 1].

    Raises
    ------
    UsageError
        When a score is negative or not finite, the floor is too high, or fewer layers have a
        positive score than are asked for.

    References
    ----------
    Tille, Y. (2006), Sampling Algorithms, section 2.10 (inclusion probabilities proportional to
    size).

    Examples
    --------
    >>> water_fill([3.0, 1.0, 1.0, 1.0], 2)
    array([1.        , 0.33333333, 0.33333333, 0.33333333])
    >>> water_fill([6.0, 3.0, 1.0, 0.0], 2, floor=0.25)
    array([1.  , 0.5 , 0.25, 0.25])
    """
    values = np.array(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)) or values.min() < 0:
        msg = "scores must be a list of finite numbers, one a layer and none negative"
        raise UsageError(msg)
    if not (math.isfinite(expected_active) and expected_active > 0):
        msg = f"expected_active must be above 0 and finite, got {expected_active}"
        raise UsageError(msg)
    highest = min(1.0, expected_active / values.size)
    if not 0 <= floor <= highest:
        msg = (
            f"floor must be from 0 to expected_active / layers = {highest:g}, got {floor:g}; "
            "that value itself makes all layers alike"
        )
        raise UsageError(msg)
    if expected_active >= values.size:
        return np.ones_like(values)
    positive = int(np.count_nonzero(values))
    if expected_active > positive + floor * (values.size - positive):
        msg = (
            f"expected_active {expected_active:g} is more than the {positive} layers "
            "with a positive score; lower expected_active or use scores above 0"
        )
        raise UsageError(msg)
    return fill_between(values, expected_active, low=floor, high=1.0)


def fill_between(weights: FloatArray, total: float, *, low: float, high: float) -> FloatArray:
    """Share out `total` in proportion to weights, each share from `low` to `high`.

    ``x_l = max(low, min(high, c * w_l))`` with the one c that gives ``sum x = total``. Each round
    fixes the shares beyond the worse of the two bounds, which is final, and scales the rest again.

    Parameters
    ----------
    weights : ndarray, shape (n,)
        None negative, at least one above 0.
    total : float
        Must be reachable: from ``n * low`` to what the positive weights can take at `high`.

    Returns
    -------
    ndarray, shape (n,), float64

    References
    ----------
    Luss and Gupta (1975), Oper. Res. 23, 360-366 (allocation between bounds).

    Examples
    --------
    >>> fill_between(np.array([8.0, 1.0, 1.0]), 30.0, low=4.0, high=20.0)
    array([20.,  5.,  5.])
    """
    result = np.full_like(weights, low)
    free = weights > 0
    at_high = 0
    while free.any():
        at_low = weights.size - at_high - int(np.count_nonzero(free))
        mass = total - at_high * high - at_low * low
        if mass >= high * np.count_nonzero(free):
            result[free] = high
            return result
        shares = weights[free] / weights[free].max()
        # fsum rounds once, so the same scores give the same probabilities on every platform.
        filled = mass * (shares / math.fsum(shares.tolist()))
        above, below = filled >= high, filled < low
        if not above.any() and not below.any():
            result[free] = filled
            return result
        over = math.fsum((filled[above] - high).tolist())
        under = math.fsum((low - filled[below]).tolist())
        upwards = not below.any() or (bool(above.any()) and over >= under)
        fixed = np.flatnonzero(free)[above if upwards else below]
        result[fixed] = high if upwards else low
        at_high += len(fixed) if upwards else 0
        free[fixed] = False
    return result
