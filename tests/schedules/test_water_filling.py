"""Scores to inclusion probabilities: sum, cap, order, proportion."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layerstats.errors import UsageError
from layerstats.schedules import water_fill
from tests.oracles.sampling import water_level

DATA = Path(__file__).parents[1] / "data"
LOD = np.loadtxt(DATA / "llama2_7b_lod_m13_percent.txt")

positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)


def test_the_published_scores_are_whole() -> None:
    assert LOD.shape == (32,)
    assert LOD.sum() == pytest.approx(2.1857, abs=5e-5)


@pytest.mark.parametrize(
    ("active", "largest", "smallest", "capped"),
    [
        (2, 0.270, 0.0166, 0),
        (4, 0.540, 0.0333, 0),
        (5, 0.675, 0.0416, 0),
        (8, 1, 0.0673, 1),
        (16, 1, 0.158, 3),
    ],
)
def test_llama2_targets(active: int, largest: float, smallest: float, capped: int) -> None:
    """LLaMA-2-7B: layer 1 is the heaviest, 27 the lightest; above 7.40 layers one is capped.

    At 16 two are above 1 at first, and a third is pushed to 1 by what they leave.
    """
    pi = water_fill(LOD, active)
    assert pi.sum() == pytest.approx(active, abs=1e-12)
    assert pi[1] == pi.max()
    assert pi.argmin() == 27
    assert pi[1] == pytest.approx(largest, abs=5e-4)
    assert pi[27] == pytest.approx(smallest, abs=5e-4)
    assert np.count_nonzero(pi == 1) == capped


@pytest.mark.parametrize(("active", "kept"), [(8, 7.92), (12, 10.9), (16, 13.9)])
def test_naive_clipping_would_lose_layers(active: int, kept: float) -> None:
    clipped = np.minimum(1, active * LOD / LOD.sum())
    assert clipped.sum() == pytest.approx(kept, abs=0.05)
    assert water_fill(LOD, active).sum() == pytest.approx(active, abs=1e-12)


@given(scores=positive, share=st.floats(0.01, 1))
@settings(deadline=None)
def test_laws(scores: list[float], share: float) -> None:
    active = share * len(scores)
    pi = water_fill(scores, active)
    assert math.fsum(pi) == pytest.approx(active, rel=1e-12)
    assert pi.min() > 0
    assert pi.max() <= 1
    order = np.argsort(scores, kind="stable")
    assert np.all(np.diff(pi[order]) >= 0)
    free = pi < 1
    if free.any():
        ratio = pi[free] / np.array(scores)[free]
        assert ratio == pytest.approx(np.full(ratio.size, ratio[0]), rel=1e-9)
        # A capped layer is one that its share of the rest would have put at 1 or above.
        assert np.all(np.array(scores)[~free] * ratio[0] >= 1 - 1e-9)
    assert pi == pytest.approx(np.array(water_level(scores, active)), rel=1e-6)


@given(scores=positive, power=st.integers(-30, 30), share=st.floats(0.01, 1))
@settings(deadline=None)
def test_scale_of_scores_does_not_matter(scores: list[float], power: int, share: float) -> None:
    active = share * len(scores)
    assert np.array_equal(
        water_fill(scores, active), water_fill(np.array(scores) * 2.0**power, active)
    )


@given(scores=positive, extra=st.floats(0, 10))
@settings(deadline=None)
def test_as_many_as_there_are_trains_everything(scores: list[float], extra: float) -> None:
    assert water_fill(scores, len(scores) + extra).tolist() == [1.0] * len(scores)


@given(scores=positive, first=st.floats(0.01, 1), second=st.floats(0.01, 1))
@settings(deadline=None)
def test_more_layers_starve_nobody(scores: list[float], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assume(high > low)
    fewer, more = water_fill(scores, low * len(scores)), water_fill(scores, high * len(scores))
    assert np.all(more >= fewer * (1 - 1e-12))


def test_equal_scores_are_uniform() -> None:
    assert water_fill([3.0] * 32, 2).tolist() == [2 / 32] * 32


def test_a_zero_never_trains_unless_all_do() -> None:
    assert water_fill([1, 0, 1], 2).tolist() == [1, 0, 1]
    assert water_fill([1, 0, 1], 3).tolist() == [1, 1, 1]


def test_extreme_ratios_do_not_overflow() -> None:
    assert water_fill([1e300, 1e-310, 1e-310], 1.5).tolist() == [1, 0.25, 0.25]


@pytest.mark.parametrize(
    ("scores", "active", "words"),
    [
        ([1, 0, 0], 2, "more than the 1 layers with a positive score"),
        ([1, -1], 1, "none negative"),
        ([1, math.nan], 1, "finite"),
        ([], 1, "one a layer"),
        ([1, 2], 0, "above 0"),
        ([1, 2], math.nan, "above 0"),
        ([1, 2], math.inf, "finite"),
    ],
)
def test_bad_input(scores: list[float], active: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        water_fill(scores, active)


def test_the_input_is_left_alone() -> None:
    scores: NDArray[np.float64] = np.array([3.0, 1.0, 1.0])
    water_fill(scores, 2)
    assert scores.tolist() == [3, 1, 1]


@given(
    scores=st.lists(st.just(0.0) | st.floats(1e-3, 100), min_size=1, max_size=20).filter(any),
    share=st.floats(0.02, 1),
    part=st.floats(0, 1),
)
@settings(deadline=None, max_examples=120)
def test_both_ends_are_kept_and_the_sum_is_exact(
    scores: list[float], share: float, part: float
) -> None:
    active = share * np.count_nonzero(scores)
    floor = part * min(1.0, active / len(scores))
    pi = water_fill(scores, active, floor=floor)
    assert math.fsum(pi) == pytest.approx(min(active, len(scores)), rel=1e-12)
    assert pi.min() >= floor * (1 - 1e-15)
    assert pi.max() <= 1
    free = (pi > floor * (1 + 1e-12)) & (pi < 1)
    if free.any():
        level = pi[free] / np.array(scores)[free]
        assert level == pytest.approx(np.full(level.size, level[0]), rel=1e-9)
        # What stands at an end is what its share would have put there or beyond.
        assert np.all(np.array(scores)[pi == 1] * level[0] >= 1 - 1e-9)
        low = (pi <= floor * (1 + 1e-12)) & (pi < 1)
        assert np.all(np.array(scores)[low] * level[0] <= floor * (1 + 1e-9))
    assert pi == pytest.approx(np.array(level_between(scores, active, floor)), abs=1e-7)


def level_between(scores: list[float], active: float, floor: float) -> list[float]:
    """max(floor, min(1, c * score)) with c found by bisection."""
    low, high = 0.0, 1.0

    def at(c: float) -> list[float]:
        return [max(floor, min(1.0, c * score)) for score in scores]

    while sum(at(high)) < active * (1 - 1e-12) and high < 1e300:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < active else (low, middle)
    return at(high)


def test_a_floor_of_gamma_over_n_makes_all_alike() -> None:
    assert water_fill([9.0, 0.0, 1.0, 5.0], 1, floor=0.25).tolist() == [0.25] * 4
