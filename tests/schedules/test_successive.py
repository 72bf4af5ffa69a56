"""Successive sampling: exact inclusion against fractions, known values and NumPy's draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.schedules import water_fill
from layerstats.schedules.sampling import Target
from layerstats.schedules.successive import successive, successive_inclusion
from tests.oracles import sampling as oracle

DATA = Path(__file__).parents[1] / "data"
LOD = np.loadtxt(DATA / "llama2_7b_lod_m13_percent.txt")


def target(scores: object, active: int) -> Target:
    values = np.asarray(scores, dtype=float)
    return Target(tuple(values.tolist()), tuple(water_fill(values, active).tolist()), active)


@given(
    weights=st.lists(st.integers(1, 10**6), min_size=2, max_size=6),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_inclusion_equals_exact_fractions(weights: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(weights)))
    exact = [float(value) for value in oracle.successive_inclusion(weights, size)]
    got = successive_inclusion(target(weights, size))
    assert got == pytest.approx(np.array(exact), rel=1e-11)


@pytest.mark.parametrize(
    ("size", "heaviest", "lightest", "lowest", "highest"),
    [
        (2, 0.258, 0.0171, -0.046, 0.028),
        (4, 0.467, 0.0361, -0.137, 0.086),
        (5, 0.554, 0.0465, -0.180, 0.117),
        (8, 0.755, 0.0811, -0.272, 0.205),
        (16, 0.974, 0.209, -0.22, 0.32),
    ],
)
def test_llama2_table(
    size: int, heaviest: float, lightest: float, lowest: float, highest: float
) -> None:
    goal = target(LOD, size)
    pi = successive_inclusion(goal)
    assert pi.sum() == pytest.approx(size, abs=1e-12)
    assert pi[1] == pytest.approx(heaviest, abs=5e-4)
    assert pi[27] == pytest.approx(lightest, abs=5e-4)
    error = pi / np.array(goal.probabilities) - 1
    assert error.min() == pytest.approx(lowest, abs=6e-3)
    assert error.max() == pytest.approx(highest, abs=6e-3)


def test_lisa_d_is_bent_too() -> None:
    pi = successive_inclusion(target(np.arange(32, 0, -1), 8))
    assert pi[0] == pytest.approx(0.446, abs=5e-4)
    assert pi[31] == pytest.approx(0.0178, abs=5e-5)


def test_the_same_law_as_numpy_choice() -> None:
    """NumPy's draws against our exact numbers; 5 standard errors over 32 layers."""
    rng = np.random.Generator(np.random.Philox(5))
    draws, size = 4_000, 8
    counts = np.zeros(32)
    for _ in range(draws):
        counts[rng.choice(32, size, replace=False, p=LOD / LOD.sum())] += 1
    pi = successive_inclusion(target(LOD, size))
    assert np.all(np.abs(counts - draws * pi) <= 5 * np.sqrt(draws * pi * (1 - pi)))


def test_eighty_layers_and_wide_ratios() -> None:
    scores = np.exp(np.linspace(-9, 9, 80))
    pi = successive_inclusion(target(scores, 16))
    assert pi.sum() == pytest.approx(16, abs=1e-10)
    assert np.all(np.diff(pi) >= 0)


def test_zeros_are_never_drawn() -> None:
    goal = target([3, 0, 2, 1, 0], 2)
    assert successive_inclusion(goal)[[1, 4]].tolist() == [0, 0]
    assert not {1, 4} & {layer for i in range(300) for layer in successive(goal, 0, i)}
    assert successive(target([3, 0, 2, 1e-300, 0], 3), 0, 0) == [0, 2, 3]


def test_too_few_positive_scores() -> None:
    with pytest.raises(UsageError, match="at least 2 positive scores"):
        successive_inclusion(Target((1.0, 0.0, 0.0), (1.0, 0.5, 0.5), 2))
