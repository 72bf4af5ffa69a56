"""Successive sampling: weighted draws without replacement, and their exact inclusion.

This is what `numpy.random.choice(N, n, replace=False, p=p)` does and so what OwLore's program does.
It does not give `n * p`: heavy layers come out too rarely, light ones too often. It is here for
reproduction.
"""

from __future__ import annotations

import bisect
import functools
import itertools

import numpy as np

from layerstats.errors import UsageError
from layerstats.schedules.sampling import (
    UNIT,
    FloatArray,
    Target,
    quantise,
    random_words,
    sampling_law,
)

__all__ = ["successive", "successive_inclusion"]

_LOG_STEP = 0.125
"""Step of the trapezium rule in log t. The integrand is analytic for |Im log t| < pi/2, so the
error is of the order exp(-pi**2 / step), far below rounding."""


def _weights(target: Target) -> FloatArray:
    scores = np.array(target.scores, dtype=np.float64)
    size = int(target.expected_active)
    if scores.min() < 0 or np.count_nonzero(scores) < size:
        msg = (
            f"successive sampling of {size} layers needs at least {size} positive scores and "
            "none below 0; lower expected_active or use systematic sampling"
        )
        raise UsageError(msg)
    shares: FloatArray = scores / scores.max()
    return np.asarray(shares / shares.sum())


@functools.lru_cache(maxsize=32)
def _inclusion(target: Target) -> tuple[float, ...]:
    weights, size = _weights(target), int(target.expected_active)
    result = np.zeros(weights.size)
    positive = np.flatnonzero(weights)
    result[positive] = _integrate(weights[positive], size) if size < positive.size else 1.0
    return tuple(result.tolist())


def _integrate(weights: FloatArray, size: int) -> FloatArray:
    """Integrate ``p_l exp(-p_l t) P(fewer than n of the other clocks rang before t)``, t > 0."""
    # Beyond `last`, even the slowest `N - size + 1` clocks cannot all be silent; before e**-40
    # nothing rang.
    slowest = np.sort(weights)[: weights.size - size + 1].sum()
    log_t = np.arange(-40.0, np.log(45.0 / slowest) + _LOG_STEP, _LOG_STEP)
    t = np.exp(log_t)[:, None]
    rung = -np.expm1(-weights * t)
    silent = np.exp(-weights * t)
    # others[a, l, k] = P(k of the clocks other than l have rung at t_a), by adding one clock after
    # the other.
    others = np.zeros((t.size, weights.size, size))
    others[:, :, 0] = 1.0
    for clock in range(weights.size):
        rings, rests = rung[:, clock, None, None], silent[:, clock, None, None]
        kept = others[:, clock].copy()
        carried = others[:, :, :-1] * rings
        others *= rests
        others[:, :, 1:] += carried
        others[:, clock] = kept
    density = weights * t * silent * others.sum(axis=2)
    return np.asarray(np.minimum(density.sum(axis=0) * _LOG_STEP, 1.0))


def successive_inclusion(target: Target) -> FloatArray:
    """Return the exact inclusion probabilities of successive sampling.

    Give every layer an exponential clock of rate p_l; the first n to ring are a successive sample.
    So ``pi_l = integral of p_l exp(-p_l t) P(fewer than n of the others rang before t) dt``,
    integrated by the trapezium rule in log t (error near rounding), with the number of rung clocks
    by exact recursion.

    Parameters
    ----------
    target : Target
        Its `scores` are the weights p (normalised here); its `expected_active` is n, a whole
        number.

    Returns
    -------
    ndarray, shape (num_layers,), float64
        Values in [0, 1], sum n.

    References
    ----------
    Rosen, B. (1972), Ann. Math. Statist. 43, 373-397; Bai et al. (2024), OwLore, arXiv:2405.18380
    (the program's use of it).

    Examples
    --------
    >>> successive_inclusion(Target((2.0, 1.0, 1.0), (1.0, 0.5, 0.5), 2)).round(6)
    array([0.833333, 0.583333, 0.583333])
    """
    return np.array(_inclusion(target))


@functools.lru_cache(maxsize=32)
def _quanta(target: Target) -> tuple[int, ...]:
    # Every positive layer keeps at least one unit, so that enough layers can always be found.
    weights = _weights(target).tolist()
    quanta = quantise(weights, 1, unit=UNIT)
    return tuple(max(q, int(weight > 0)) for q, weight in zip(quanta, weights, strict=True))


@sampling_law(
    "successive",
    summary="weighted draws without replacement, as OwLore's program; not the target probabilities",
    reference="Rosen (1972); numpy.random.choice(replace=False, p=...) in OwLore's program",
    inclusion=successive_inclusion,
    whole_number_only=True,
)
def successive(target: Target, seed: int, interval: int) -> list[int]:
    """Draw `expected_active` layers one after the other, with odds in proportion to the score."""
    size = int(target.expected_active)
    if size == len(target.scores):
        return list(range(size))
    quanta = list(_quanta(target))
    chosen: list[int] = []
    for word in random_words(seed, interval, size):
        ends = list(itertools.accumulate(quanta))
        point = word * ends[-1] >> 64
        layer = bisect.bisect_right(ends, point)
        chosen.append(layer)
        quanta[layer] = 0
    return sorted(chosen)
