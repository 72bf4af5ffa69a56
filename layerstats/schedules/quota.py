"""Quota sampling: a fixed plan in which every layer's count stays within one of its share.

After I intervals layer l has been active `I * pi_l` times, rounded up or down, for every I. This is
the scheduling of periodic tasks on n processors (Pfair): each activation has a window, and the
urgent go first.
"""

from __future__ import annotations

import functools
import heapq

from layerstats.errors import UsageError
from layerstats.schedules.sampling import (
    UNIT,
    Target,
    random_order,
    random_words,
    sampling_law,
    target_quanta,
)

__all__ = ["quota"]

MAX_INTERVALS = 1 << 20
"""The plan up to an interval is worked out from 0; this bounds its time and memory."""

_Key = tuple[int, int, int, int, int]


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def _window(quantum: int, turn: int, rank: int, task: int) -> tuple[int, _Key]:
    """Return when a task's `turn`-th activation (from 1) may start, and its urgency (PD2).

    Turn k of a task of weight w must fall into intervals ``floor((k-1)/w) .. ceil(k/w) - 1``; then,
    and only then, its count never strays by one or more from its share. Urgency: earlier deadline;
    then a window that overlaps the next one; then, for weights of a half and more, the later end of
    the run of tight windows that follows; then the seed's order.
    """
    release = (turn - 1) * UNIT // quantum
    deadline = _ceil_div(turn * UNIT, quantum)
    overlaps = int(turn * UNIT % quantum != 0)
    run_end = 0
    if UNIT <= 2 * quantum < 2 * UNIT:
        rest = UNIT - quantum
        run_end = _ceil_div(_ceil_div(deadline * rest, UNIT) * UNIT, rest)
    return release, (deadline, -overlaps, -run_end * overlaps, rank, task)


@functools.lru_cache(maxsize=16)
def _plan(target: Target, seed: int, length: int) -> tuple[tuple[int, ...], ...]:
    num_layers = len(target.probabilities)
    quanta = list(target_quanta(target))
    size = _ceil_div(sum(quanta), UNIT)
    # A fractional sum is made whole by one more task that stands for an idle place.
    quanta.append(size * UNIT - sum(quanta))
    order = random_order(random_words(seed, 0, len(quanta)))
    ranks = {task: rank for rank, task in enumerate(order)}
    waiting: list[tuple[int, _Key]] = [
        _window(quantum, 1, ranks[task], task) for task, quantum in enumerate(quanta) if quantum
    ]
    heapq.heapify(waiting)
    turns = [1] * len(quanta)
    ready: list[_Key] = []
    plan = []
    for interval in range(length):
        while waiting and waiting[0][0] <= interval:
            heapq.heappush(ready, heapq.heappop(waiting)[1])
        chosen = [heapq.heappop(ready)[-1] for _ in range(min(size, len(ready)))]
        for task in chosen:
            turns[task] += 1
            heapq.heappush(waiting, _window(quanta[task], turns[task], ranks[task], task))
        plan.append(tuple(sorted(task for task in chosen if task < num_layers)))
    return tuple(plan)


@sampling_law(
    "quota",
    summary="a fixed plan; every layer's count stays within one of its share",
    reference="Baruah et al. (1996), Algorithmica 15; Anderson and Srinivasan (2001), PD2",
    independent=False,
)
def quota(target: Target, seed: int, interval: int) -> list[int]:
    """Return the layers of one interval of the plan; the seed settles ties only.

    For every layer and every number of intervals I: ``|count - I * pi_l| < 1``. Giving each
    interval to the largest deficits (`I * pi_l - count`) looks simpler, but breaks that bound for
    some probabilities; the deadlines used here keep it for all. The inclusion probabilities are
    shares in the long run, as nothing is random. Finding interval I walks the plan from 0, which is
    remembered up to the next power of two.
    """
    if interval >= MAX_INTERVALS:
        msg = f"quota plans end at interval {MAX_INTERVALS}, got {interval}; use systematic"
        raise UsageError(msg)
    length = max(64, 1 << interval.bit_length())
    return list(_plan(target, seed, length)[interval])
