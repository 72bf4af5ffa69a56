"""Sampling laws: from target inclusion probabilities to the layers of one interval.

Here belong the registry of sampling laws and the laws that fit in a few lines; successive.py and
quota.py hold the two that need more, water_filling.py makes the target probabilities. A law is one
function `(target, seed, interval) -> layers`; it keeps no state between intervals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerstats.errors import UsageError, choices

__all__ = [
    "LAWS",
    "UNIT",
    "SamplingLaw",
    "Target",
    "get_law",
    "quantise",
    "random_words",
    "sampling_law",
    "systematic_pick",
    "target_quanta",
]

FloatArray = NDArray[np.float64]

UNIT = 1 << 53
"""Probabilities are compared as whole numbers of 1/UNIT: no rounding of sums can change a draw."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a sampling law is asked to meet, over layers 0..N-1.

    Parameters
    ----------
    scores : tuple of float
        What the probabilities are proportional to before water-filling (successive sampling needs
        them).
    probabilities : tuple of float
        Target inclusion probabilities, in [0, 1], sum `expected_active`.
    expected_active : float
        Expected number of layers per interval, at most the number of layers.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    expected_active: float

    @property
    def whole_number(self) -> bool:
        """Whether `expected_active` is a whole number of layers."""
        return float(self.expected_active).is_integer()


Draw = Callable[[Target, int, int], list[int]]
Inclusion = Callable[[Target], FloatArray]


@dataclass(frozen=True, slots=True)
class SamplingLaw:
    """A registered sampling law.

    Parameters
    ----------
    name : str
    draw : callable
        ``(target, seed, interval) -> sorted list of distinct layers``; pure.
    inclusion : callable
        ``(target) -> probabilities`` that the law really gives, exact.
    summary, reference : str
        One line for people, and where it comes from.
    fixed_size : bool
        Every interval has floor(expected_active) or ceil(expected_active) layers.
    independent : bool
        Intervals are drawn independently of each other.
    whole_number_only : bool
        The law is not defined for a fractional `expected_active`.
    """

    name: str
    draw: Draw
    inclusion: Inclusion
    summary: str
    reference: str
    fixed_size: bool
    independent: bool
    whole_number_only: bool

    @property
    def follows_target(self) -> bool:
        """Whether the law's inclusion probabilities are the target probabilities."""
        return self.inclusion is _as_targeted

    def check(self, target: Target) -> None:
        """Raise UsageError if the law cannot meet the target."""
        if self.whole_number_only and not target.whole_number:
            msg = (
                f"sampling {self.name!r} takes a whole number of layers, got expected_active "
                f"{target.expected_active:g}; use systematic, bernoulli or quota"
            )
            raise UsageError(msg)


#: Name -> sampling law, in the order of registration.
LAWS: dict[str, SamplingLaw] = {}


def _as_targeted(target: Target) -> FloatArray:
    return np.array(target.probabilities, dtype=np.float64)


def sampling_law(
    name: str,
    *,
    summary: str,
    reference: str,
    inclusion: Inclusion = _as_targeted,
    fixed_size: bool = True,
    independent: bool = True,
    whole_number_only: bool = False,
) -> Callable[[Draw], Draw]:
    """Register a drawing function as the sampling law `name`; `SamplingLaw` explains the fields."""

    def register(draw: Draw) -> Draw:
        LAWS[name] = SamplingLaw(
            name=name,
            draw=draw,
            inclusion=inclusion,
            summary=summary,
            reference=reference,
            fixed_size=fixed_size,
            independent=independent,
            whole_number_only=whole_number_only,
        )
        return draw

    return register


def get_law(name: str) -> SamplingLaw:
    """Return the sampling law `name`, or raise UsageError with the names there are."""
    try:
        return LAWS[name]
    except KeyError:
        raise UsageError(choices("sampling", name, LAWS)) from None


def random_words(seed: int, index: int, count: int) -> list[int]:
    """Return `count` random 64-bit words that belong to (seed, index) alone.

    The words are the raw output of the counter-based generator Philox4x64-10 with `seed` as its key
    and `index` as the top word of its counter. Random access, and the same on every platform and
    NumPy version: only the raw bit stream is used, whose stability NumPy promises, not the
    distributions built on it.

    Parameters
    ----------
    seed, index : int
        0 .. 2**63 - 1.
    count : int

    Examples
    --------
    >>> random_words(0, 5, 3) == random_words(0, 5, 4)[:3]
    True
    """
    words = np.random.Philox(key=seed, counter=index << 192).random_raw(count)
    return [int(word) for word in np.atleast_1d(words)]


def random_order(words: Sequence[int]) -> list[int]:
    """Return the permutation that sorts the words: uniform over permutations for random words."""
    return sorted(range(len(words)), key=words.__getitem__)


def quantise(values: Iterable[float], total: float, *, unit: int = UNIT) -> tuple[int, ...]:
    """Round probabilities to whole numbers of 1/unit whose sum is exactly that of `total`.

    Each value is off by less than 1/unit as long as the values sum to `total` up to rounding. Zeros
    stay zero and ones stay `unit`, so a starved layer never trains and a full one always does.

    Examples
    --------
    >>> quantise([0.5, 0.25, 0.25], 1, unit=10)
    (5, 3, 2)
    """
    exact = [value * unit for value in values]
    quanta = [int(value) for value in exact]
    short = int(total * unit) - sum(quanta)
    # The largest remainders are rounded up first; ties go to the lower layer.
    by_remainder = sorted(range(len(exact)), key=lambda i: (quanta[i] - exact[i], i))
    while short:
        step = 1 if short > 0 else -1
        room = [i for i in by_remainder if exact[i] > 0 and 0 <= quanta[i] + step <= unit]
        room = [i for i in room if exact[i] < unit] or room
        if not room:
            break
        each = max(1, abs(short) // len(room))
        for i in room:
            change = min(each, abs(short), unit - quanta[i] if step > 0 else quanta[i])
            quanta[i] += step * change
            short -= step * change
    return tuple(quanta)


@functools.lru_cache(maxsize=64)
def target_quanta(target: Target) -> tuple[int, ...]:
    """Return the target probabilities as whole numbers of 1/UNIT (remembered, as draws repeat)."""
    return quantise(target.probabilities, target.expected_active)


def systematic_pick(
    quanta: Sequence[int], order: Iterable[int], start: int, *, unit: int = UNIT
) -> list[int]:
    """Lay the layers end to end in `order` and pick those under the points start, start + unit, ...

    Layer l covers ``quanta[l]`` of the line, so of the `unit` possible starts exactly ``quanta[l]``
    pick it, whatever the order; and as no layer is longer than `unit`, none is picked twice.

    Examples
    --------
    >>> [systematic_pick([2, 1, 1], [0, 1, 2], start, unit=2) for start in (0, 1)]
    [[0, 1], [0, 2]]
    """
    chosen = []
    point, end = start, 0
    for layer in order:
        end += quanta[layer]
        if point < end:
            chosen.append(layer)
            point += unit
    return sorted(chosen)


@sampling_law(
    "systematic",
    summary="fixed size, exactly the target probabilities",
    reference="Madow (1949), Ann. Math. Statist. 20, 333-354; on a random order of the layers",
)
def systematic(target: Target, seed: int, interval: int) -> list[int]:
    """Draw by Madow's systematic sampling on a random permutation of the layers.

    Inclusion is exact: ``P(l active) = pi_l``. The number of layers is `expected_active` when that
    is whole, else its floor or ceiling, with `expected_active` as the mean.
    """
    words = random_words(seed, interval, len(target.probabilities) + 1)
    return systematic_pick(target_quanta(target), random_order(words[1:]), words[0] >> 11)


@sampling_law(
    "bernoulli",
    summary="each layer by itself with its target probability; the number of layers varies",
    reference="Pan et al. (2024), LISA, arXiv:2403.17919, first version",
    fixed_size=False,
)
def bernoulli(target: Target, seed: int, interval: int) -> list[int]:
    """Draw every layer independently with its target probability.

    Inclusion is exact, but an interval may have no layer at all or many more than
    `expected_active`: memory must be sized for `active_count_distribution`'s tail, not for its
    mean.
    """
    words = random_words(seed, interval, len(target.probabilities))
    quanta = target_quanta(target)
    return [layer for layer, word in enumerate(words) if word >> 11 < quanta[layer]]


def _uniform_inclusion(target: Target) -> FloatArray:
    num_layers = len(target.probabilities)
    return np.full(num_layers, target.expected_active / num_layers)


@sampling_law(
    "reshuffle",
    summary="a fresh random order each round, every layer once a round; ignores the scores",
    reference="Luo et al. (2024), BAdam, arXiv:2404.02827 (one block at a time there)",
    inclusion=_uniform_inclusion,
    independent=False,
    whole_number_only=True,
)
def reshuffle(target: Target, seed: int, interval: int) -> list[int]:
    """Deal a random permutation of the layers, `expected_active` at a time, and shuffle again.

    A round is ``ceil(N / n)`` intervals. When n does not divide N, the last interval of a round
    takes the last n of the permutation, so every interval has n layers, each layer trains once or
    twice a round, and every layer's inclusion probability is n / N by symmetry.
    """
    num_layers, size = len(target.probabilities), int(target.expected_active)
    rounds, slot = divmod(interval, -(-num_layers // size))
    order = random_order(random_words(seed, rounds, num_layers))
    first = min(slot * size, num_layers - size)
    return sorted(order[first : first + size])
