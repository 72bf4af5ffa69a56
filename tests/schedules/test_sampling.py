"""Every sampling law: distinct layers, purity, and the inclusion probabilities that it states."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.schedules import LAWS, active_count_distribution, expected_untrained, water_fill
from layerstats.schedules.sampling import (
    UNIT,
    Target,
    get_law,
    quantise,
    random_words,
    sampling_law,
    systematic_pick,
)
from tests.oracles.sampling import count_distribution

DATA = Path(__file__).parents[1] / "data"
LOD = np.loadtxt(DATA / "llama2_7b_lod_m13_percent.txt")


def target(scores: object, active: float) -> Target:
    values = np.asarray(scores, dtype=float)
    return Target(tuple(values.tolist()), tuple(water_fill(values, active).tolist()), active)


@pytest.mark.parametrize("total", [1, 2])
@pytest.mark.parametrize("quanta", [(6, 3, 2, 1), (3, 3, 3, 3), (0, 6, 5, 1), (4, 4, 2, 2)])
def test_systematic_inclusion_is_exact_by_enumeration(quanta: tuple[int, ...], total: int) -> None:
    """All orders, all starts: layer l is picked by exactly quanta[l] of the `unit` starts."""
    unit = sum(quanta) // total
    if max(quanta) > unit:
        unit, quanta = sum(quanta), tuple(2 * quantum for quantum in quanta)
        if max(quanta) > unit:
            pytest.skip("no design: a probability above 1")
    for order in itertools.permutations(range(len(quanta))):
        counts = [0] * len(quanta)
        for start in range(unit):
            chosen = systematic_pick(quanta, order, start, unit=unit)
            assert len(set(chosen)) == sum(quanta) // unit
            for layer in chosen:
                counts[layer] += 1
        assert tuple(counts) == quanta


def test_systematic_with_a_fraction_gives_floor_or_ceiling() -> None:
    """2.5 layers: half of the starts give 2, half give 3, and inclusion stays exact."""
    quanta, unit = (10, 7, 5, 3), 10
    for order in itertools.permutations(range(4)):
        picks = [systematic_pick(quanta, order, start, unit=unit) for start in range(unit)]
        assert sorted(map(len, picks)) == [2] * 5 + [3] * 5
        counts = [sum(layer in pick for pick in picks) for layer in range(4)]
        assert counts == list(quanta)


@given(
    scores=st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any),
    share=st.floats(0.01, 1),
)
@settings(deadline=None)
def test_quanta_sum_exactly_and_stay_close(scores: list[float], share: float) -> None:
    active = share * np.count_nonzero(scores)
    pi = water_fill(scores, active)
    quanta = quantise(pi.tolist(), active)
    assert Fraction(sum(quanta), UNIT) == Fraction(int(active * UNIT), UNIT)
    assert all(0 <= quantum <= UNIT for quantum in quanta)
    # fsum's rounding of the probabilities is shared out too, hence a few units.
    assert max(abs(q / UNIT - p) for q, p in zip(quanta, pi, strict=True)) < 64 / UNIT
    assert all((q == 0) == (p == 0) for q, p in zip(quanta, pi, strict=True) if p == 0)
    assert all(q == UNIT for q, p in zip(quanta, pi, strict=True) if p == 1)


@pytest.mark.parametrize("law", ["systematic", "bernoulli", "successive", "reshuffle"])
@pytest.mark.parametrize("active", [2, 8])
def test_frequencies_meet_the_stated_inclusion(law: str, active: int) -> None:
    """Counts are binomial by layer; 5 standard errors over 32 layers fail once in 50,000 seeds.

    Reshuffle's rounds are dependent, which makes its counts vary less, never more.
    """
    draws = 4_000
    goal = target(LOD, active)
    counts = np.zeros(32)
    for interval in range(draws):
        counts[get_law(law).draw(goal, 1, interval)] += 1
    pi = get_law(law).inclusion(goal)
    error = np.sqrt(draws * pi * (1 - pi))
    assert np.all(np.abs(counts - draws * pi) <= 5 * error)
    if law == "systematic" and active == 8:
        assert counts[1] == draws


@pytest.mark.parametrize("law", sorted(LAWS))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_laws_of_every_law(law: str, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
    active: float = data.draw(st.integers(1, len(scores)))
    if not LAWS[law].whole_number_only:
        active = data.draw(st.one_of(st.just(active), st.floats(0.1, len(scores))))
    goal = target(scores, active)
    pi = LAWS[law].inclusion(goal)
    assert pi.sum() == pytest.approx(active, rel=1e-10)
    assert pi.min() >= 0
    assert pi.max() <= 1
    assert active_count_distribution(law, goal).sum() == pytest.approx(1)
    counts = np.arange(len(scores) + 1)
    assert active_count_distribution(law, goal) @ counts == pytest.approx(active, rel=1e-10)
    seed, interval = data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, 2000))
    drawn = LAWS[law].draw(goal, seed, interval)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(len(scores)))
    if LAWS[law].fixed_size:
        assert len(drawn) in {math.floor(active), math.ceil(active)}
    assert drawn == LAWS[law].draw(goal, seed, interval)
    everything = target(scores, len(scores))
    assert LAWS[law].draw(everything, seed, interval) == list(range(len(scores)))


@pytest.mark.parametrize("law", sorted(LAWS))
def test_order_of_asking_does_not_matter(law: str) -> None:
    goal = target(LOD, 5)
    draw = LAWS[law].draw
    forward = [draw(goal, 3, interval) for interval in range(50)]
    backward = [draw(goal, 3, interval) for interval in reversed(range(50))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_seed_matters(law: str) -> None:
    goal = target(np.ones(32), 5)
    plans = [[LAWS[law].draw(goal, seed, i) for i in range(10)] for seed in (0, 1)]
    assert plans[0] != plans[1]


def test_random_words_are_philox_and_never_change() -> None:
    """Frozen values: a change of these changes every schedule ever written."""
    assert random_words(0, 0, 2) == [213000021201967259, 4455796210202625458]
    assert random_words(7, 123, 1) == [1647372708867387330]
    assert random_words(1, 0, 4) != random_words(0, 1, 4)
    assert random_words(2**32, 0, 4) != random_words(0, 2**32, 4)


def test_llama2_draws_never_change() -> None:
    goal = target(LOD, 2)
    assert {law: [LAWS[law].draw(goal, 0, i) for i in (0, 1, 999)] for law in sorted(LAWS)} == {
        "bernoulli": [[0, 1, 2], [2, 4, 7, 8, 14, 15], [2, 3]],
        "quota": [[0, 1], [2, 3], [0, 1]],
        "reshuffle": [[0, 21], [2, 11], [6, 15]],
        "successive": [[0, 3], [3, 9], [5, 18]],
        "systematic": [[15, 20], [3, 12], [0, 17]],
    }


def test_reshuffle_visits_everyone_each_round() -> None:
    goal = target(np.ones(32), 5)  # rounds of 7 intervals, 35 places for 32 layers
    for first in range(0, 70, 7):
        drawn = [layer for i in range(7) for layer in LAWS["reshuffle"].draw(goal, 4, first + i)]
        counts = np.bincount(drawn, minlength=32)
        assert counts.min() == 1
        assert counts.max() == 2
        assert counts.sum() == 35


@pytest.mark.parametrize("law", ["successive", "reshuffle"])
def test_laws_of_whole_numbers_say_so(law: str) -> None:
    with pytest.raises(UsageError, match="whole number of layers"):
        LAWS[law].check(target(LOD, 2.5))


def test_unknown_law_names_the_known() -> None:
    with pytest.raises(
        UsageError, match="unknown sampling 'sistematic'; did you mean 'systematic'"
    ):
        get_law("sistematic")


def test_bernoulli_count_by_enumeration() -> None:
    goal = target([5, 4, 3, 2, 1, 1], 2.2)
    assert active_count_distribution("bernoulli", goal) == pytest.approx(
        np.array(count_distribution(goal.probabilities)), abs=1e-15
    )


def test_bernoulli_on_llama2_needs_memory_for_six() -> None:
    count = active_count_distribution("bernoulli", target(LOD, 2))
    k = np.arange(33)
    assert math.sqrt(count @ (k - 2) ** 2) == pytest.approx(1.33, abs=0.005)
    assert count[0] == pytest.approx(0.119, abs=5e-4)
    assert count[4:].sum() == pytest.approx(0.131, abs=5e-4)
    assert np.searchsorted(np.cumsum(count), 0.99) == 6
    uniform = active_count_distribution("bernoulli", target(np.ones(32), 2))
    assert uniform[0] == pytest.approx(0.127, abs=5e-4)


@pytest.mark.parametrize(
    ("active", "intervals", "uniform", "lod"),
    [(2, 7, 20.4, 21.6), (8, 7, 4.3, 7.5), (5, 10, 5.9, 9.4)],
)
def test_layers_that_never_train(active: int, intervals: int, uniform: float, lod: float) -> None:
    """Known values of OwLore's program, which draws successively."""
    missed = {
        name: expected_untrained("successive", target(scores, active), intervals=intervals)
        for name, scores in (("uniform", np.ones(32)), ("lod", LOD))
    }
    assert missed == pytest.approx({"uniform": uniform, "lod": lod}, abs=0.06)
    assert expected_untrained("reshuffle", target(LOD, 5), intervals=7) == 0
    assert expected_untrained("quota", target(np.ones(32), 2), intervals=16) == 0


def test_a_new_law_is_one_function() -> None:
    @sampling_law("first", summary="the first layers", reference="this test")
    def first(goal: Target, seed: int, interval: int) -> list[int]:
        return list(range(int(goal.expected_active)))

    try:
        assert get_law("first").draw(target(LOD, 3), 0, 0) == [0, 1, 2]
    finally:
        del LAWS["first"]
