"""What a sampling law will do over a run, exactly and before it is run.

Here belong numbers about a plan that are not a draw: how many layers an interval has, how
many layers never train.
"""

from __future__ import annotations

import math

import numpy as np

from layerstats.schedules.sampling import FloatArray, Target, get_law

__all__ = ["active_count_distribution", "expected_untrained"]


def active_count_distribution(name: str, target: Target) -> FloatArray:
    """Return the exact distribution of the number of layers an interval has.

    Returns
    -------
    ndarray, shape (num_layers + 1,), float64
        Entry k is the probability (for quota: the long-run share of intervals) of k active layers.

    Examples
    --------
    >>> active_count_distribution("bernoulli", Target((1.0, 1.0), (0.5, 0.5), 1))
    array([0.25, 0.5 , 0.25])
    """
    distribution = np.zeros(len(target.probabilities) + 1)
    if get_law(name).fixed_size:
        low = math.floor(target.expected_active)
        above = target.expected_active - low
        distribution[low] = 1.0 - above
        if above:
            distribution[low + 1] = above
        return distribution
    distribution[0] = 1.0
    for probability in target.probabilities:
        distribution[1:] = distribution[1:] * (1 - probability) + distribution[:-1] * probability
        distribution[0] *= 1 - probability
    return distribution


def expected_untrained(name: str, target: Target, *, intervals: int, seed: int = 0) -> float:
    """Return the expected number of layers that never train in the first `intervals` intervals.

    For laws with independent intervals this is ``sum_l (1 - pi_l) ** intervals`` with the law's own
    inclusion probabilities; for the others the plan of `seed` is walked and counted.

    Examples
    --------
    >>> lisa = Target(scores=(1.0,) * 32, probabilities=(2 / 32,) * 32, expected_active=2)
    >>> round(expected_untrained("systematic", lisa, intervals=7), 1)
    20.4
    """
    law = get_law(name)
    if law.independent:
        return float(np.sum((1.0 - law.inclusion(target)) ** intervals))
    seen: set[int] = set()
    for interval in range(intervals):
        seen.update(law.draw(target, seed, interval))
    return float(len(target.probabilities) - len(seen))
