"""Which layers, trained together, need the most memory: what a plan must be made for.

Here belongs the choice of the draws to be rehearsed, from a schedule and the layers' sizes; nothing
here counts bytes of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerstats.schedules import Schedule, active_count_distribution

__all__ = ["WorstCase", "worst_case"]

_SURE = 0.99


@dataclass(frozen=True)
class WorstCase:
    """How many layers an interval can have, and which draws to rehearse for it.

    Parameters
    ----------
    layers : int
        Layers on together in the heaviest case: the larger one of the next two.
    quantile_99 : int
        In 99 of 100 intervals there are no more.
    largest_drawn : int
        Of the intervals of this run, with the schedule's seed.
    intervals : int
        Intervals of this run.
    heaviest_interval : int
        The first of those whose layers have the most bytes.
    heaviest_layers : tuple of int
        Its layers.
    draws : tuple of tuple of int
        Sets of `layers` layers to rehearse, in this order; see `worst_case`.
    """

    layers: int
    quantile_99: int
    largest_drawn: int
    intervals: int
    heaviest_interval: int
    heaviest_layers: tuple[int, ...]
    draws: tuple[tuple[int, ...], ...]


def worst_case(schedule: Schedule, sizes: Sequence[int], *, steps: int) -> WorstCase:
    """Find the draws that bound what any interval of a run can need.

    The largest layers that can be drawn, as many as an interval has at most. Among equal layers it
    depends on the model which place is worse, so several are rehearsed: the lowest (all their
    inputs are kept when the backward pass begins), the highest (their gradients are there before
    the activations below them are gone) and, where the embedding is frozen, the lowest one with the
    highest ones (the backward pass has to go all the way down).

    Parameters
    ----------
    schedule : Schedule
    sizes : sequence of int, length num_layers
        Bytes of each layer's parameters.
    steps : int
        Optimizer steps of the run.

    Returns
    -------
    WorstCase

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> lisa = schedule("lisa", num_layers=32, expected_active=2, sampling="bernoulli")
    >>> found = worst_case(lisa, [1] * 32, steps=1000)
    >>> found.quantile_99, found.largest_drawn, found.draws[0]
    (6, 7, (0, 1, 2, 3, 4, 5, 6))
    """
    distribution = active_count_distribution(schedule.sampling, schedule.target)
    quantile = int(np.searchsorted(np.cumsum(distribution), _SURE - 1e-12))
    drawn = schedule.plan(-(-steps // schedule.interval_steps))
    heaviest = max(drawn, key=lambda layers: (sum(sizes[at] for at in layers), len(layers)))
    largest = max(map(len, drawn))
    possible = [at for at, share in enumerate(schedule.inclusion_probabilities) if share > 0]
    count = min(max(quantile, largest), len(possible))
    return WorstCase(
        layers=count,
        quantile_99=quantile,
        largest_drawn=largest,
        intervals=len(drawn),
        heaviest_interval=drawn.index(heaviest),
        heaviest_layers=heaviest,
        draws=_placed(possible, sizes, count, deep="embed" not in schedule.always_active),
    )


def _placed(
    possible: Sequence[int], sizes: Sequence[int], count: int, *, deep: bool
) -> tuple[tuple[int, ...], ...]:
    """Return the largest layers; among equals the lowest, the highest, or the lowest with those."""
    low = sorted(possible, key=lambda at: (-sizes[at], at))[:count]
    high = sorted(possible, key=lambda at: (-sizes[at], -at))
    draws = [low, high[:count]]
    if deep and count:
        lowest = min(possible)
        draws.append([lowest, *(at for at in high if at != lowest)][:count])
    return tuple(dict.fromkeys(tuple(sorted(draw)) for draw in draws))
