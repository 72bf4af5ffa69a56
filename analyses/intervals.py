"""The one interval that analyses need and the library does not have: of repeated runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["mean_interval"]


def mean_interval(values: ArrayLike) -> dict[str, Any]:
    """Return mean and 95 % interval (Student's t) of independent repetitions.

    Examples
    --------
    >>> [round(end, 2) for end in mean_interval([1.0, 2.0, 3.0])["interval"]]
    [-0.48, 4.48]
    """
    found = np.asarray(values, dtype=float)
    mean, half = float(found.mean()), 0.0
    if found.size > 1:
        spread = found.std(ddof=1) / np.sqrt(found.size)
        half = float(stats.t.ppf(0.975, found.size - 1) * spread)
    return {"mean": mean, "interval": [mean - half, mean + half]}
