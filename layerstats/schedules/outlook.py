"""What a sampling law will do over a run, exactly and before it is run.

Here belong numbers about a plan that are not a draw: how many layers an interval has, how
often each trains, which never do.
"""

from __future__ import annotations

import math

import numpy as np

from layerstats.schedules.sampling import FloatArray, Target, get_law

__all__ = [
    "active_count_distribution",
    "expected_steps",
    "expected_untrained",
    "never_trained",
]


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


def never_trained(name: str, target: Target, *, intervals: int, seed: int = 0) -> FloatArray:
    """Return each layer's chance never to train in the first `intervals` intervals.

    For laws with independent intervals ``(1 - pi_l) ** intervals`` with the law's own inclusion
    probabilities; for the others the plan of `seed` is walked, and the chance is 0 or 1.

    Examples
    --------
    >>> never_trained("systematic", Target((1.0, 1.0), (0.5, 0.5), 1), intervals=2)
    array([0.25, 0.25])
    """
    law = get_law(name)
    if law.independent:
        return np.asarray((1.0 - law.inclusion(target)) ** intervals)
    chance = np.ones(len(target.probabilities))
    for interval in range(intervals):
        chance[law.draw(target, seed, interval)] = 0.0
    return chance


def expected_untrained(name: str, target: Target, *, intervals: int, seed: int = 0) -> float:
    """Return the expected number of layers that never train in the first `intervals` intervals.

    The sum of `never_trained`: for laws with independent intervals ``sum_l (1 - pi_l) **
    intervals``, for the others a count of the plan of `seed`.

    Examples
    --------
    >>> lisa = Target(scores=(1.0,) * 32, probabilities=(2 / 32,) * 32, expected_active=2)
    >>> round(expected_untrained("systematic", lisa, intervals=7), 1)
    20.4
    """
    return float(np.sum(never_trained(name, target, intervals=intervals, seed=seed)))


def expected_steps(
    name: str, target: Target, *, steps: int, interval_steps: int, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Return how many intervals and how many steps each layer trains in, in expectation.

    The last interval may be cut off: it counts as an interval, with the steps it has. For laws with
    independent intervals ``intervals * pi_l`` and ``steps * pi_l``; for the others a count of the
    plan of `seed`.

    Returns
    -------
    intervals, steps : ndarray, shape (num_layers,)

    Examples
    --------
    >>> goal = Target((1.0, 1.0), (0.5, 0.5), 1)
    >>> expected_steps("bernoulli", goal, steps=50, interval_steps=20)
    (array([1.5, 1.5]), array([25., 25.]))
    """
    law, count = get_law(name), -(-steps // interval_steps)
    if law.independent:
        inclusion = law.inclusion(target)
        return count * inclusion, steps * inclusion
    intervals, trained = np.zeros((2, len(target.probabilities)))
    for interval in range(count):
        active = law.draw(target, seed, interval)
        intervals[active] += 1
        trained[active] += min(interval_steps, steps - interval * interval_steps)
    return intervals, trained
